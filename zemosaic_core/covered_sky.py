"""Parts of frames where something stands before the sky: a tree, a roof, the edge of a dome. Arrays only.

Two things must come together in cells of the sky mesh: no star is seen of those that other frames show there, and the
level departs from what other frames show there. Nebulae, dark clouds and the Milky Way are common to all frames; under
moonlight, gradients and thin clouds stars are seen; where no other frame looks nothing is known. What stands still has
an edge, and clouds that move through an exposure have none: small parts are found by theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaic_core.normal_equations import factorise, unwhiten, whiten
from zemosaic_core.statistics import mad_sigma

__all__ = ["Sightings", "cell_spans", "covered_cells", "sightings"]

# Stars that a covered part hides at least: by chance none of three is missed together with a false level.
_MIN_HIDDEN = 3.0
# Of the stars that could be seen where it is most open a frame must show this share, or all of it is blurred.
_LEAST_RATE = 0.4
# A frame shows a star when it is so much brighter than its faintest ones.
_CLEARLY = 1.6
_FAINTEST_QUANTILE = 5.0
_DEPARTS_SIGMA = 5.0
# Levels of open cells agree to the noise of the cells and to this part of the sky.
_LEAST_PART = 0.004
# A part without a cell far from all stars has an edge: within two cells of open sky it departs so many times as much
# as noise lets a cell depart.
_EDGE_CELLS = 2
_ABRUPT = 3.0
_NO_SKY = np.float32(1.01)
# A cell without stars nearby belongs to a part when so much of it and its neighbours does.
_MOSTLY = 0.5
# At the border of a frame a level with an edge that is off by this part of the sky needs to hide one star only.
_STRONG_PART = 0.08
_LEAST_HIDDEN = 1.0
_SHIFTED = 0.25
_ROUNDS = 3
_MIN_OPEN = 8
_ABSOLUTE_ROUNDS = 8
# A term of a plane that the ones before it explain to this share is not told apart from them.
_LEAST_PIVOT = 1e-9
# Cells whose medians are found together.
_CELLS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Sightings:
    """Stars per cell of the mesh of each frame, both of shape (N, ny, nx).

    Attributes
    ----------
    seen : ndarray, int
        Stars that this frame and at least one other one show.
    expected : ndarray, float
        Stars that this frame would show there, going by the others.
    """

    seen: np.ndarray
    expected: np.ndarray


def sightings(
    frame: np.ndarray,
    star: np.ndarray,
    flux: np.ndarray,
    cell_of_detection: np.ndarray,
    cell_of_star: Callable[[int], np.ndarray],
    n_frames: int,
    n_cells: tuple[int, int],
) -> Sightings:
    """Count the stars that frames show, and those they should.

    Parameters
    ----------
    frame, star : ndarray, shape (K,), int
        Frame and star of each detection, in the order of frames; a star has at most one per frame.
    flux : ndarray, shape (K,)
        Light of the detection on the scale of all frames; NaN: unknown.
    cell_of_detection : ndarray, shape (K,), int
        Flat index of its cell in the mesh of its frame.
    cell_of_star : callable
        ``cell_of_star(i)``: flat index of the cell of frame i that each star falls on, shape (S,); -1: none.
    n_frames : int
    n_cells : tuple of int
        Rows and columns of the mesh.
    """
    n_stars, size = int(star.max(initial=-1)) + 1, n_cells[0] * n_cells[1]
    light, times_seen = _typical(star, flux, n_stars), np.bincount(star, minlength=n_stars)
    bounds = np.searchsorted(frame, np.arange(n_frames + 1))
    n_asked, n_shown = np.zeros(n_stars, np.int64), np.zeros(n_stars, np.int64)

    def asked_and_shown(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = slice(bounds[i], bounds[i + 1])
        known = flux[own][np.isfinite(flux[own])]
        limit = _CLEARLY * np.percentile(known, _FAINTEST_QUANTILE) if len(known) else np.inf
        cells = cell_of_star(i)
        asked = (cells >= 0) & (light >= limit)
        shown = np.zeros(n_stars, bool)
        shown[star[own]] = True
        return cells, asked, asked & shown

    for i in range(n_frames):
        _, asked, shown = asked_and_shown(i)
        n_asked += asked
        n_shown += shown
    expected = np.zeros((n_frames, size))
    for i in range(n_frames):
        cells, asked, shown = asked_and_shown(i)
        others = n_asked - asked
        rate = np.where(others > 0, (n_shown - shown) / np.maximum(others, 1), 0.0)
        np.add.at(expected[i], cells[asked], rate[asked])
    seen = np.zeros((n_frames, size), np.int32)
    common = times_seen[star] >= 2
    np.add.at(seen, (frame[common], cell_of_detection[common]), 1)
    return Sightings(seen.reshape(n_frames, *n_cells), expected.reshape(n_frames, *n_cells))


def _typical(star: np.ndarray, flux: np.ndarray, n_stars: int) -> np.ndarray:
    """Median light of each star; 0 where it is not known."""
    known = np.isfinite(flux)
    order = np.lexsort((flux[known], star[known]))
    stars, values = star[known][order], flux[known][order]
    first = np.searchsorted(stars, np.arange(n_stars))
    count = np.searchsorted(stars, np.arange(n_stars), side="right") - first
    middle = np.minimum(first + count // 2, max(len(values) - 1, 0))
    return np.where(count > 0, values[middle], 0.0) if len(values) else np.zeros(n_stars)


def covered_cells(
    mesh: np.ndarray,
    error: np.ndarray,
    gains: np.ndarray,
    centres: Callable[[int], np.ndarray],
    stars: Sightings,
) -> np.ndarray:
    """Find the cells of each frame where something stands before the sky.

    Parameters
    ----------
    mesh, error : ndarray, shape (N, C, ny, nx), float32
        Level of the sky of each cell and its error; NaN: unknown.
    gains : ndarray, shape (N, C), float64
        What brings them to the flux scale of all frames.
    centres : callable
        ``centres(i)``: centre of each cell of frame i, px of the mosaic, shape (ny, nx, 2).
    stars : Sightings

    Returns
    -------
    ndarray of bool, shape (N, ny, nx)
        The cells beside them, which may be covered in part, included.

    Notes
    -----
    Whatever is made for all cells of all frames at once decides how many frames memory holds: there are few of these.
    """
    from scipy import ndimage

    n_frames, n_channels, ny, nx = mesh.shape
    covered = np.zeros((n_frames, ny, nx), bool)
    place = _bins(centres, n_frames)
    # How far each cell departs, in what noise allows and in the sky of its frame, of the channels the most.
    excess, part = (np.zeros((n_frames, ny, nx), np.float32) for _ in range(2))
    known_to_others = np.zeros((n_frames, ny, nx), bool)
    open_cells = _seen_around(stars.seen) > 0
    for channel in range(n_channels):
        level = mesh[:, channel] * gains[:, channel, None, None]
        residual, several = _departures(level, place, open_cells, stars.seen > 0)
        known_to_others |= several
        for i in range(n_frames):
            good = _with_enough(stars.seen[i] > 0, open_cells[i], np.isfinite(residual[i]))
            spread = mad_sigma(residual[i][good]) if np.count_nonzero(good) >= _MIN_OPEN else np.inf
            sky = abs(float(np.nanmedian(level[i][good]))) if good.any() else np.inf
            own_error = np.nan_to_num(error[i, channel] * gains[i, channel])
            bound = _DEPARTS_SIGMA * np.hypot(max(spread, _LEAST_PART * sky), own_error)
            # Cells of two frames lie up to half their side beside each other, a quarter of what three in a row span.
            bound += _SHIFTED * _range_around(level[i] - residual[i])
            off = np.abs(np.nan_to_num(residual[i]))
            excess[i] = np.fmax(excess[i], off / bound)
            part[i] = np.fmax(part[i], off / max(sky, 1e-9))
            # A cell without any sky is one where others have some, but nothing is known of an edge.
            excess[i] = np.where(np.isnan(level[i]) & several[i], np.fmax(excess[i], _NO_SKY), excess[i])
    around = np.ones((3, 3), bool)
    for i in range(n_frames):
        departs = excess[i] > 1
        if not departs.any() or not _is_sharp(stars.seen[i], stars.expected[i]):
            continue
        starless = departs & (stars.seen[i] == 0) & known_to_others[i]
        core = _deep_parts(starless, open_cells[i], stars.expected[i])
        core |= _parts_with_edge(
            starless, ~departs & known_to_others[i], excess[i], part[i], stars.expected[i]
        )
        if core.any():
            # Out to where stars are seen; single cells whose level happens to be right lie within.
            within = ndimage.uniform_filter(core.astype(float), 3, mode="nearest") > _MOSTLY
            grown = core | (ndimage.binary_dilation(core, around) & starless) | (within & ~open_cells[i])
            covered[i] = ndimage.binary_dilation(grown, around)
    return covered


def _deep_parts(starless: np.ndarray, is_open: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Parts that hide stars and lie away from all that are seen, or hide many in one cell.

    Stars that were missed by chance lie among others.
    """
    from scipy import ndimage

    labels, n_parts = ndimage.label(starless & (~is_open | (expected >= _MIN_HIDDEN)))
    hidden = ndimage.sum_labels(expected, labels, np.arange(1, n_parts + 1))
    return np.isin(labels, np.flatnonzero(np.asarray(hidden) >= _MIN_HIDDEN) + 1)


def _parts_with_edge(
    starless: np.ndarray, calm: np.ndarray, excess: np.ndarray, part: np.ndarray, expected: np.ndarray
) -> np.ndarray:
    """Parts that hide stars and whose level begins within a cell or two."""
    from scipy import ndimage

    around = np.ones((3, 3), bool)
    labels, n_parts = ndimage.label(starless, around)
    beside = ndimage.binary_dilation(calm, np.ones((2 * _EDGE_CELLS + 1,) * 2, bool))
    inner = ndimage.binary_erosion(np.ones(starless.shape, bool))
    found = np.zeros(starless.shape, bool)
    for label in range(1, n_parts + 1):
        own = labels == label
        edge = own & beside
        if not edge.any() or np.median(excess[edge]) < _ABRUPT:
            continue
        is_strong = np.median(part[own]) >= _STRONG_PART and bool((own & ~inner).any())
        if expected[own].sum() >= (_LEAST_HIDDEN if is_strong else _MIN_HIDDEN):
            found |= own
    return found


def _with_enough(first: np.ndarray, second: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Cells of the first choice among the known ones, where these are enough; else of the second, else all."""
    for chosen in (first & known, second & known):
        if np.count_nonzero(chosen) >= _MIN_OPEN:
            return np.asarray(chosen)
    return known


def _range_around(sky: np.ndarray) -> np.ndarray:
    """Return the range of each cell and its eight neighbours; NaN counts as nothing."""
    from scipy import ndimage

    high = ndimage.maximum_filter(np.where(np.isnan(sky), -np.inf, sky), 3, mode="nearest")
    low = ndimage.minimum_filter(np.where(np.isnan(sky), np.inf, sky), 3, mode="nearest")
    return np.where(high >= low, high - low, 0.0)


def _seen_around(seen: np.ndarray) -> np.ndarray:
    """Stars seen in each cell and its neighbours."""
    padded = np.pad(seen, ((0, 0), (1, 1), (1, 1)))
    ny, nx = seen.shape[1:]
    total = np.zeros_like(seen)
    for j in range(3):
        for i in range(3):
            total += padded[:, j : j + ny, i : i + nx]
    return total


def _is_sharp(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a frame shows, where it shows most, the stars that it should."""
    from scipy import ndimage

    for window in (1, 3, 5, 9, 15):
        got = ndimage.uniform_filter(seen.astype(float), window, mode="constant")
        should = ndimage.uniform_filter(expected, window, mode="constant")
        enough = should * window**2 >= 2 * _MIN_HIDDEN
        if enough.any() and (got[enough] / should[enough]).max() >= _LEAST_RATE:
            return True
    return False


def _bins(centres: Callable[[int], np.ndarray], n_frames: int) -> np.ndarray:
    """Number of the place on the mosaic each cell falls on, places being as large as cells; (N, ny, nx) int32."""
    steps = np.concatenate(
        [np.linalg.norm(np.diff(centres(i), axis=1), axis=-1).ravel() for i in range(n_frames)]
    )
    spacing = max(float(np.nanmedian(steps)) if steps.size else 1.0, 1e-9)
    del steps

    def index(i: int) -> np.ndarray:
        return np.floor(np.nan_to_num(centres(i)) / spacing).astype(np.int64).reshape(-1, 2)

    corners = [(own.min(axis=0), own.max(axis=0)) for own in map(index, range(n_frames))]
    first = np.min([low for low, _ in corners], axis=0)
    n_columns = int(np.max([high[0] for _, high in corners])) - int(first[0]) + 1

    def flat(i: int) -> np.ndarray:
        own = index(i) - first
        return np.asarray(own[:, 1] * n_columns + own[:, 0])

    found = np.zeros(0, np.int64)
    for i in range(n_frames):
        found = np.union1d(found, flat(i))
    shape = centres(0).shape[:2]
    return np.stack(
        [np.searchsorted(found, flat(i)).reshape(shape).astype(np.int32) for i in range(n_frames)]
    )


def _departures(
    level: np.ndarray, place: np.ndarray, open_cells: np.ndarray, with_star: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each cell departs from the other frames there, a plane per frame allowed; and where there are any.

    Planes are those of cells in which stars are seen: what covers a part must not tilt the rest. Beside it there are
    some that it covers in part.
    """
    n_frames, ny, nx = level.shape
    y, x = np.mgrid[:ny, :nx]
    terms = np.stack([np.ones((ny, nx)), 2 * x / max(1, nx - 1) - 1, 2 * y / max(1, ny - 1) - 1], axis=-1)
    plane = np.zeros_like(level)
    for i in range(n_frames):
        usable = _with_enough(with_star[i], open_cells[i], np.isfinite(level[i]))
        plane[i] = np.median(level[i][usable]) if usable.any() else 0.0
    n_places = int(place.max()) + 1
    sky = np.zeros(n_places)
    for _ in range(_ROUNDS):
        sky = _median_per_place(level, plane, place, open_cells, n_places)
        for i in range(n_frames):
            wanted = level[i] - sky[place[i]]
            usable = _with_enough(with_star[i], open_cells[i], np.isfinite(wanted))
            if np.count_nonzero(usable) >= _MIN_OPEN:
                plane[i] = terms @ _robust_plane(terms[usable], wanted[usable], _MIN_OPEN)
    finite = np.isfinite(level)
    visitors = np.zeros(n_places, np.int64)
    for i in range(n_frames):
        visitors[np.unique(place[i][finite[i]])] += 1
    several = np.zeros(level.shape, bool)
    for i in range(n_frames):
        own = np.zeros(n_places, bool)
        own[place[i][finite[i]]] = True
        several[i] = visitors[place[i]] - own[place[i]] > 0
    residual = np.subtract(level, plane, out=plane)
    for i in range(n_frames):
        residual[i] -= sky[place[i]]
    return residual, several


def _median_per_place(
    level: np.ndarray, plane: np.ndarray, place: np.ndarray, open_cells: np.ndarray, n_places: int
) -> np.ndarray:
    """Median of level - plane over the cells on each place, open ones where there are any; NaN: nothing is known.

    So many places at a time that the cells on them are about `_CELLS_AT_ONCE`.
    """
    result = np.full(n_places, np.nan)
    count = np.zeros(n_places, np.int64)
    for own in place:
        count += np.bincount(own.ravel(), minlength=n_places)
    part = np.cumsum(count) // _CELLS_AT_ONCE
    ends = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), n_places]
    for first, end in itertools.pairwise(ends):
        here = np.isfinite(level) if end - first == n_places else _cells_between(level, place, first, end)
        where, found, is_open = place[here], level[here] - plane[here], open_cells[here]
        order = np.lexsort((found, where))
        for chosen in (order, order[is_open[order]]):
            # Where open cells are, they alone count.
            where_sorted, sorted_ = where[chosen], found[chosen]
            starts = np.flatnonzero(np.diff(where_sorted, prepend=-1))
            n = np.diff(starts, append=len(where_sorted))
            middle = 0.5 * (sorted_[starts + (n - 1) // 2] + sorted_[starts + n // 2])
            result[where_sorted[starts]] = middle
    return result


def _cells_between(level: np.ndarray, place: np.ndarray, first: int, end: int) -> np.ndarray:
    """Mask of the known cells on the places from ``first`` to before ``end``."""
    here = (place >= first) & (place < end)
    return np.logical_and(here, np.isfinite(level), out=here)


@njit(cache=True, nogil=True, error_model="numpy")
def _robust_plane(terms, wanted, least):
    """Fit values (K,) with three terms (K, 3); a term that the cells do not tell apart is 0.

    Sums of absolute differences first, which a tenth of the cells on one side cannot tilt, then least squares clipped.
    """
    n = len(wanted)
    weight, residual, found = np.ones(n), np.empty(n), np.zeros(3)
    for step in range(_ABSOLUTE_ROUNDS + 2):
        square, right = np.zeros((3, 3)), np.zeros(3)
        for k in range(n):
            if weight[k] > 0:
                for i in range(3):
                    right[i] += weight[k] * terms[k, i] * wanted[k]
                    for j in range(i + 1):
                        square[i, j] += weight[k] * terms[k, i] * terms[k, j]
        factorise(square, _LEAST_PIVOT)
        whiten(square, right)
        unwhiten(square, right)
        found = right
        for k in range(n):
            fit = found[0] * terms[k, 0] + found[1] * terms[k, 1] + found[2] * terms[k, 2]
            residual[k] = abs(wanted[k] - fit)
        middle = max(np.median(residual), 1e-6)
        if step < _ABSOLUTE_ROUNDS - 1:
            for k in range(n):
                weight[k] = middle / max(residual[k], 0.1 * middle)
            continue
        count = 0
        for k in range(n):
            weight[k] = 1.0 if residual[k] <= 3.0 * 1.4826 * middle else 0.0
            count += weight[k] > 0
        if count < least:
            break
    return found


def cell_spans(cells: np.ndarray, cell_px: int, shape_hw: tuple[int, int]) -> np.ndarray:
    """Return the pixels of mesh cells as spans ``(y, x0, x1)``, end exclusive, in the order of y.

    Parameters
    ----------
    cells : ndarray of bool, shape (ny, nx)
    cell_px : int
        Side of a cell; the last ones may be cut short.
    shape_hw : tuple of int
        Size of the frame.

    Returns
    -------
    ndarray, shape (k, 3), int32
    """
    height, width = shape_hw
    spans = []
    for row, line in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        runs = [(first * cell_px, min(width, end * cell_px)) for first, end in edges.reshape(-1, 2).tolist()]
        for y in range(row * cell_px, min(height, (row + 1) * cell_px)):
            spans += [(y, x0, x1) for x0, x1 in runs]
    return np.array(spans, np.int32).reshape(-1, 3)
