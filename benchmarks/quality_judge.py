"""Judges a finished mosaic of a made-up night against its truth, by its files alone.

    from benchmarks.quality_judge import judge
    from zemosaic_io.glow_session import NightSpec, write_glow_night      # or plan_glow_night: same truth, no files

    truth = write_glow_night(folder, NightSpec())
    found = judge(path_of_science_fits, truth)
    found["bg_rms_adu"]     # background residual in ADU rms, per channel (R, G, B); see `Verdict` for the rest

Every value is on the mosaic's own flux scale divided by the factor that its stars show, so a mosaic whose unit is
another is judged alike. The coverage map is ``<stem>_coverage.fits`` beside the mosaic; without it (mosaics of other
programs) the number of frames follows from the truth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality_background import measure_cells
from benchmarks.quality_pixels import count_outliers, find_satellites, worst_coverage
from benchmarks.quality_scene import Scene, Stars, load_scene, panel_spread
from benchmarks.quality_seams import measure_seams
from zemosaic_io.glow_session import GlowNight

__all__ = ["Verdict", "judge", "judge_scene", "vignetting_error"]


@dataclass(frozen=True)
class Verdict:
    """What `judge` measures; lists of three are R, G, B.

    Attributes
    ----------
    bg_rms_adu : list of float
        Residual of the sky in cells of 64 px, after one constant per channel.
    bg_rms_after_plane_adu : list of float
        The same after one plane.
    bg_p5_p95_adu : list of float
        Distance of the 5th and 95th percentile of those cells.
    slope : list of float
        Slope of diffuse light against truth; NaN where the truth has less than 20 ADU of it.
    large_scales_adu : list of list of float
        Quadric through the residual of each channel, cells counting as much as frames cover them: x, y, x^2, xy, y^2
        with x and y in [-1, 1] over the longer side.
    seam_rms_adu, seam_noise_adu : float
        Steps across the outlines of panels or frames in G, per 64 px of outline, and what noise alone would give.
    seam_worst_adu, seam_worst_sigma : float
        Largest mean step along one whole side, and in units of its noise.
    seam_sides : int
        Sides compared.
    panel_spread_pct, panel_spread_noise_pct : float
        Scatter of the fluxes of stars from panel to panel (walks: ninths of the mosaic) in G, and of noise alone.
    flux_scatter : list of float
        Scatter of fluxes in units of photon and sky noise; 1 is perfect.
    n_stars : int
        Stars measured in G.
    outliers_ppm : float
        Pixels beyond 6 sigma, away from stars, where at least 4 frames overlap, per million, all channels.
    outliers_ppm_worst, outliers_worst_coverage : float, int
        The most per million at any number of frames from 4 on; neighbours are pooled until they hold 100,000 values.
    outliers_by_coverage : dict
        Frames -> (pixels looked at, outliers), from 1 on.
    satellites, satellites_left, satellite_worst_adu : int, int, float
        Trails in the frames where at least 4 frames overlap, those seen in the mosaic, and the brightest in G.
    noise_ratio : list of float
        Pixel noise of the mosaic divided by that of the best possible mean.
    flux_scale : list of float
        Flux of the mosaic's stars per true flux at the zenith.
    """

    bg_rms_adu: list[float]
    bg_rms_after_plane_adu: list[float]
    bg_p5_p95_adu: list[float]
    slope: list[float]
    large_scales_adu: list[list[float]]
    seam_rms_adu: float
    seam_noise_adu: float
    seam_worst_adu: float
    seam_worst_sigma: float
    seam_sides: int
    panel_spread_pct: float
    panel_spread_noise_pct: float
    flux_scatter: list[float]
    n_stars: int
    outliers_ppm: float
    outliers_ppm_worst: float
    outliers_worst_coverage: int
    outliers_by_coverage: dict[int, tuple[int, int]]
    satellites: int
    satellites_left: int
    satellite_worst_adu: float
    noise_ratio: list[float]
    flux_scale: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return asdict(self)


def judge(mosaic_path: Path | str, truth: GlowNight) -> dict[str, Any]:
    """Compare a science mosaic with the truth of its night; the keys are the attributes of `Verdict`."""
    return judge_scene(load_scene(mosaic_path, truth), truth).as_dict()


def judge_scene(scene: Scene, truth: GlowNight) -> Verdict:
    """Measure everything about a mosaic that has been read."""
    cells = [measure_cells(scene, channel) for channel in range(3)]
    stars = [Stars.measured(scene, truth, channel) for channel in range(3)]
    seam = measure_seams(scene, truth)
    spread = panel_spread(stars[1], truth)
    outliers, ratio = count_outliers(scene, cells)
    deep = {frames: counts for frames, counts in outliers.items() if frames >= 4}
    looked, beyond = (sum(counts[k] for counts in deep.values()) for k in (0, 1))
    worst = worst_coverage(deep)
    trails = find_satellites(scene, truth, cells[1])
    return Verdict(
        bg_rms_adu=[c.rms() for c in cells],
        bg_rms_after_plane_adu=[c.rms_after_plane() for c in cells],
        bg_p5_p95_adu=[c.spread() for c in cells],
        slope=[c.slope() for c in cells],
        large_scales_adu=[c.large_scales() for c in cells],
        seam_rms_adu=seam[0],
        seam_noise_adu=seam[1],
        seam_worst_adu=seam[2],
        seam_worst_sigma=seam[3],
        seam_sides=seam[4],
        panel_spread_pct=spread[0],
        panel_spread_noise_pct=spread[1],
        flux_scatter=[s.scatter() for s in stars],
        n_stars=len(stars[1].ratio),
        outliers_ppm=1e6 * beyond / looked if looked else float("nan"),
        outliers_ppm_worst=worst[0],
        outliers_worst_coverage=worst[1],
        outliers_by_coverage=outliers,
        satellites=trails[0],
        satellites_left=trails[1],
        satellite_worst_adu=trails[2],
        noise_ratio=ratio,
        flux_scale=list(scene.scale),
    )


def vignetting_error(truth: GlowNight, coefficients: tuple[float, float]) -> dict[str, float]:
    """Compare a radial flat ``ln V = a r^2 + b r^4`` (r = 1 in the corners) with the truth.

    Returns
    -------
    dict
        ``rms_pct`` and ``max_pct`` over the detector, with the mean of the ratio divided out, and what no flat at all
        would leave (``without_rms_pct``).
    """
    height, width = truth.spec.shape_hw
    y, x = np.mgrid[0:height:4, 0:width:4]
    radius2 = ((2 * y - height + 1) ** 2 + (2 * x - width + 1) ** 2) / float(height**2 + width**2)
    flat = truth.flat()[::4, ::4].astype(np.float64)
    ratio = np.exp(coefficients[0] * radius2 + coefficients[1] * radius2**2) / flat
    ratio = 100.0 * (ratio / ratio.mean() - 1.0)
    return {
        "rms_pct": float(np.sqrt((ratio**2).mean())),
        "max_pct": float(np.abs(ratio).max()),
        "without_rms_pct": float(100.0 * flat.std() / flat.mean()),
    }
