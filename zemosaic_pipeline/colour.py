"""Colours of the mosaic from the stars of the catalogue: what is measured, what follows, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.apertures import aperture_fluxes
from zemosaic_core.colour_calibration import (
    lonely_stars,
    solve_colours,
)
from zemosaic_core.night_sky import CATALOGUE_EPOCH
from zemosaic_core.sphere import image_geometry
from zemosaic_core.statistics import mad_sigma
from zemosaic_io.star_catalogue import open_built_in_catalogue
from zemosaic_pipeline.plan import ColourOptions
from zemosaic_pipeline.records import MosaicColour, RegisteredFrame, StarLight

__all__ = ["calibrate", "star_light"]

# An aperture that holds nearly all light of a star, in units of its width, and not less than this.
_APERTURE_FWHM, _LEAST_APERTURE_PX = 2.5, 4.0
_GAP_PX, _RING_PX = 3.0, 4.0
_MOST_STARS = 2000
_MIN_SNR = 20.0
_BAND_ROWS = 256
# A star of a frame is one of the catalogue when they lie this near each other; one that is cut in more than this share
# of the frames is not measured. Only the brightest of a frame can be.
_SAME_STAR_PX = 3.0
_OFTEN = 0.25
_SEEN_STARS = 120
# The best aperture for a faint star on an even sky, in units of the width, and the share of the light inside.
_FAINT_APERTURE_FWHM, _FAINT_SHARE, _FAINT_SNR = 0.68, 0.72, 5.0


def star_light(frames: Sequence[RegisteredFrame]) -> StarLight:
    """Collect from registered frames what the calibration needs to know about stars."""
    infos = [frame.solved.frame.info for frame in frames]
    scaled = [
        info.exposure_s * float(np.mean(frame.gain))
        for info, frame in zip(infos, frames, strict=True)
        if info.exposure_s
    ]
    places, cut, widths = [np.empty((0, 2))], [np.empty(0, bool)], []
    for frame in frames:
        stars = frame.solved.measure.columns("x", "y", "fwhm_px", "saturated")
        brightest = slice(0, _SEEN_STARS)
        x, y = stars["x"][brightest], stars["y"][brightest]
        places.append(np.column_stack(frame.to_plane.apply(x, y)))
        cut.append(stars["saturated"][brightest].astype(bool))
        step = frame.to_plane.apply(np.array([0.0, 1.0]), np.zeros(2))
        scale = float(np.hypot(np.diff(step[0])[0], np.diff(step[1])[0]))
        widths.append(scale * float(np.nanmedian(stars["fwhm_px"])) if len(stars["x"]) else np.nan)
    width = float(np.nanmedian(widths)) if np.isfinite(widths).any() else _LEAST_APERTURE_PX
    # Gains are near one for clear frames and larger for hazy ones.
    exposure = float(np.percentile(scaled, 25.0)) if len(scaled) == len(frames) and scaled else float("nan")
    epoch = float(np.mean([info.epoch for info in infos])) if infos else CATALOGUE_EPOCH
    return StarLight(epoch, exposure, width, np.vstack(places), np.concatenate(cut))


def calibrate(
    read_rows: Callable[[int, int], np.ndarray],
    shape: tuple[int, int, int],
    wcs_cards: dict[str, Any],
    light: StarLight,
    origin_yx: tuple[int, int],
    options: ColourOptions,
) -> MosaicColour:
    """Measure the catalogue's stars in a finished mosaic and solve for its colours.

    Parameters
    ----------
    read_rows : callable
        ``read_rows(y0, y1)`` gives rows of the mosaic, (C, y1 - y0, W), NaN missing.
    shape : tuple of int
        (C, H, W).
    wcs_cards : dict
        WCS of the mosaic.
    light : StarLight
        Places in it are on the grid, of which the mosaic is the part that begins at `origin_yx`.
    """
    if not options.calibrate:
        return MosaicColour("colour_off", 0)
    channels, height, width = shape
    wcs = WCS(wcs_cards)
    place = image_geometry(wcs, (height, width))
    radius_deg = min(0.55 * float(np.hypot(*place.size_deg)), 90.0)
    catalogue = open_built_in_catalogue()
    known = catalogue.coloured_near(place.ra_deg, place.dec_deg, radius_deg, light.epoch)
    every = catalogue.near(place.ra_deg, place.dec_deg, radius_deg, epoch=light.epoch)
    aperture = max(_APERTURE_FWHM * light.fwhm_px, _LEAST_APERTURE_PX)
    reach = int(np.ceil(aperture + _GAP_PX + _RING_PX)) + 1
    xy = np.column_stack(wcs.all_world2pix(known.ra_deg, known.dec_deg, 0, quiet=True))
    all_xy = np.column_stack(wcs.all_world2pix(every.ra_deg, every.dec_deg, 0, quiet=True))
    every_ok = np.isfinite(all_xy).all(axis=1)
    inside = np.isfinite(xy).all(axis=1)
    inside[inside] = ((xy[inside] > reach) & (xy[inside] < np.array([width, height]) - reach)).all(axis=1)
    rows = np.flatnonzero(inside)
    rows = rows[lonely_stars(xy[rows], known.v_mag[rows], all_xy[every_ok], every.mag[every_ok], aperture)]
    seen_xy = light.seen_xy - np.array([origin_yx[1], origin_yx[0]])
    rows = rows[~_often_cut(xy[rows], seen_xy, light.cut)][:_MOST_STARS]
    flux, noise = _measure(read_rows, shape, xy[rows], aperture, reach)
    error = np.broadcast_to(noise[:, None] * np.sqrt(np.pi) * aperture, flux.shape)
    with np.errstate(invalid="ignore"):
        bright = (flux > _MIN_SNR * error).all(axis=0)
    rows, flux, error = rows[bright], flux[:, bright], error[:, bright]
    v_mag, b_v = known.v_mag[rows], known.b_v[rows]
    solution = solve_colours(flux, error, v_mag, b_v, options.white_b_v)
    if solution is None:
        return MosaicColour("colour_too_few_stars", len(rows))
    per_second = 2.5 * np.log10(light.exposure_s)
    zero = np.array([point.at_white for point in solution.zero_points])
    faint = _FAINT_SNR * noise * np.sqrt(np.pi) * _FAINT_APERTURE_FWHM * light.fwhm_px / _FAINT_SHARE
    with np.errstate(divide="ignore"):
        limit = zero - 2.5 * np.log10(faint)
    return MosaicColour(
        "colour_calibrated" if channels == 3 else "colour_zero_point",
        len(rows),
        solution,
        tuple(float(z) for z in zero - per_second),
        tuple(float(m) for m in limit),
        np.column_stack([v_mag, b_v, *(-2.5 * np.log10(flux))]),
        options.white,
        options.white_b_v,
    )


def _measure(
    read_rows: Callable[[int, int], np.ndarray],
    shape: tuple[int, int, int],
    xy: np.ndarray,
    aperture: float,
    reach: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Light (C, n) of stars and noise (C,) of a pixel, reading only the bands of rows that hold stars."""
    channels, height, _ = shape
    flux = np.full((channels, len(xy)), np.nan)
    noises = []
    band = np.floor(xy[:, 1] / _BAND_ROWS).astype(np.int64)
    for k in np.unique(band):
        here = np.flatnonzero(band == k)
        y0 = max(int(k) * _BAND_ROWS - reach, 0)
        y1 = min((int(k) + 1) * _BAND_ROWS + reach, height)
        pixels = read_rows(y0, y1)
        flux[:, here] = aperture_fluxes(pixels, xy[here, 0], xy[here, 1] - y0, aperture, gap_px=_GAP_PX)
        # Neighbours share samples; pixels this far apart do not.
        apart = (pixels[..., 8:] - pixels[..., :-8]).reshape(channels, -1)
        noises.append([mad_sigma(d[np.isfinite(d)][::7]) / np.sqrt(2.0) for d in apart])
    known = np.array(noises).reshape(-1, channels)
    known = known[np.isfinite(known).all(axis=1)]
    return flux, np.median(known, axis=0) if len(known) else np.full(channels, np.nan)


def _often_cut(xy: np.ndarray, seen_xy: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Tell which stars more than a quarter of the frames that show them could not hold, bool (n,)."""
    if not len(xy) or not len(seen_xy):
        return np.zeros(len(xy), bool)
    near = cKDTree(seen_xy).query_ball_point(xy, _SAME_STAR_PX)
    return np.array([len(rows) > 0 and cut[rows].mean() > _OFTEN for rows in near])
