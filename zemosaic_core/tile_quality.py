"""A score for a stacked picture, and its parts: coverage, edges, noise, background, colour and stars. Arrays only.

0 is good. Parts and weights carry the names of ZeMosaic 4, so that thresholds of its users keep their meaning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from zemosaic_core.errors import SkipItem
from zemosaic_core.stars import detect_stars
from zemosaic_core.statistics import clipped_median_sigma, mad_sigma

__all__ = ["QualityOptions", "TileQuality", "accepts", "tile_quality"]

MOST_EDGE = 5.0
_PARTS = ("CC", "ED", "SC", "NBR", "BU", "SDED", "CEC", "CER")
# Share of the picture that an extended object fills, up to which these weights hold.
_WEIGHTS = (
    (0.20, (0.18, 0.12, 0.22, 0.10, 0.05, 0.12, 0.07, 0.14)),
    (0.50, (0.17, 0.13, 0.25, 0.11, 0.05, 0.09, 0.08, 0.12)),
    (1.01, (0.16, 0.14, 0.28, 0.12, 0.06, 0.00, 0.09, 0.15)),
)
_TRAILED = 0.25
_SMOOTH_PX = 12.0
_OBJECT_SIGMA = 8.0
_CELL_PX = 32


@dataclass(frozen=True)
class QualityOptions:
    """How a picture is measured.

    Attributes
    ----------
    edge_band_px : int
        Width of the border that is compared with the rest, px.
    k_sigma : float
        Pixels within so many sigma of the sky are sky.
    erode_px : int
        What is not sky grows by so much.
    protect_objects : bool
        What an extended object covers is not missing sky.
    """

    edge_band_px: int = 64
    k_sigma: float = 2.5
    erode_px: int = 3
    protect_objects: bool = True


@dataclass(frozen=True)
class TileQuality:
    """The parts and the score.

    Attributes
    ----------
    cc : float
        Share of the picture that is usable sky, 0 to 1; 1 is good.
    ed : float
        Largest difference of the sky of an edge from that of the middle, in the scatter of pixels, at most 5.
    sc : float
        Share of the worst of eight sectors of the border that is missing.
    nbr : float
        Share of the border that is missing.
    bu : float
        How uneven the background is: 0 even, towards 1 uneven.
    sded : float
        Share of the stars that the border lacks.
    cec : float
        Cast of the border against the middle, 0 to 1.
    eoc : float
        Share of the picture that an extended object fills.
    trl : float
        How trailed the stars are: 0 round, 1 lines.
    cer : float
        Share of the emptiest corner that is missing.
    score : float
        Weighted sum; 0 is good.
    """

    cc: float
    ed: float
    sc: float
    nbr: float
    bu: float
    sded: float
    cec: float
    eoc: float
    trl: float
    cer: float
    score: float

    def to_dict(self) -> dict[str, float]:
        """Return the parts under the names of ZeMosaic 4, and ``score``."""
        return {
            name if name == "score" else name.upper(): round(value, 6) for name, value in asdict(self).items()
        }


def accepts(quality: TileQuality | dict[str, Any], threshold: float, *, override: bool = True) -> bool:
    """Tell whether a picture passes: its score is small enough, or its parts speak for it all the same.

    Parameters
    ----------
    quality : TileQuality or dict
        Or what `TileQuality.to_dict` gives.
    threshold : float
        Highest score that passes.
    override : bool
        Let parts speak: much usable sky and full corners; nearly all of it and a full border; trailed but full.
    """
    parts = quality.to_dict() if isinstance(quality, TileQuality) else quality
    if parts["score"] <= threshold:
        return True
    if not override:
        return False
    return bool(
        (parts["CC"] >= 0.70 and parts["CER"] < 0.35 and parts["ED"] < 1.2)
        or (parts["CC"] >= 0.78 and parts["SC"] < 0.28 and parts["NBR"] < 0.10)
        or (parts["TRL"] > 0.30 and parts["CER"] < 0.40 and parts["SC"] < 0.40)
    )


def tile_quality(planes: np.ndarray, options: QualityOptions | None = None) -> TileQuality:
    """Measure a picture.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w)
        C is 1 or 3; NaN: missing.

    Raises
    ------
    ValueError
        It has another shape, or is smaller than 16 px.
    SkipItem
        ``frame_empty``: there is no picture in it.
    """
    options = options or QualityOptions()
    if planes.ndim != 3 or min(planes.shape[1:]) < 16:
        raise ValueError(f"a picture must be (C, h, w) of at least 16 px, got {planes.shape}")
    planes = np.asarray(planes, np.float32)
    valid = np.isfinite(planes).all(axis=0)
    if not valid.any():
        raise SkipItem("frame_empty", "the picture holds no value", value=float("nan"))
    height, width = valid.shape
    band = max(4, min(options.edge_band_px, height // 4, width // 4))
    light = np.where(valid, planes.mean(axis=0), np.nan)
    level, sigma = clipped_median_sigma(light[valid])
    sigma = max(float(sigma), 1e-9)
    extended = _extended(light, valid, float(level), sigma)
    sky = valid & (np.abs(np.nan_to_num(light, nan=level) - level) < options.k_sigma * sigma)
    if options.erode_px > 0:
        # Stars with their wings, not single pixels of noise.
        things = ndimage.binary_opening(~sky & valid, np.ones((2, 2), bool))
        sky = valid & ~ndimage.binary_dilation(things, iterations=options.erode_px)
    if options.protect_objects:
        sky &= ~extended
    room = (~extended).sum() if options.protect_objects else valid.size
    border = np.ones_like(valid)
    border[band:-band, band:-band] = False
    stars_deficit, trailed = _stars(light, valid, border)
    cc = float(sky.sum() / max(room, 1))
    parts = {
        "cc": cc,
        "ed": _edge_disparity(light, valid, band, sigma),
        "sc": _worst_sector(valid, border),
        "nbr": float(1 - valid[border].mean()),
        "bu": _unevenness(light, sky, sigma),
        "sded": stars_deficit,
        "cec": _cast(planes, valid, border, sigma),
        "cer": _emptiest_corner(valid, 2 * band),
    }
    eoc = float(extended.mean())
    return TileQuality(**parts, eoc=eoc, trl=trailed, score=_score(parts, eoc, trailed))


def _score(parts: dict[str, float], eoc: float, trailed: float) -> float:
    weights = dict(zip(_PARTS, next(w for limit, w in _WEIGHTS if eoc < limit), strict=True))
    if trailed > _TRAILED:
        weights["SDED"] *= 0.3
        weights["ED"] *= 0.7
    bad = {name: parts[name.lower()] for name in _PARTS}
    bad["CC"] = 1 - bad["CC"]
    bad["ED"] /= MOST_EDGE
    return float(sum(weights[name] * np.clip(bad[name], 0, 1) for name in _PARTS))


def _extended(light: np.ndarray, valid: np.ndarray, level: float, sigma: float) -> np.ndarray:
    """Mask of what is bright over more than stars are wide."""
    weight = ndimage.gaussian_filter(valid.astype(np.float32), _SMOOTH_PX)
    capped = np.clip(np.where(valid, light, level) - level, -_OBJECT_SIGMA * sigma, 2 * _OBJECT_SIGMA * sigma)
    smooth = ndimage.gaussian_filter(capped.astype(np.float32), _SMOOTH_PX) / np.maximum(weight, 0.05)
    found = valid & (smooth > 1.5 * sigma)
    return ndimage.binary_opening(found, iterations=int(_SMOOTH_PX / 2)) if found.any() else found


def _edges(shape: tuple[int, ...], band: int) -> list[tuple[slice, slice]]:
    every = slice(None)
    return [
        (slice(0, band), every),
        (slice(shape[0] - band, None), every),
        (every, slice(0, band)),
        (every, slice(shape[1] - band, None)),
    ]


def _edge_disparity(light: np.ndarray, valid: np.ndarray, band: int, sigma: float) -> float:
    """Compare medians: what an edge has too much of is no sky to a mask, and stars move no median."""
    inner = light[band:-band, band:-band][valid[band:-band, band:-band]]
    if inner.size < 16:
        return MOST_EDGE
    middle = float(np.median(inner))
    worst = 0.0
    for edge in _edges(light.shape, band):
        values = light[edge][valid[edge]]
        if values.size >= 16:
            worst = max(worst, abs(float(np.median(values)) - middle) / sigma)
    return min(worst, MOST_EDGE)


def _worst_sector(valid: np.ndarray, border: np.ndarray) -> float:
    height, width = valid.shape
    y, x = np.nonzero(border)
    angle = np.arctan2((y - (height - 1) / 2) / height, (x - (width - 1) / 2) / width)
    sector = np.minimum(((angle + np.pi) / (2 * np.pi) * 8).astype(np.int64), 7)
    known = np.bincount(sector, weights=valid[y, x], minlength=8)
    return float((1 - known / np.maximum(np.bincount(sector, minlength=8), 1)).max())


def _unevenness(light: np.ndarray, sky: np.ndarray, sigma: float) -> float:
    rows, columns = light.shape[0] // _CELL_PX, light.shape[1] // _CELL_PX
    if rows * columns < 4:
        return 0.0
    cut = np.where(sky, light, np.nan)[: rows * _CELL_PX, : columns * _CELL_PX]
    cells = cut.reshape(rows, _CELL_PX, columns, _CELL_PX).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    known = np.isfinite(cells).sum(axis=1) > 64
    if np.count_nonzero(known) < 4:
        return 0.0
    spread = mad_sigma(np.nanmedian(cells[known], axis=1)) / sigma
    return float(spread / (1 + spread))


def _cast(planes: np.ndarray, valid: np.ndarray, border: np.ndarray, sigma: float) -> float:
    edge, inner = valid & border, valid & ~border
    if len(planes) != 3 or min(edge.sum(), inner.sum()) < 64:
        return 0.0
    at_edge, inside = (np.median(planes[:, mask], axis=1) for mask in (edge, inner))
    change = at_edge - inside
    return float(
        np.clip(max(abs(change[0] - change[1]), abs(change[2] - change[1])) / sigma / MOST_EDGE, 0, 1)
    )


def _stars(light: np.ndarray, valid: np.ndarray, border: np.ndarray) -> tuple[float, float]:
    """Return the share of stars that the border lacks, and how trailed they are."""
    try:
        found = detect_stars(light.astype(np.float32))
    except SkipItem:
        return 0.0, 0.0
    if len(found) < 10:
        return 0.0, 0.0
    y = np.clip(np.rint(found.y).astype(np.int64), 0, light.shape[0] - 1)
    x = np.clip(np.rint(found.x).astype(np.int64), 0, light.shape[1] - 1)
    at_edge = border[y, x]
    area_edge, area_inner = max((valid & border).sum(), 1), max((valid & ~border).sum(), 1)
    dense_edge, dense_inner = at_edge.sum() / area_edge, (~at_edge).sum() / area_inner
    lack = 1 - dense_edge / dense_inner if dense_inner > 0 else 0.0
    # Few stars scatter; a lack that chance explains is none.
    expected = dense_inner * area_edge
    certain = (
        np.clip((expected - at_edge.sum()) / max(3 * np.sqrt(expected), 1e-9), 0, 1) if expected > 0 else 0.0
    )
    trailed = 1 - 1 / max(1.0, float(np.nanmedian(found.elongation)))
    return float(np.clip(lack, 0, 1) * certain), float(np.clip(trailed, 0, 1))


def _emptiest_corner(valid: np.ndarray, side: int) -> float:
    height, width = valid.shape
    side = min(side, height // 2, width // 2)
    corners = [valid[:side, :side], valid[:side, -side:], valid[-side:, :side], valid[-side:, -side:]]
    return float(max(1 - corner.mean() for corner in corners))
