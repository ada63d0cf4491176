"""Single pixels that are wrong: outliers and what satellites left."""

from __future__ import annotations

import numpy as np

from benchmarks.quality_background import Cells, upsampled
from benchmarks.quality_scene import CFA_DENSITY, Scene
from zemosaic_core.synthetic_sky import pixel_to_sky, sky_to_pixel
from zemosaic_io.glow_session import GlowNight

__all__ = ["count_outliers", "find_satellites", "worst_coverage"]

OUTLIER_SIGMA = 6.0
# Fewer values than this say nothing about ten in a million.
ENOUGH_VALUES = 100_000


def count_outliers(scene: Scene, cells: list[Cells]) -> tuple[dict[int, tuple[int, int]], list[float]]:
    """Pixels looked at and outliers per number of frames, and the noise over that of the best mean per channel."""
    counts: dict[int, tuple[int, int]] = {}
    ratios = []
    depth = np.rint(scene.coverage).astype(int)
    for channel in range(3):
        smooth = upsampled(cells[channel].residual, depth.shape)
        z = (scene.residual[channel] - smooth) / scene.noise[channel]
        use = scene.clean & np.isfinite(z)
        ratios.append(float(1.4826 * np.median(np.abs(z[use & (depth >= min(4, depth.max()))]))))
        for frames in np.unique(depth[use]):
            here = z[use & (depth == frames)]
            if frames < 1 or here.size < 200:
                continue
            sigma = 1.4826 * float(np.median(np.abs(here - np.median(here))))
            beyond = int((np.abs(here - np.median(here)) > OUTLIER_SIGMA * sigma).sum())
            looked, found = counts.get(int(frames), (0, 0))
            counts[int(frames)] = (looked + here.size, found + beyond)
    return counts, ratios


def worst_coverage(counts: dict[int, tuple[int, int]]) -> tuple[float, int]:
    """Return the most outliers per million at any number of frames, and the number; neighbours are pooled."""
    worst = (float("nan"), 0)
    looked = beyond = first = 0
    for frames in sorted(counts):
        first = first or frames
        looked, beyond = looked + counts[frames][0], beyond + counts[frames][1]
        if looked >= ENOUGH_VALUES:
            share = 1e6 * beyond / looked
            if not worst[0] >= share:
                worst = (share, first)
            looked = beyond = first = 0
    return worst


def find_satellites(scene: Scene, truth: GlowNight, cells: Cells) -> tuple[int, int, float]:
    """Trails that cross ground with 4 frames, those left over, and the brightest remainder in G, ADU."""
    depth = np.rint(scene.coverage).astype(int)
    good = scene.clean & np.isfinite(scene.image[1]) & (depth >= 4)
    residual = scene.residual[1] - upsampled(cells.residual, depth.shape)
    judged = left = 0
    worst = 0.0
    for frame in truth.frames:
        for trail in frame.setup.satellites:
            along = np.linspace(0.0, 1.0, 2 * int(np.hypot(trail.x1 - trail.x0, trail.y1 - trail.y0)))
            fx, fy = trail.x0 + along * (trail.x1 - trail.x0), trail.y0 + along * (trail.y1 - trail.y0)
            height, width = frame.setup.shape_hw
            inside = (fx >= 0) & (fx <= width - 1) & (fy >= 0) & (fy <= height - 1)
            x, y = sky_to_pixel(scene.cards, *pixel_to_sky(frame.setup.cards, fx[inside], fy[inside]))
            ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
            on = (ix >= 0) & (iy >= 0) & (ix < depth.shape[1]) & (iy < depth.shape[0])
            place = np.unique(np.c_[iy[on], ix[on]], axis=0)
            place = place[good[place[:, 0], place[:, 1]]]
            if len(place) < 60:
                continue
            judged += 1
            values = residual[place[:, 0], place[:, 1]]
            sigma = scene.noise[1][place[:, 0], place[:, 1]] / np.sqrt(CFA_DENSITY[1])
            mean = float(np.average(values, weights=sigma**-2))
            # Neighbouring pixels of a resampled image are alike: count one in three.
            error = float(1.0 / np.sqrt((sigma**-2.0).sum() / 3.0))
            if mean > 4.0 * error:
                left += 1
                worst = max(worst, mean)
    return judged, left, worst
