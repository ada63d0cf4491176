"""Steps of a mosaic along the outlines of its panels or frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.quality_background import CELL_PX, measure_cells
from benchmarks.quality_scene import CFA_DENSITY, Scene
from zemosaic_core.synthetic_sky import pixel_to_sky, sky_to_pixel
from zemosaic_io.glow_session import GlowNight

__all__ = ["measure_seams"]

STRIP_LENGTH_PX, STRIP_DEPTH_PX = 64, 32


def measure_seams(scene: Scene, truth: GlowNight) -> tuple[float, float, float, float, int]:
    """Steps of the residual in G across outlines: rms per 64 px, its noise, worst whole side, its sigma, sides."""
    cells = measure_cells(scene, 1).residual
    use = np.isfinite(cells)
    y, x = np.nonzero(use)
    # A slope of the whole is no seam; it must not add to the differences over the width of the strips.
    surface = np.linalg.lstsq(_quadric(x, y), cells[use], rcond=None)[0]
    good = scene.clean & np.isfinite(scene.image[1])
    steps: list[tuple[float, float]] = []
    sides: list[tuple[float, float]] = []
    for cards, gap in _outlines(truth):
        for start, direction, inward, length in _sides(truth.spec.shape_hw):
            side: list[tuple[float, float]] = []
            for begin in np.arange(0.0, length - STRIP_LENGTH_PX + 1.0, STRIP_LENGTH_PX):
                s, d = np.meshgrid(begin + np.arange(STRIP_LENGTH_PX), gap + np.arange(STRIP_DEPTH_PX))
                strips = []
                for sign in (1.0, -1.0):
                    fx = start[0] + s * direction[0] + sign * d * inward[0]
                    fy = start[1] + s * direction[1] + sign * d * inward[1]
                    mx, my = sky_to_pixel(scene.cards, *pixel_to_sky(cards, fx, fy))
                    strips.append(_strip_mean(scene, good, surface, mx, my))
                if all(strip is not None for strip in strips):
                    (inside, v_in), (outside, v_out) = strips  # type: ignore[misc]
                    side.append((inside - outside, v_in + v_out))
            steps += side
            if len(side) >= 3:
                values, variances = np.array(side).T
                mean = float(np.average(values, weights=1.0 / variances))
                sides.append((mean, float(1.0 / np.sqrt((1.0 / variances).sum()))))
    nan = float("nan")
    if not steps:
        return nan, nan, nan, nan, 0
    values, variances = np.array(steps).T
    worst = max(sides, key=lambda side: abs(side[0]), default=(nan, 1.0))
    return (
        float(np.sqrt((values**2).mean())),
        float(np.sqrt(variances.mean())),
        abs(worst[0]),
        abs(worst[0]) / worst[1],
        len(sides),
    )


def _quadric(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, t = x / 20.0, y / 20.0
    return np.stack([np.ones_like(u), u, t, u * u, u * t, t * t], axis=-1)


def _strip_mean(
    scene: Scene, good: np.ndarray, surface: np.ndarray, mx: np.ndarray, my: np.ndarray
) -> tuple[float, float] | None:
    """Mean residual in G and its variance over places of the mosaic; None where too few can be used."""
    ix, iy = np.rint(mx).astype(int).ravel(), np.rint(my).astype(int).ravel()
    on = (ix >= 0) & (iy >= 0) & (ix < good.shape[1]) & (iy < good.shape[0])
    ix, iy = ix[on], iy[on]
    keep = good[iy, ix] & np.isfinite(scene.noise[1][iy, ix])
    ix, iy = ix[keep], iy[keep]
    if ix.size < 0.2 * STRIP_LENGTH_PX * STRIP_DEPTH_PX:
        return None
    smooth = _quadric((ix + 0.5) / CELL_PX - 0.5, (iy + 0.5) / CELL_PX - 0.5) @ surface
    residual = scene.image[1][iy, ix] - scene.diffuse[1][iy, ix] - scene.stars[1][iy, ix] - smooth
    sigma = scene.noise[1][iy, ix] / np.sqrt(CFA_DENSITY[1])
    calm = np.abs(residual - np.median(residual)) < 5.0 * sigma
    return float(residual[calm].mean()), float((sigma[calm] ** 2).mean() / calm.sum())


def _sides(
    shape_hw: tuple[int, int],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Start, direction, inward normal and length of the sides of a frame, px."""
    height, width = shape_hw[0] - 1.0, shape_hw[1] - 1.0
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - start)))
        direction = (end - start) / length
        yield start, direction, np.array([-direction[1], direction[0]]), length


def _outlines(truth: GlowNight) -> Iterator[tuple[Mapping[str, Any], float]]:
    """WCS of a frame, and how far (px) the others of its visit stray from it: frames that agree have one outline."""
    height, width = truth.spec.shape_hw
    corner_x, corner_y = (
        np.array([0.0, width - 1.0, width - 1.0, 0.0]),
        np.array([0, 0, height - 1.0, height - 1.0]),
    )
    visits: dict[int, list[Mapping[str, Any]]] = {}
    for frame in truth.frames:
        visits.setdefault(frame.visit, []).append(frame.setup.cards)
    for members in visits.values():
        middle = members[len(members) // 2]
        stray = 0.0
        for cards in members:
            x, y = sky_to_pixel(middle, *pixel_to_sky(cards, corner_x, corner_y))
            stray = max(stray, float(np.hypot(x - corner_x, y - corner_y).max()))
        if stray <= 30.0:
            yield middle, stray + 2.0
        else:
            yield from ((cards, 2.0) for cards in members)
