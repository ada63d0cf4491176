"""Stars of one image: where they are, how bright, how sharp.

Arrays only. Detection is done by sep on an image smoothed like a star; positions, widths and fluxes are
measured on the image itself with Gaussian windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import sep
from numba import njit

from zemosaic_core.apertures import aperture_fluxes
from zemosaic_core.background import expand_mesh_row, sky_and_noise_mesh, sky_statistics
from zemosaic_core.errors import SkipItem
from zemosaic_core.statistics import mad_sigma

__all__ = ["StarList", "aperture_fluxes", "detect_stars"]

_MESH_PX = 64
_FWHM_TO_SIGMA = 0.42466
# sep stops with an error beyond these; a bright nebula with a noisy rim needs more than its own defaults.
_PIXEL_STACK = 1_000_000
_SUB_OBJECTS = 8192
_BORDER_PX = 4
# Mean at 2 to 3 px over the peak: a hot pixel (2 x 2 px in a luminance) has nothing there but noise, the
# sharpest star that a colour camera can measure (FWHM 2 px) has 0.06.
_HOT_RING = 0.035


@dataclass(frozen=True)
class StarList:
    """Stars of one image, brightest first.

    Attributes
    ----------
    x, y : ndarray, shape (n,), float64
        Centres in px, origin 0 at the centre of the first pixel, plus the offset asked for.
    flux : ndarray, shape (n,), float32
        Sum over an aperture of radius 1.7 times the typical FWHM (at least 3 px), background removed.
    peak : ndarray, shape (n,), float32
        Highest pixel above the background.
    fwhm_px : ndarray, shape (n,), float32
        Full width at half maximum of the Gaussian with the same windowed second moments.
    elongation : ndarray, shape (n,), float32
        Major over minor axis, >= 1.
    snr : ndarray, shape (n,), float32
        Peak of the smoothed image over its noise.
    saturated : ndarray, shape (n,), bool
        The peak reached the saturation level given; the flux is then too small.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    peak: np.ndarray
    fwhm_px: np.ndarray
    elongation: np.ndarray
    snr: np.ndarray
    saturated: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if self.saturated.size != self.x.size:
            object.__setattr__(self, "saturated", np.zeros(self.x.size, dtype=bool))

    def __len__(self) -> int:
        return int(self.x.size)

    def select(self, index: np.ndarray | slice) -> StarList:
        """Return the stars chosen by a mask, index array or slice."""
        return StarList(*(getattr(self, name)[index] for name in _FIELDS))


_FIELDS = ("x", "y", "flux", "peak", "fwhm_px", "elongation", "snr", "saturated")


def detect_stars(
    image: np.ndarray,
    *,
    threshold_sigma: float = 5.0,
    max_stars: int = 600,
    saturation: float | None = None,
    offset: tuple[float, float] = (0.0, 0.0),
    hot_pixels: bool = True,
) -> StarList:
    """Find and measure the stars of an image.

    Hot pixels (sharper than any star of this image), satellite trails (far more elongated than its stars),
    galaxy cores (far wider) and objects at the border are left out. When the whole image is trailed, its
    stars are all elongated alike and stay in the list, so that the image can be judged.

    Parameters
    ----------
    image : ndarray, shape (h, w), float32
        Luminance; NaN means missing.
    threshold_sigma : float
        Detection limit in sigma of the smoothed image.
    max_stars : int
        Keep this many of the brightest.
    saturation : float, optional
        Pixel level (of ``image``, background included) from which a star counts as saturated.
    offset : tuple of float
        Added to (x, y).
    hot_pixels : bool
        The image may hold hot pixels of a sensor. In one that has none, such as a stack, stars may be as sharp as they.

    Returns
    -------
    StarList
        Sorted by flux, brightest first; may be empty.

    Raises
    ------
    SkipItem
        When the image cannot be searched (no finite pixel, or structure everywhere).
    """
    image = np.ascontiguousarray(image, dtype=np.float32)
    clean, noise = _subtract_background(image)
    smooth = _smooth_over_noise(clean, noise, _MESH_PX)
    noise_ratio = _noise_ratio(smooth, clean, noise)
    candidates = _extract(smooth, threshold_sigma * noise_ratio)
    del smooth
    if candidates.size == 0:
        return _empty()
    x, y = candidates["x"].astype(np.float64), candidates["y"].astype(np.float64)
    sigma = _first_width(candidates)
    ring = _HOT_RING if hot_pixels else -np.inf
    for _ in range(2):
        # The window should fit the stars of this image: measure, then measure again with what was learned.
        rows = _measure(clean, x, y, sigma, max(3.0, 1.7 * sigma / _FWHM_TO_SIGMA))
        good = (rows[:, 7] > 0) & (rows[:, 6] > ring)
        if not good.any():
            return _empty()
        sigma = float(np.clip(_typical(rows[good, 4], rows[good, 2]) * _FWHM_TO_SIGMA, 0.7, 6.0))
    snr = candidates["peak"] / noise_ratio
    sharpness = candidates["peak"] * _at(noise, x, y) / np.maximum(rows[:, 3], 1e-6)
    keep = _is_star(rows, snr, sharpness, image.shape, ring)
    rows, snr = rows[keep], snr[keep]
    order = np.argsort(-rows[:, 2], kind="stable")[:max_stars]
    return _to_star_list(rows[order], snr[order], image, saturation, offset)


def _empty() -> StarList:
    none = np.zeros(0, dtype=np.float32)
    return StarList(np.zeros(0), np.zeros(0), none, none, none, none, none)


def _subtract_background(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the image above its sky and the mesh of its noise."""
    sky, noise = sky_and_noise_mesh(image, _MESH_PX)
    if not np.isfinite(sky).any():
        if not np.isfinite(image).any():
            raise SkipItem("stars_no_pixels", "the image has no finite pixel to look for stars in")
        # Hardly any cell is covered, but there are pixels: one sky for all.
        level, sigma = sky_statistics(image)
        sky, noise = np.full_like(sky, level), np.full_like(noise, sigma)
    typical = float(np.median(noise))
    noise = np.maximum(noise, np.float32(1e-3 * max(typical, 1e-6)))
    clean = np.empty_like(image)
    _subtract_mesh(image, sky, _MESH_PX, clean)
    return clean, noise


def _at(mesh: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of a mesh at positions, interpolated as `expand_mesh_row` does."""
    result = np.empty(x.size)
    _mesh_at(mesh, _MESH_PX, x, y, result)
    return result


def _noise_ratio(smooth: np.ndarray, clean: np.ndarray, noise: np.ndarray) -> float:
    """How much noise smoothing leaves; measured, because the noise of a luminance is correlated."""
    rows, columns = np.arange(7, clean.shape[0], 5), np.arange(3, clean.shape[1], 7)
    y, x = np.meshgrid(rows.astype(np.float64), columns.astype(np.float64), indexing="ij")
    before = mad_sigma(clean[7::5, 3::7] / _at(noise, x.ravel(), y.ravel()).reshape(y.shape))
    left = mad_sigma(smooth[7::5, 3::7])
    return left / before if before > 0 and left > 0 else 1.0


def _extract(smooth: np.ndarray, threshold: float) -> np.ndarray:
    sep.set_extract_pixstack(_PIXEL_STACK)
    sep.set_sub_object_limit(_SUB_OBJECTS)
    try:
        found = sep.extract(smooth, threshold, minarea=3, filter_kernel=None, deblend_cont=0.005)
    except Exception as error:  # sep raises the base class for full buffers
        raise SkipItem(
            "stars_structure_everywhere",
            f"star detection gave up, the image is full of structure: {error}",
            reason=str(error),
        ) from error
    return found


def _first_width(candidates: np.ndarray) -> float:
    """Sigma of a typical star from the moments sep measured on the smoothed image."""
    bright = candidates[np.argsort(-candidates["flux"])[:200]]
    width = np.sqrt(np.maximum(bright["a"] * bright["b"], 0.25))
    return float(np.clip(_densest(width), 0.8, 4.0))


def _typical(values: np.ndarray, flux: np.ndarray) -> float:
    """Most common value among the brighter two thirds, whose values are not noise."""
    return _densest(values[flux >= np.percentile(flux, 33.0)])


def _densest(values: np.ndarray) -> float:
    """Median of the shortest interval that holds 30 % of the values.

    Stars all have the same width, the knots of a galaxy have any width: where a galaxy fills the frame the
    plain median is a knot.
    """
    values = np.sort(values)
    count = max(3, int(np.ceil(0.3 * values.size)))
    if values.size <= count:
        return float(np.median(values))
    start = int(np.argmin(values[count - 1 :] - values[: values.size - count + 1]))
    return float(np.median(values[start : start + count]))


def _is_star(
    rows: np.ndarray, snr: np.ndarray, sharpness: np.ndarray, shape_hw: tuple[int, int], least_ring: float
) -> np.ndarray:
    """Tell stars from hot pixels, trails, galaxy cores and what touches the border; a mask of rows."""
    x, y, flux, _peak, fwhm, elongation, ring, valid = rows.T
    height, width = shape_hw
    good = (valid > 0) & (flux > 0)
    good &= (x >= _BORDER_PX) & (x <= width - 1 - _BORDER_PX)
    good &= (y >= _BORDER_PX) & (y <= height - 1 - _BORDER_PX)
    if not good.any():
        return good
    good &= ring > least_ring
    if not good.any():
        return good
    typical_fwhm = _typical(fwhm[good], flux[good])
    typical_elongation = _typical(elongation[good], flux[good])
    # Smoothing takes more from the peak of a hot pixel than from a star's; noise lifts the highest pixel.
    good &= sharpness > (0.75 - 0.5 / np.maximum(snr, 5.0)) * _smoothed_peak(typical_fwhm)
    # Faint stars scatter more; allow them that.
    slack = 1.0 + 1.5 / np.maximum(snr, 5.0)
    good &= (fwhm > 0.52 * typical_fwhm) & (fwhm < 1.6 * typical_fwhm * slack)
    good &= elongation < np.maximum(2.0, 1.8 * typical_elongation) * slack
    return good


def _smoothed_peak(fwhm: float) -> float:
    """What `_smooth_over_noise` leaves of the peak of a Gaussian star."""
    near, far = np.exp(-0.5 * (np.array([1.0, 2.0]) / (fwhm * _FWHM_TO_SIGMA)) ** 2)
    return float(((4.0 + 6.0 * near + 2.0 * far) / 12.0) ** 2)


def _to_star_list(rows, snr, image, saturation, offset) -> StarList:
    saturated = np.zeros(len(rows), dtype=bool)
    if saturation is not None and len(rows):
        saturated = _local_maximum(image, rows[:, 0], rows[:, 1]) >= saturation
    return StarList(
        x=rows[:, 0] + offset[0],
        y=rows[:, 1] + offset[1],
        flux=rows[:, 2].astype(np.float32),
        peak=rows[:, 3].astype(np.float32),
        fwhm_px=rows[:, 4].astype(np.float32),
        elongation=rows[:, 5].astype(np.float32),
        snr=snr.astype(np.float32),
        saturated=saturated,
    )


def _local_maximum(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height, width = image.shape
    row, column = _nearest(y, height), _nearest(x, width)
    best = np.full(x.size, -np.inf)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            best = np.fmax(best, image[np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)])
    return best


def _nearest(values: np.ndarray, size: int) -> np.ndarray:
    return np.clip(np.floor(values + 0.5).astype(np.int64), 0, size - 1)


@njit(cache=True, nogil=True)
def _subtract_mesh(image, mesh, cell, result):
    height, width = image.shape
    row = np.empty(width, dtype=np.float32)
    for y in range(height):
        expand_mesh_row(mesh, cell, y, row)
        for x in range(width):
            result[y, x] = image[y, x] - row[x]


@njit(cache=True, nogil=True)
def _mesh_at(mesh, cell, xs, ys, result):
    rows, columns = mesh.shape
    for k in range(xs.size):
        u, v = (xs[k] + 0.5) / cell - 0.5, (ys[k] + 0.5) / cell - 0.5
        i = min(max(int(np.floor(u)), 0), max(columns - 2, 0))
        j = min(max(int(np.floor(v)), 0), max(rows - 2, 0))
        right, below = min(i + 1, columns - 1), min(j + 1, rows - 1)
        a = mesh[j, i] + (v - j) * (mesh[below, i] - mesh[j, i])
        b = mesh[j, right] + (v - j) * (mesh[below, right] - mesh[j, right])
        result[k] = max(a + (u - i) * (b - a), 0.1 * mesh[j, i])


@njit(cache=True, nogil=True)
def _smooth_line(row, result):
    """(1 3 4 3 1) / 12 along a row; its two outermost pixels stay."""
    width = row.size
    twelfth = np.float32(1.0 / 12.0)
    three, four = np.float32(3.0), np.float32(4.0)
    for x in range(min(2, width)):
        result[x] = row[x]
    for x in range(max(0, width - 2), width):
        result[x] = row[x]
    for x in range(2, width - 2):
        value = row[x - 2] + row[x + 2]
        value += three * (row[x - 1] + row[x + 1]) + four * row[x]
        result[x] = value * twelfth


@njit(cache=True, nogil=True)
def _smooth_over_noise(image, noise, cell):
    """Smooth by (1 3 4 3 1) / 12 both ways, close to a star of 3 px FWHM, and divide by the noise.

    0 around missing pixels, where nothing can be found.
    """
    height, width = image.shape
    result = np.empty((height, width), dtype=np.float32)
    # Of the rows smoothed along x only the five that the next one needs are kept.
    lines = np.empty((5, width), dtype=np.float32)
    sigma = np.empty(width, dtype=np.float32)
    twelfth = np.float32(1.0 / 12.0)
    three, four = np.float32(3.0), np.float32(4.0)
    for y in range(min(2, height)):
        _smooth_line(image[y], lines[y])
    for y in range(height):
        if y + 2 < height:
            _smooth_line(image[y + 2], lines[(y + 2) % 5])
        out, here = result[y], lines[y % 5]
        if y < 2 or y >= height - 2:
            out[:] = here
        else:
            a, b = lines[(y - 2) % 5], lines[(y + 2) % 5]
            c, d = lines[(y - 1) % 5], lines[(y + 1) % 5]
            for x in range(width):
                value = a[x] + b[x]
                value += three * (c[x] + d[x]) + four * here[x]
                out[x] = value * twelfth
        expand_mesh_row(noise, cell, y, sigma)
        least = np.float32(0.1) * noise[min(y // cell, noise.shape[0] - 1), 0]
        for x in range(width):
            value = out[x] / max(sigma[x], least)
            out[x] = value if np.isfinite(value) else np.float32(0.0)
    return result


@njit(cache=True, nogil=True)
def _measure(image, xs, ys, sigma, aperture):
    """Rows of (x, y, flux, peak, fwhm, elongation, ring, valid).

    Centre: x <- x + 2 sum(w I (x_i - x)) / sum(w I) with a Gaussian window w of the given sigma, until it
    rests. Width: second moments under the window of sigma_w = 1.2 sigma, and the window divided out again,
    1 / s^2 = 1 / s_measured^2 - 1 / sigma_w^2 along each principal axis. ``ring`` is the mean at 2 to 3 px
    over the peak.
    """
    rows = np.zeros((xs.size, 8))
    for k in range(xs.size):
        x, y, ok = _window_centre(image, xs[k], ys[k], sigma)
        rows[k, 0] = x
        rows[k, 1] = y
        if not ok:
            continue
        fwhm, elongation = _window_moments(image, x, y, 1.2 * sigma)
        flux, peak, ring = _sums(image, x, y, aperture)
        rows[k, 2] = flux
        rows[k, 3] = peak
        rows[k, 4] = fwhm
        rows[k, 5] = elongation
        rows[k, 6] = ring / peak if peak > 0.0 else 0.0
        rows[k, 7] = 1.0 if (peak > 0.0 and fwhm > 0.0 and np.isfinite(flux)) else 0.0
    return rows


@njit(cache=True, nogil=True)
def _box(image, x, y, reach):
    """Rows and columns of the pixels within ``reach`` of a position, end exclusive."""
    height, width = image.shape
    cx = int(np.floor(x + 0.5))
    cy = int(np.floor(y + 0.5))
    rows = max(0, cy - reach), min(height, cy + reach + 1)
    return rows[0], rows[1], max(0, cx - reach), min(width, cx + reach + 1)


@njit(cache=True, nogil=True)
def _window_sums(image, x, y, sigma, reach):
    """Sums of ``w I`` times 1, dx, dy, dx^2, dy^2 and dx dy under a Gaussian window ``w`` around a position."""
    total, mx, my, xx, yy, xy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    scale = 0.5 / (sigma * sigma)
    j0, j1, i0, i1 = _box(image, x, y, reach)
    for j in range(j0, j1):
        dy = j - y
        for i in range(i0, i1):
            dx = i - x
            value = image[j, i]
            if not np.isfinite(value):
                continue
            w = np.exp(-(dx * dx + dy * dy) * scale) * value
            total += w
            mx += w * dx
            my += w * dy
            xx += w * dx * dx
            yy += w * dy * dy
            xy += w * dx * dy
    return total, mx, my, xx, yy, xy


@njit(cache=True, nogil=True)
def _window_centre(image, x_start, y_start, sigma):
    x, y = x_start, y_start
    reach = int(np.ceil(4.0 * sigma))
    for _ in range(20):
        total, mx, my, _xx, _yy, _xy = _window_sums(image, x, y, sigma, reach)
        if total <= 0.0:
            return x, y, False
        step_x = 2.0 * mx / total
        step_y = 2.0 * my / total
        x += step_x
        y += step_y
        # A centre that wanders off belongs to a brighter neighbour, or to nothing.
        if not ((x - x_start) ** 2 + (y - y_start) ** 2 < 6.25):
            return x, y, False
        if step_x * step_x + step_y * step_y < 1e-7:
            break
    return x, y, True


@njit(cache=True, nogil=True)
def _window_moments(image, x, y, sigma):
    reach = int(np.ceil(3.0 * sigma)) + 1
    total, _mx, _my, xx, yy, xy = _window_sums(image, x, y, sigma, reach)
    if total <= 0.0:
        return 0.0, 1.0
    mean = 0.5 * (xx + yy) / total
    spread = np.sqrt(0.25 * ((xx - yy) / total) ** 2 + (xy / total) ** 2)
    major = _without_window(mean + spread, sigma)
    minor = _without_window(mean - spread, sigma)
    return np.sqrt(major * minor) / _FWHM_TO_SIGMA, major / minor


@njit(cache=True, nogil=True)
def _without_window(variance, sigma):
    """Sigma of the Gaussian that, times the window, has this variance; between 0.3 px and 5 windows."""
    floor = 0.09
    limit = 25.0 * sigma * sigma
    if variance <= floor:
        variance = floor
    inverse = 1.0 / variance - 1.0 / (sigma * sigma)
    if inverse <= 1.0 / limit:
        return np.sqrt(limit)
    return np.sqrt(max(1.0 / inverse, floor))


@njit(cache=True, nogil=True)
def _sums(image, x, y, aperture):
    reach = int(np.ceil(max(aperture, 3.0))) + 1
    flux = 0.0
    peak = 0.0
    ring = 0.0
    in_ring = 0
    j0, j1, i0, i1 = _box(image, x, y, reach)
    for j in range(j0, j1):
        dy = j - y
        for i in range(i0, i1):
            dx = i - x
            value = image[j, i]
            if not np.isfinite(value):
                continue
            r = np.sqrt(dx * dx + dy * dy)
            inside = min(1.0, max(0.0, aperture + 0.5 - r))
            flux += inside * value
            if r < 2.0 and value > peak:
                peak = value
            if 2.0 <= r < 3.0:
                ring += value
                in_ring += 1
    return flux, peak, ring / max(1, in_ring)
