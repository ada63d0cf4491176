"""Take the noise out of a picture without taking light from stars or digging moats round them. Arrays only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from scipy import ndimage

from zemosaic_core.picture_noise import calm, excess, finest_scale, standing_out
from zemosaic_core.picture_smoothing import fill_from_around, raise_row_to

__all__ = ["CalmedPicture", "calm_light_and_colours"]

# Limits of noise in sigma per scale (1, 2, 4 ... px) and share that stays: grain of light is welcome, of colour not.
_LIGHT = ((3.5, 3.5, 3.0, 2.5, 2.0), 0.18)
_COLOUR = ((4.5, 4.5, 4.5, 4.0, 4.0, 3.5), 0.04)
# Light that stands out of the noise by the second number is shown as it is, by less than the first it is calmed; what
# is coloured has to be clearer, because the difference of two colours is noisier than their sum.
_STAR_LIGHT = (3.0, 4.2)
_STAR_COLOUR = (6.0, 15.0)
# Of the neighbourhood of a star what rises out of the noise by so much is the star's.
_STAR_SHAPE = (1.0, 3.0)
# What rises by less than the first of these, as a pixel or with its neighbours, is shown slightly smoothed: the grain
# beside a star is not the star's.
_CORE_PIXEL = (2.0, 3.0)
_CORE = (8.0, 16.0)
_STAR_COLOUR_SHAPE = (6.0, 20.0)
# A dip beside a star that is less than this share of the star's height is what resampling makes of undersampled stars;
# it reaches this far.
_RINGING = 0.08
_RING_REACH_PX = 6
_FLOOR_CELL_PX = 24
_FLOOR_PERCENTILE = 30.0

CalmedPicture = tuple[np.ndarray, list[np.ndarray]]


def calm_light_and_colours(
    light: np.ndarray,
    colours: list[np.ndarray],
    known: np.ndarray,
    light_noise: np.ndarray | None = None,
    colour_noise: list[np.ndarray] | None = None,
    *,
    threads: int = 1,
) -> CalmedPicture:
    """Calm the light of a picture and its colours.

    Small lights that stand out are lifted off first and put back as they are, so nothing of them is lost and the
    calming has no steep edges to ring at. Then the sky beside stars is a floor: nothing there is darker than the
    darker part of the sky around, unless it is by more than resampling could have made it.

    Parameters
    ----------
    light : ndarray, shape (h, w), float32
        Light above the sky; 0 where missing.
    colours : list of ndarray, shape (h, w), float32
        What colours have more than the light; may be empty.
    known : ndarray, shape (h, w), bool
    light_noise, colour_noise : ndarray, list of ndarray, optional
        What is known of the noise of a pixel, see `picture_noise.calm`.
    threads : int
        Planes that are calmed at once, each of which takes memory of its own; the result does not depend on it.

    Returns
    -------
    tuple
        Light and colours, calmed.
    """
    weight = known.astype(np.float32)
    finest = finest_scale(light, weight, light_noise)
    outstanding = standing_out(light, weight, finest, light_noise)
    near = _ramp(outstanding, *_STAR_LIGHT)
    beneath = fill_from_around(light, weight * (np.float32(1.0) - near)) * weight
    core, shape = excess(light, beneath, weight, finest)
    core = np.maximum(_ramp(core, *_CORE_PIXEL), _ramp(shape, *_CORE))
    share = near * np.maximum(_ramp(shape, *_STAR_SHAPE), core)
    gentle = core * (light - finest.smoother)
    gentle += finest.smoother
    del finest
    coloured = _ramp(outstanding, *_STAR_COLOUR)
    colour_share = coloured * _ramp(shape, *_STAR_COLOUR_SHAPE)
    noises = colour_noise if colour_noise is not None else [None] * len(colours)
    del outstanding, shape, core
    with ThreadPoolExecutor(threads) as executor:
        of_light = executor.submit(
            _calm_light, light, gentle, beneath, near, share, known, weight, light_noise
        )
        # What the light alone needs is let go as soon as it is done.
        del gentle, beneath, near, share
        of_colours = [
            executor.submit(_calm_colour, colour, coloured, colour_share, weight, noise)
            for colour, noise in zip(colours, noises, strict=True)
        ]
        return of_light.result(), [future.result() for future in of_colours]


def _calm_light(
    light: np.ndarray,
    gentle: np.ndarray,
    beneath: np.ndarray,
    near: np.ndarray,
    share: np.ndarray,
    known: np.ndarray,
    weight: np.ndarray,
    noise: np.ndarray | None,
) -> np.ndarray:
    calmed = _calm_around(light, gentle, beneath, share, weight, _LIGHT, 2, noise)
    return _lift_to_floor(light, calmed, known, near)


def _calm_colour(
    colour: np.ndarray, near: np.ndarray, share: np.ndarray, weight: np.ndarray, noise: np.ndarray | None
) -> np.ndarray:
    beneath = fill_from_around(colour, weight * (np.float32(1.0) - near)) * weight
    return _calm_around(colour, colour, beneath, share, weight, _COLOUR, 0, noise)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0))


def _calm_around(
    plane: np.ndarray,
    star: np.ndarray,
    beneath: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    limits: tuple[tuple[float, ...], float],
    bright_scales: int,
    noise: np.ndarray | None,
) -> np.ndarray:
    lifted = share * (star - beneath)
    return np.asarray(
        (calm(plane - lifted, weight, *limits, bright_scales=bright_scales, noise=noise) + lifted) * weight
    )


def _lift_to_floor(light: np.ndarray, calmed: np.ndarray, known: np.ndarray, share: np.ndarray) -> np.ndarray:
    floor = _local_floor(calmed, known & (share == 0))
    if floor is None:
        return calmed
    stars = np.where(share > 0, light, np.float32(-np.inf))
    height = np.empty_like(stars)
    _largest_in_disc(stars, _RING_REACH_PX, height)
    height -= floor
    depth = floor - calmed
    ringing = known & (depth > 0) & (depth < np.float32(_RINGING) * height)
    return np.where(ringing, floor, calmed)


@njit(cache=True, nogil=True)
def _largest_in_disc(plane, radius, result):
    """Largest value within a radius; discs end at the border."""
    height, width = plane.shape
    n = min(height, 2 * radius + 1)
    reaches = np.array([int(np.sqrt(radius * radius - j * j)) for j in range(radius + 1)])
    # Row y of the plane lies at y modulo n: the largest within each reach sideways.
    rows = np.empty((n, radius + 1, width), plane.dtype)
    done = 0
    for y in range(height):
        while done < min(height, y + radius + 1):
            row, most = plane[done], rows[done % n]
            most[0] = row
            for shift in range(1, radius + 1):
                most[shift] = most[shift - 1]
                if shift < width:
                    raise_row_to(most[shift, : width - shift], row[shift:])
                    raise_row_to(most[shift, shift:], row[: width - shift])
            done += 1
        out = result[y]
        out[:] = rows[y % n, radius]
        for j in range(max(0, y - radius), min(height, y + radius + 1)):
            raise_row_to(out, rows[j % n, reaches[abs(j - y)]])


def _local_floor(calmed: np.ndarray, sky: np.ndarray) -> np.ndarray | None:
    """Level of the darker part of the sky around each pixel; None where no sky is known."""
    cell = _FLOOR_CELL_PX
    height, width = calmed.shape
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.full((rows * cell, columns * cell), np.nan, np.float32)
    padded[:height, :width] = np.where(sky, calmed, np.float32(np.nan))
    blocks = np.sort(
        padded.reshape(rows, cell, columns, cell).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    )
    count = np.isfinite(blocks).sum(axis=-1)
    place = np.minimum((count * (_FLOOR_PERCENTILE / 100.0)).astype(int), np.maximum(count - 1, 0))
    mesh = np.take_along_axis(blocks, place[..., None], axis=-1)[..., 0]
    missing = count < cell * cell // 16
    if missing.all():
        return None
    if missing.any():
        nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
        mesh = mesh[tuple(nearest)]
    # At the edge of a dark cloud the cloud is the floor.
    mesh = ndimage.minimum_filter(mesh, size=3, mode="nearest")
    y = np.clip((np.arange(height) + 0.5) / cell - 0.5, 0, rows - 1)
    x = np.clip((np.arange(width) + 0.5) / cell - 0.5, 0, columns - 1)
    j, i = np.minimum(y.astype(int), max(rows - 2, 0)), np.minimum(x.astype(int), max(columns - 2, 0))
    fy, fx = (y - j)[:, None].astype(np.float32), (x - i)[None].astype(np.float32)
    below = mesh[np.minimum(j + 1, rows - 1)]
    line = mesh[j] + fy * (below - mesh[j])
    return np.asarray(line[:, i] + fx * (line[:, np.minimum(i + 1, columns - 1)] - line[:, i]))
