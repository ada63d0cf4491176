"""Colour filter arrays: from one plane of mosaicked pixels to luminance, super-pixels or colour. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["CFA_PATTERNS", "debayer", "flip_pattern", "luminance", "superpixel"]

CFA_PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")


def _check_pattern(pattern: str) -> str:
    name = str(pattern).strip().upper()
    if name not in CFA_PATTERNS:
        raise ValueError(f"unknown CFA pattern {pattern!r}; use one of {', '.join(CFA_PATTERNS)}")
    return name


def _check_plane(cfa: np.ndarray) -> np.ndarray:
    cfa = np.asarray(cfa)
    if cfa.ndim != 2 or min(cfa.shape) < 2:
        raise ValueError(f"a CFA plane needs two dimensions of at least 2 px, got shape {cfa.shape}")
    if cfa.dtype not in (np.uint16, np.float32):
        cfa = cfa.astype(np.float32)
    return np.ascontiguousarray(cfa)


def flip_pattern(pattern: str, height: int) -> str:
    """Return the pattern of the image turned upside down.

    Parameters
    ----------
    pattern : str
        Pattern at pixel (0, 0).
    height : int
        Rows of the image; with an even number the row pair changes places, with an odd one it does not.
    """
    name = _check_pattern(pattern)
    return name[2:] + name[:2] if height % 2 == 0 else name


def _shift_pattern(pattern: str, y0: int, x0: int) -> str:
    """Pattern at pixel (y0, x0) of a sensor whose pattern at (0, 0) is given."""
    name = pattern[2:] + pattern[:2] if y0 % 2 else pattern
    return name[1] + name[0] + name[3] + name[2] if x0 % 2 else name


@njit(cache=True, nogil=True)
def _sum_windows(cfa, out):
    quarter = np.float32(0.25)
    for y in range(out.shape[0]):
        upper, lower, row = cfa[y], cfa[y + 1], out[y]
        for x in range(out.shape[1]):
            total = np.float32(upper[x]) + np.float32(upper[x + 1])
            row[x] = quarter * (total + (np.float32(lower[x]) + np.float32(lower[x + 1])))


def luminance(cfa: np.ndarray) -> np.ndarray:
    """Average every 2 x 2 window: each holds one red, two green and one blue pixel, whatever its phase.

    Parameters
    ----------
    cfa : ndarray, shape (H, W), uint16 or float32

    Returns
    -------
    ndarray, shape (H - 1, W - 1), float32
        Pixel (y, x) is centred at (y + 0.5, x + 0.5) of the input.

    Raises
    ------
    ValueError
        When the plane is not 2-D or smaller than 2 x 2.
    """
    cfa = _check_plane(cfa)
    out = np.empty((cfa.shape[0] - 1, cfa.shape[1] - 1), np.float32)
    _sum_windows(cfa, out)
    return out


def superpixel(cfa: np.ndarray, pattern: str) -> np.ndarray:
    """Turn every 2 x 2 cell into one RGB pixel, green being the mean of two.

    Parameters
    ----------
    cfa : ndarray, shape (H, W), uint16 or float32
        An odd last row or column is left out.
    pattern : str
        One of `CFA_PATTERNS`, at pixel (0, 0).

    Returns
    -------
    ndarray, shape (3, H // 2, W // 2), float32
        Plane pixel (y, x) is centred at (2 y + 0.5, 2 x + 0.5) of the input.

    Raises
    ------
    ValueError
        When the plane or the pattern is not usable.
    """
    cfa, name = _check_plane(cfa), _check_pattern(pattern)
    height, width = cfa.shape[0] // 2, cfa.shape[1] // 2
    cells = [cfa[k // 2 : 2 * height : 2, k % 2 : 2 * width : 2].astype(np.float32) for k in range(4)]
    out = np.empty((3, height, width), np.float32)
    out[0] = cells[name.index("R")]
    first, second = (k for k in range(4) if name[k] == "G")
    out[1] = np.float32(0.5) * (cells[first] + cells[second])
    out[2] = cells[name.index("B")]
    return out


@njit(cache=True, nogil=True)
def _load_padded(cfa, y, line):
    """Copy a row with one mirrored pixel on either side; -1 -> 1 and W -> W - 2 keep the colour."""
    width = cfa.shape[1]
    row = cfa[y]
    for x in range(width):
        line[x + 1] = np.float32(row[x])
    line[0] = line[2]
    line[width + 1] = line[width - 1]


@njit(cache=True, nogil=True)
def _debayer_rows(cfa, green_first, red_row, out):
    """Bilinear: `green_first` says whether pixel (0, 0) is green, `red_row` which row parity holds red."""
    height, width = cfa.shape
    half, quarter = np.float32(0.5), np.float32(0.25)
    above, here, below = (
        np.empty(width + 2, np.float32),
        np.empty(width + 2, np.float32),
        np.empty(width + 2, np.float32),
    )
    _load_padded(cfa, 1, above)
    _load_padded(cfa, 0, here)
    for y in range(height):
        _load_padded(cfa, y + 1 if y + 1 < height else height - 2, below)
        # The colour that shares this row with green, and the one of the rows above and below.
        same = out[0, y] if y % 2 == red_row else out[2, y]
        other = out[2, y] if y % 2 == red_row else out[0, y]
        green = out[1, y]
        start = 0 if green_first == (y % 2 == 0) else 1
        for x in range(start, width, 2):
            green[x] = here[x + 1]
            same[x] = half * (here[x] + here[x + 2])
            other[x] = half * (above[x + 1] + below[x + 1])
        for x in range(1 - start, width, 2):
            same[x] = here[x + 1]
            green[x] = quarter * ((here[x] + here[x + 2]) + (above[x + 1] + below[x + 1]))
            other[x] = quarter * ((above[x] + above[x + 2]) + (below[x] + below[x + 2]))
        above, here, below = here, below, above


def debayer(cfa: np.ndarray, pattern: str, y0: int = 0, x0: int = 0) -> np.ndarray:
    """Interpolate the missing colours bilinearly.

    Each missing colour is the mean of its two or four nearest neighbours. At the border missing neighbours are
    mirrored about the border pixel, which keeps the phase; read two more pixels on each inner side of a window to
    have true neighbours.

    Parameters
    ----------
    cfa : ndarray, shape (h, w), uint16 or float32
        Window of a sensor.
    pattern : str
        One of `CFA_PATTERNS`, at pixel (0, 0) of the sensor.
    y0, x0 : int
        Sensor pixel of the window's first pixel.

    Returns
    -------
    ndarray, shape (3, h, w), float32
        Red, green, blue; measured values are kept as they are.

    Raises
    ------
    ValueError
        When the plane or the pattern is not usable.
    """
    cfa = _check_plane(cfa)
    name = _shift_pattern(_check_pattern(pattern), y0, x0)
    out = np.empty((3, *cfa.shape), np.float32)
    _debayer_rows(cfa, name[0] == "G", name.index("R") // 2, out)
    return out
