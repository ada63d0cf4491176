"""Colour filter arrays: from one plane of mosaicked pixels to luminance, super-pixels or colour. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaic_core.cfa_rows import debayer_rows

__all__ = [
    "CFA_PATTERNS",
    "DEBAYER_REACH",
    "CfaColour",
    "DebayerTerms",
    "average_star",
    "debayer",
    "debayer_terms",
    "debayer_window",
    "flip_pattern",
    "luminance",
    "shift_pattern",
    "superpixel",
]

CFA_PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")
# Pixels on each side that a debayered pixel depends on: two of the filter, three of the light around each of these.
DEBAYER_REACH = 5

# Light that weighs as much as the word of the average star, in noises of a pixel's sky.
_TRUST = 1.0
# A value is not taken below the sky, or below the mean of its neighbours where they are darker, by more than this many
# noises of its sky: the curvature beside clipped or bleeding stars is not that of any star.
_DEPTH = 4.0
_MIN_STARS = 5


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


def shift_pattern(pattern: str, y0: int, x0: int) -> str:
    """Return the pattern at pixel (y0, x0) of a sensor whose pattern at (0, 0) is given."""
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


@dataclass(frozen=True)
class CfaColour:
    """What the light of a frame looks like: its empty sky and the average star.

    Attributes
    ----------
    sky_adu, noise_adu : tuple of float
        Level of the sky and scatter of one pixel of it; red, green, blue; ADU.
    star : tuple of float
        Light of the average star in red, green and blue, in any unit.

    Raises
    ------
    ValueError
        When a number is missing or not finite, or noise or light is not positive.
    """

    sky_adu: tuple[float, float, float]
    noise_adu: tuple[float, float, float]
    star: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("sky_adu", "noise_adu", "star"):
            numbers = np.asarray(getattr(self, name), dtype=float)
            positive = name == "sky_adu" or bool((numbers > 0).all())
            if numbers.shape != (3,) or not np.isfinite(numbers).all() or not positive:
                raise ValueError(
                    f"{name} of a frame's colour is {getattr(self, name)!r}; three usable numbers needed"
                )


@dataclass(frozen=True)
class DebayerTerms:
    """The numbers of a `CfaColour` as processor and card use them: float32, channels red, green, blue.

    Attributes
    ----------
    gain, zero : ndarray, shape (3,)
        From the weighted sum of a colour's samples to its light: ``max(gain * sum - zero, 0) + 1``.
    pull : ndarray, shape (3, 3)
        ``pull[wanted, here]``: the share of a difference in the colour measured that goes to the one wanted, for light
        of the average star, and half of it, because the shares of two pixels are added.
    sky, depth : ndarray, shape (3,)
        What is found is at least ``min(mean of the neighbours, sky) - depth``.
    """

    gain: np.ndarray
    zero: np.ndarray
    pull: np.ndarray
    sky: np.ndarray
    depth: np.ndarray


def average_star(channel_flux: np.ndarray) -> tuple[float, float, float] | None:
    """Return the light of the average star in red, green and blue; green is 1.

    Parameters
    ----------
    channel_flux : ndarray, shape (3, n)
        Fluxes of stars; what is not positive or not finite does not count.

    Returns
    -------
    tuple of float or None
        Medians of the ratios to green; None when fewer than five stars have light in every colour.
    """
    flux = np.asarray(channel_flux, dtype=float)
    with np.errstate(invalid="ignore"):
        flux = flux[:, (flux > 0).all(axis=0) & np.isfinite(flux).all(axis=0)]
    if flux.shape[1] < _MIN_STARS:
        return None
    red, blue = np.median(flux[[0, 2]] / flux[1], axis=1)
    return float(red), 1.0, float(blue)


# Sums of the weights of a colour's taps: half of the samples are green.
_TAP_SUMS = (1024.0, 2048.0, 1024.0)
_GREY = 1 / 16


def debayer_terms(colour: CfaColour | None) -> DebayerTerms:
    """Return the terms for a colour; None: all light is grey, and nothing that is found is bounded."""
    pull = np.full((3, 3), _GREY)
    if colour is None:
        none, endless = np.zeros(3, np.float32), np.full(3, np.inf, np.float32)
        return DebayerTerms(none, none, _from_coloured(pull), none, endless)
    sky, noise, star = (np.asarray(v, dtype=float) for v in (colour.sky_adu, colour.noise_adu, colour.star))
    trust = _TRUST * noise[1] * star / star[1]
    return DebayerTerms(
        (1 / (trust * _TAP_SUMS)).astype(np.float32),
        (sky / trust).astype(np.float32),
        _from_coloured(pull * star[:, None] / star[None, :]),
        sky.astype(np.float32),
        (_DEPTH * noise).astype(np.float32),
    )


def _from_coloured(pull: np.ndarray) -> np.ndarray:
    """Give red in blue pixels, and blue in red ones, the larger weight of their filter."""
    pull[0, 2] *= 1.5
    pull[2, 0] *= 1.5
    return pull.astype(np.float32)


def debayer(
    cfa: np.ndarray,
    pattern: str,
    y0: int = 0,
    x0: int = 0,
    *,
    colour: CfaColour | None = None,
    columns: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Find the missing colours of every pixel, as sharp as its own samples and for light of any colour.

    After the gradient correction of Malvar, He and Cutler (2004): a missing colour is the mean of its two or four
    nearest neighbours plus the curvature of the colour measured here, with their 5 x 5 weights. That curvature is one
    of another colour. It is a sum of differences between pixels, and each difference is multiplied by the mean of what
    the two pixels say of the ratio of the colours. So what one pixel gains another one loses: sky and fluxes stay as
    they are however the ratio changes over a star.

    A pixel's ratio comes from the light around it: of each colour what its samples within 7 x 7 px show above the sky,
    weighted with the binomial 1 6 15 20 15 6 1 in x and y (wide enough that nothing of the lattice is left in it).
    Where there is little light the ratio is that of the average star. With ``s`` the weighted sums and the numbers of
    `debayer_terms`::

        light = max(gain s - zero, 0) + 1
        share = min(light[wanted] / light[here], max(1, light[here] / 4)) pull[wanted, here]
        found = mean + sum of weight (share + share at neighbour) (value - value at neighbour)
        found = max(found, min(mean, sky[wanted]) - depth[wanted])

    The last line keeps clipped or bleeding stars from making holes in the sky beside them.

    Parameters
    ----------
    cfa : ndarray, shape (h, w), uint16 or float32
        Window of a sensor. NaN: missing.
    pattern : str
        One of `CFA_PATTERNS`, at pixel (0, 0) of the sensor.
    y0, x0 : int
        Sensor pixel of the window's first pixel.
    colour : CfaColour, optional
        Without it all light is taken to be grey; this needs no scale of the numbers.
    columns : ndarray, shape (h, 2), int64, optional
        First column of each row that is wanted, and the one behind the last; other pixels of `out` hold anything.
    out : ndarray, shape (3, h, w), float32, C-contiguous, optional
        Receives the result.

    Returns
    -------
    ndarray, shape (3, h, w), float32
        Red, green, blue; measured values are kept as they are. NaN where one of the nearest neighbours is missing; the
        mean of these where only a pixel further away is. At the border missing neighbours are mirrored about the
        border pixel, which keeps the phase; read `DEBAYER_REACH` more pixels on each inner side of a window to have
        true neighbours.

    Raises
    ------
    ValueError
        When the plane, the pattern or `out` is not usable.
    """
    cfa = _check_plane(cfa)
    pattern = _check_pattern(pattern)
    if out is None:
        out = np.empty((3, *cfa.shape), np.float32)
    elif out.shape != (3, *cfa.shape) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; float32 {(3, *cfa.shape)} in C order needed")
    if columns is None:
        columns = np.tile(np.array([0, cfa.shape[1]], np.int64), (len(cfa), 1))
    elif columns.shape != (len(cfa), 2) or columns.min() < 0 or columns.max() > cfa.shape[1]:
        raise ValueError(f"columns {columns.shape} do not lie in a plane of {cfa.shape}")
    debayer_window(cfa, pattern, y0, x0, debayer_terms(colour), columns, out)
    return out


def debayer_window(
    cfa: np.ndarray, pattern: str, y0: int, x0: int, terms: DebayerTerms, columns: np.ndarray, out: np.ndarray
) -> None:
    """Do what `debayer` does to small windows by the thousand: all is given, nothing is looked at twice."""
    name = shift_pattern(pattern, y0, x0)
    numbers = (terms.gain, terms.zero, terms.pull, terms.sky, terms.depth)
    debayer_rows(cfa, name[0] == "G", name.index("R") // 2, numbers, columns, out)
