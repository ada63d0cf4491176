"""What a mosaic of a route is like: beside that of the route direct, and beside the truth of a made-up night."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from benchmarks.quality_judge import judge_scene
from benchmarks.quality_scene import load_scene
from zemosaic_io.glow_session import GlowNight

__all__ = ["Mosaic", "against_truth", "compared", "difference_of_bodies"]

BLOCK_PX = 64
APERTURE_PX, SKY_PX = 6.0, (9.0, 14.0)
# Beyond this, in units of the noise of both, a pixel differs; away from what stars leave.
OUTLIER_SIGMA = 6.0
STAR_SIGMA, STAR_REACH_PX = 5.0, 4


class Mosaic:
    """A finished mosaic: its green or only plane, and what the report says."""

    def __init__(self, folder: Path) -> None:
        self.report = json.loads((folder / "run_report.json").read_text(encoding="utf-8"))
        with fits.open(self.report["outputs"]["science"]) as hdus:
            planes = hdus[0].data.astype(np.float32)
            self.wcs = WCS(hdus[0].header).celestial
        self.bits = planes.tobytes()
        self.image = np.ascontiguousarray(planes[len(planes) // 2] if planes.ndim == 3 else planes)
        variance = np.asarray(fits.getdata(self.report["outputs"]["variance"]))
        variance = variance[len(variance) // 2] if variance.ndim == 3 else variance
        self.sigma = np.sqrt(variance, dtype=np.float32)
        self.noise = float(np.nanmedian(self.sigma))

    @property
    def science(self) -> Path:
        """Path of the science file."""
        return Path(self.report["outputs"]["science"])

    def on(self, other: Mosaic, plane: np.ndarray) -> np.ndarray:
        """Return a plane of this mosaic on the pixels of another of the same lattice; NaN beside it."""
        dx, dy = np.rint(self.wcs.wcs.crpix - other.wcs.wcs.crpix).astype(int)
        height, width = other.image.shape
        out = np.full((height, width), np.nan, np.float32)
        y, x = np.arange(height) + dy, np.arange(width) + dx
        rows, columns = (y >= 0) & (y < plane.shape[0]), (x >= 0) & (x < plane.shape[1])
        out[np.ix_(rows, columns)] = plane[np.ix_(y[rows], x[columns])]
        return out


def _fluxes(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mask = ~np.isfinite(image)
    filled = np.ascontiguousarray(np.where(mask, 0, image), np.float32)
    flux, _, flag = sep.sum_circle(filled, x, y, APERTURE_PX, mask=mask, bkgann=SKY_PX)
    return np.where(flag == 0, flux, np.nan)


def compared(mosaic: Mosaic, direct: Mosaic) -> dict[str, float]:
    """Return how levels, fluxes of stars and single pixels differ from those of the route direct."""
    image, sigma = mosaic.on(direct, mosaic.image), mosaic.on(direct, mosaic.sigma)
    difference = image - direct.image
    height, width = (side // BLOCK_PX * BLOCK_PX for side in difference.shape)
    cells = difference[:height, :width].reshape(height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    whole = np.isfinite(cells).mean(axis=(1, 3)) > 0.9
    with np.errstate(all="ignore"):
        medians = np.nanmedian(cells, axis=(1, 3))[whole]
    sky = float(np.nanmedian(direct.image))
    found = sep.extract(np.nan_to_num(direct.image - sky), 30.0, err=direct.noise, minarea=5)
    bright = found[np.argsort(-found["flux"])][20:220]
    ratio = _fluxes(image, bright["x"], bright["y"]) / _fluxes(direct.image, bright["x"], bright["y"])
    ratio = ratio[np.isfinite(ratio)]
    spread = 1.4826 * np.median(np.abs(ratio - np.median(ratio))) if len(ratio) else np.nan
    # What differs at stars is how sharp they are, which is no outlier.
    away = np.isfinite(difference) & ~ndimage.binary_dilation(
        np.nan_to_num(direct.image - sky) > STAR_SIGMA * direct.noise, iterations=STAR_REACH_PX
    )
    beyond = np.abs(difference - np.median(difference[away])) > OUTLIER_SIGMA * np.hypot(sigma, direct.sigma)
    return {
        "levels_adu": float(np.std(medians)) if len(medians) else np.nan,
        "flux_percent": 100 * (float(np.median(ratio)) - 1) if len(ratio) else np.nan,
        "flux_scatter_percent": 100 * float(spread),
        "differing_ppm": 1e6 * float(beyond[away].mean()),
    }


def against_truth(mosaic: Mosaic, night: GlowNight) -> dict[str, Any]:
    """Return what the judge of made-up nights finds, green where it looks at three channels."""
    found = judge_scene(load_scene(mosaic.science, night), night)
    return {
        "sky_truth_adu": found.bg_rms_adu[1],
        "seam_worst_adu": found.seam_worst_adu,
        "flux_noise": found.flux_scatter[1],
        "panel_spread_percent": found.panel_spread_pct,
        "noise_of_best": found.noise_ratio[1],
        "outliers_ppm": found.outliers_ppm,
        "trails": f"{found.satellites_left} of {found.satellites}",
    }


def difference_of_bodies(card: Mosaic, processor: Mosaic) -> dict[str, Any]:
    """Return how much of a run was computed on the card, and how far its pixels are from the processor's."""
    away = np.abs(card.image - processor.image)
    share = card.report["gpu"]["gpu_share"]
    return {
        "card_share": float(share),
        "card_difference": float(np.nanpercentile(away, 99.9)) / processor.noise,
        "card_same_missing": bool((np.isnan(card.image) == np.isnan(processor.image)).all()),
    }
