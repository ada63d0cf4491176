"""All that a run needs to know about the pixels of one raw frame, from two sweeps over them. Arrays only.

The first sweep counts histograms per cell and phase: sky, noise, meshes (`raw_sky`). The second finds single pixels
that lie (`raw_defects`), mends them in a copy, smooths it and lists its local maxima (`raw_maxima`). Everything up to
these lists is whole numbers, or single operations of IEEE arithmetic in a fixed order: another body, as on a graphics
card, can give the same bits. What follows looks at the listed places only (`raw_stars`, `star_choice`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from zemosaic_core.raw_defects import (
    ceilings,
    find_defects,
    joined_ceiling,
    mend_defects,
    saturation_levels,
)
from zemosaic_core.raw_maxima import RING_PX, WIDE_RING_PX, Maxima, find_maxima
from zemosaic_core.raw_sky import CELL_PX, SkyCells, sky_cells
from zemosaic_core.raw_stars import (
    Rows,
    Sharpness,
    aperture_radius_px,
    measure_rows,
    measure_sharpness,
    phase_fluxes,
)
from zemosaic_core.star_choice import (
    MOST_TRAILS_AMONG_STARS,
    TRAIL_STRETCH,
    choose_stars,
    not_single_pixels,
    star_sigma,
)
from zemosaic_core.stars import StarList
from zemosaic_core.streaks import find_streaks, on_streaks

__all__ = [
    "MEND_SIGMA",
    "RawMeasure",
    "RawSweeps",
    "measure_raw",
    "measure_swept",
    "phases_of_colours",
    "sweep_raw",
]

# Defects this significant are mended before stars are looked for.
MEND_SIGMA = 8.0
_FIRST_SIGMA_PX = 1.3
# Knots on a line that make stretched stars a trail.
_KNOTS = 20
# Stars wider than this reach into the ring that is called their surroundings: again with a wider one.
_WIDE_SIGMA_PX = 1.9
_WIDTH_FROM = 200
_COLOUR_APERTURE_FWHM = 1.5


@dataclass(frozen=True)
class RawMeasure:
    """What one look at the pixels of a raw frame tells. C is 3 (R, G, B) with a colour filter array, else 1.

    Attributes
    ----------
    stars : StarList
        Brightest first, frame px.
    n_found : int
        Stars found before the list was cut.
    channel_flux : ndarray, shape (C, n), float32
        Light of each star per channel, ADU, as if every pixel had the colour of the channel: frames with and without
        filters over their pixels are on one scale. NaN where it cannot be told.
    sky, noise : ndarray, shape (C,), float32
        Level of the sky and noise of one pixel in it, ADU. Gradients and nebulae are not in the noise.
    mesh, mesh_noise : ndarray, shape (C, ny, nx), float32
        Sky of each cell and the formal 1-sigma uncertainty of that level, ADU; NaN where too little is sky.
    defects : ndarray, shape (k,), int64
        Flat indices of single pixels that differ from their kin by more than 6 sigma, ascending.
    defect_sigma : ndarray, shape (k,), float32
        By how much; negative for those too dark.
    streaks : ndarray, shape (k, 5), float32
        Trails of satellites and aeroplanes, `streaks.STREAK_COLUMNS`.
    ceiling : ndarray, shape (C, 4), int64
        Evidence of saturation, see `raw_defects.ceilings`: the highest value shared by pixels side by side, pixels
        within 1/128 of it, those of them side by side, pixels in the next 1/128 below.
    """

    stars: StarList
    n_found: int
    channel_flux: np.ndarray
    sky: np.ndarray
    noise: np.ndarray
    mesh: np.ndarray
    mesh_noise: np.ndarray
    defects: np.ndarray
    defect_sigma: np.ndarray
    streaks: np.ndarray
    ceiling: np.ndarray


@dataclass(frozen=True)
class RawSweeps:
    """What the two sweeps over the pixels of a raw frame give, by whatever body.

    Attributes
    ----------
    plane : ndarray, shape (H, W), uint16
        The frame without its strong defects.
    cells : SkyCells
        Its sky.
    defects, defect_sigma : ndarray
        As in `RawMeasure`.
    evidence : ndarray, shape (4, 4), int64
        Of light that was cut off, see `raw_defects.ceilings`.
    find : callable
        ``find(ring_px) -> Maxima``: the maxima that stand out of a ring of `RING_PX` or `WIDE_RING_PX`.
    """

    plane: np.ndarray
    cells: SkyCells
    defects: np.ndarray
    defect_sigma: np.ndarray
    evidence: np.ndarray
    find: Callable[[int], Maxima]


def measure_raw(
    plane: np.ndarray,
    pattern: str | None,
    *,
    detect_sigma: float = 5.75,
    max_stars: int = 600,
    cell_px: int = CELL_PX,
    missing: np.ndarray | None = None,
    noise_factor: float = 1.0,
) -> RawMeasure:
    """Measure one raw frame; see `sweep_raw` for what is not explained here.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    pattern : str or None
        Colours of the 2 x 2 cell at pixel (0, 0), read row by row; None for a mono frame.
    detect_sigma, cell_px, missing, noise_factor
    max_stars : int
        Keep this many of the brightest.

    Returns
    -------
    RawMeasure

    Raises
    ------
    ValueError
        As `raw_sky.sky_cells`.
    """
    sweeps = sweep_raw(
        plane,
        pattern is not None,
        detect_sigma=detect_sigma,
        cell_px=cell_px,
        missing=missing,
        noise_factor=noise_factor,
    )
    return measure_swept(sweeps, pattern, max_stars=max_stars)


def sweep_raw(
    plane: np.ndarray,
    is_cfa: bool,
    *,
    detect_sigma: float = 5.75,
    cell_px: int = CELL_PX,
    missing: np.ndarray | None = None,
    noise_factor: float = 1.0,
) -> RawSweeps:
    """Do both sweeps on the processor; `zemosaic_core.gpu.measure` does them on a card.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels; only read.
    is_cfa : bool
        They lie behind a colour filter array.
    detect_sigma : float
        Least height of a star in the smoothed light, in units of its noise.
    cell_px : int
        Side of the cells of the meshes.
    missing : ndarray of bool, shape (H, W), optional
        Pixels that hold no measurement; they must be 0 in ``plane``.
    noise_factor : float
        By how much neighbouring pixels being alike lifts the noise of the smoothed light; 1 for a camera's pixels.

    Raises
    ------
    ValueError
        As `raw_sky.sky_cells`.
    """
    cells = sky_cells(plane, cell_px=cell_px, missing=missing)
    mended = plane.copy()
    if missing is not None:
        _fill(mended, missing, cells)
    defects, significance = find_defects(mended, cells)
    mend_defects(mended, defects[np.abs(significance) >= MEND_SIGMA])

    def find(ring_px: int) -> Maxima:
        return find_maxima(
            mended, cells, is_cfa, threshold_sigma=detect_sigma, noise_factor=noise_factor, ring_px=ring_px
        )

    return RawSweeps(mended, cells, defects, significance, ceilings(mended), find)


def measure_swept(sweeps: RawSweeps, pattern: str | None, *, max_stars: int = 600) -> RawMeasure:
    """Measure the places that the sweeps have listed; parameters as in `measure_raw`."""
    is_cfa, plane, cells = pattern is not None, sweeps.plane, sweeps.cells
    stars, streaks = _find_stars(sweeps, is_cfa)
    n_found = len(stars)
    stars = stars.select(slice(max_stars))
    scale = 2.0 if is_cfa else 1.0
    radius = max(2.0, _COLOUR_APERTURE_FWHM * (float(np.median(stars.fwhm_px)) if n_found else 3.0) / scale)
    colours = phases_of_colours(pattern)
    light = phase_fluxes(plane, is_cfa, stars.x, stars.y, radius, cells)
    frame_noise = cells.frame_noise()
    mesh = _mean_of_phases(cells.level, colours)
    return RawMeasure(
        stars=stars,
        n_found=n_found,
        # A phase has every fourth pixel of the light.
        channel_flux=4.0 * _mean_of_phases(light, colours) if is_cfa else light,
        sky=np.array([_central(level) for level in mesh], np.float32),
        noise=np.array([np.sqrt(np.mean(frame_noise[k] ** 2)) for k in colours], np.float32),
        mesh=mesh,
        mesh_noise=_error_of_mean(cells.error, colours),
        defects=sweeps.defects,
        defect_sigma=sweeps.defect_sigma,
        streaks=streaks,
        ceiling=np.stack([joined_ceiling(sweeps.evidence[k]) for k in colours]),
    )


def _find_stars(sweeps: RawSweeps, is_cfa: bool) -> tuple[StarList, np.ndarray]:
    """Stars of a frame without defects, brightest first; and its streaks."""
    plane = sweeps.plane
    sharpness_of = partial(
        measure_sharpness, plane, is_cfa, cells=sweeps.cells, saturation=saturation_levels(sweeps.evidence)
    )
    maxima = sweeps.find(RING_PX)
    sharpness = sharpness_of(maxima)
    sigma, widest = _learn_sigma(plane, is_cfa, maxima, sharpness, _FIRST_SIGMA_PX)
    # Surroundings that lie within a star make it look narrow in one round and wide in the next.
    if widest > _WIDE_SIGMA_PX:
        maxima = sweeps.find(WIDE_RING_PX)
        sharpness = sharpness_of(maxima)
        sigma, _ = _learn_sigma(plane, is_cfa, maxima, sharpness, widest)
    chosen, rows = _chosen(plane, is_cfa, maxima, sharpness, sigma)
    streaks = _streaks_of(plane, sweeps.cells, maxima, chosen, rows.elongation > TRAIL_STRETCH)
    on = on_streaks(streaks, maxima.x, maxima.y)
    if len(streaks) > MOST_TRAILS_AMONG_STARS:
        # So many trails pass for the stars themselves: what a star of this frame is is learned again beside them.
        maxima, sharpness = maxima.select(~on), sharpness.select(~on)
        sigma, _ = _learn_sigma(plane, is_cfa, maxima, sharpness, _FIRST_SIGMA_PX)
        chosen, rows = _chosen(plane, is_cfa, maxima, sharpness, sigma)
    else:
        chosen = chosen[~(on[chosen] & (rows.elongation[chosen] > TRAIL_STRETCH))]
    by_flux = chosen[np.argsort(-rows.flux[chosen], kind="stable")]
    return _star_list(rows, maxima.snr, sharpness.saturated, by_flux), streaks


def _streaks_of(
    plane: np.ndarray, cells: SkyCells, maxima: Maxima, chosen: np.ndarray, stretched: np.ndarray
) -> np.ndarray:
    """Return the streaks that maxima beside the stars lie on, and those that pass for stretched stars."""
    others = np.ones(len(maxima), bool)
    others[chosen] = False
    x, y, snr = maxima.x, maxima.y, maxima.snr
    streaks = find_streaks(plane, cells, x[others], y[others], snr[others])
    # Knots of a trail among many are hardly told from stars before the trail is known. Blends are stretched too, and
    # many in a crowded field: knots have to be clearly more on a line.
    left = (others | stretched) & ~on_streaks(streaks, x, y)
    more = find_streaks(plane, cells, x[left], y[left], snr[left], least_votes=_KNOTS)
    return np.concatenate([streaks, more])


def _chosen(
    plane: np.ndarray, is_cfa: bool, maxima: Maxima, sharpness: Sharpness, sigma: float
) -> tuple[np.ndarray, Rows]:
    """Return which maxima are stars (ascending), and measures of all of them in a window of width ``sigma``."""
    everything = np.arange(len(maxima))
    rows = measure_rows(plane, is_cfa, maxima, everything, sigma, aperture_radius_px(sigma))
    return choose_stars(rows, maxima.snr, sharpness, plane.shape), rows


def _learn_sigma(
    plane: np.ndarray, is_cfa: bool, maxima: Maxima, sharpness: Sharpness, sigma: float
) -> tuple[float, float]:
    """Width of the window that fits the stars of this frame, from a first guess, and the widest on the way."""
    snr = maxima.snr
    usable = np.flatnonzero(not_single_pixels(sharpness, snr) & ~sharpness.saturated)
    brightest = usable[np.argsort(-snr[usable], kind="stable")[:_WIDTH_FROM]]
    widest = sigma
    for _ in range(2):
        # Measure, then measure again with what was learned.
        rows = measure_rows(plane, is_cfa, maxima, brightest, sigma, 3.0)
        learned = star_sigma(rows, snr[brightest], sigma, plane.shape)
        if learned is None:
            break
        sigma = learned
        widest = max(widest, sigma)
    return sigma, widest


def _star_list(rows: Rows, snr: np.ndarray, saturated: np.ndarray, chosen: np.ndarray) -> StarList:
    small = [
        values[chosen].astype(np.float32)
        for values in (rows.flux, rows.peak, rows.fwhm_px, rows.elongation, snr)
    ]
    return StarList(rows.x[chosen], rows.y[chosen], *small, saturated=saturated[chosen])


def _fill(plane: np.ndarray, missing: np.ndarray, cells: SkyCells) -> None:
    """Put the sky where nothing was measured, so that no edge of it looks like a star."""
    y, x = np.nonzero(missing)
    sky = cells.sky[2 * (y % 2) + x % 2, y // cells.cell_px, x // cells.cell_px]
    plane[y, x] = np.where(np.isfinite(sky), sky, 0).astype(np.uint16)


def phases_of_colours(pattern: str | None) -> list[list[int]]:
    """Return which phases of the 2 x 2 cell make up each channel; one channel without a pattern."""
    if pattern is None:
        return [[0, 1, 2, 3]]
    return [[k for k in range(4) if pattern[k] == colour] for colour in "RGB"]


def _mean_of_phases(values: np.ndarray, colours: list[list[int]]) -> np.ndarray:
    """Means over the phases of each colour; NaN where one of them is."""
    return np.stack([values[k].mean(axis=0, dtype=np.float64) for k in colours]).astype(np.float32)


def _error_of_mean(errors: np.ndarray, colours: list[list[int]]) -> np.ndarray:
    squares = [(errors[k].astype(np.float64) ** 2).sum(axis=0) / len(k) ** 2 for k in colours]
    return np.sqrt(np.stack(squares)).astype(np.float32)


def _central(values: np.ndarray) -> float:
    """Mean of the central half; NaN without finite values."""
    values = np.sort(values[np.isfinite(values)])
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean(dtype=np.float64)) if values.size else float("nan")
