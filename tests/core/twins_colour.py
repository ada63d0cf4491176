"""Made-up fields of coloured stars and edges with known truth, seen through a colour filter array, and their judges."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numpy as np
from scipy import ndimage

# Light of the average star in red, green, blue, as a fraction of green.
STAR = np.array([0.8, 1.0, 0.72])
SKY = np.array([700.0, 720.0, 690.0])
CELL = 36
APERTURE_PX = 6.0


@dataclass(frozen=True)
class Field:
    """One star in the middle of each cell. Planes (3, H, W) are the truth; `colours` (n, 3) the peaks per channel."""

    truth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    colours: np.ndarray


def moffat(r2, fwhm, beta=3.0):
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (1 + r2 / alpha2) ** -beta


def star_field(colours, *, fwhm=2.4, seed=0, across=12, sky=SKY) -> Field:
    """Place a star per cell at random fractions of a pixel; `colours`: (n, 3) peaks, taken in turns."""
    rng = np.random.default_rng(seed)
    n = across * across
    cy, cx = np.divmod(np.arange(n), across)
    x = CELL * (cx + 0.5) + rng.uniform(-0.5, 0.5, n) - 0.5
    y = CELL * (cy + 0.5) + rng.uniform(-0.5, 0.5, n) - 0.5
    peaks = np.asarray(colours, float)[np.arange(n) % len(colours)]
    fwhms = np.broadcast_to(np.asarray(fwhm, float), (3,))
    truth = np.ones((3, across * CELL, across * CELL)) * np.asarray(sky)[:, None, None]
    for k in range(n):
        top, left = CELL * cy[k], CELL * cx[k]
        yy, xx = np.mgrid[top : top + CELL, left : left + CELL]
        r2 = (xx - x[k]) ** 2 + (yy - y[k]) ** 2
        for c in range(3):
            truth[c, top : top + CELL, left : left + CELL] += peaks[k, c] * moffat(r2, fwhms[c])
    return Field(truth, x, y, peaks)


def through_filters(truth, pattern, *, noise=0.0, seed=0):
    """Keep of each pixel the colour that its filter lets through, with noise, as whole numbers."""
    out = np.empty(truth.shape[1:])
    for dy in (0, 1):
        for dx in (0, 1):
            out[dy::2, dx::2] = truth["RGB".index(pattern[2 * dy + dx]), dy::2, dx::2]
    out += np.random.default_rng(seed).normal(0, noise, out.shape) if noise else 0
    return np.clip(np.round(out), 0, 65535).astype(np.uint16)


def own_samples(shape_hw, pattern, channel):
    """Mask of the pixels whose filter lets a channel through."""
    mask = np.zeros(shape_hw, bool)
    for k, name in enumerate(pattern):
        if "RGB".index(name) == channel:
            mask[k // 2 :: 2, k % 2 :: 2] = True
    return mask


def _pixels_near(field, reach):
    """Star, pixel row, pixel column and distance of all pixels within `reach` px of a star."""
    m = int(reach) + 2
    dy, dx = np.mgrid[-m : m + 1, -m : m + 1]
    iy = np.round(field.y).astype(int)[:, None, None] + dy
    ix = np.round(field.x).astype(int)[:, None, None] + dx
    r = np.hypot(iy - field.y[:, None, None], ix - field.x[:, None, None])
    star = np.broadcast_to(np.arange(len(field.x))[:, None, None], r.shape)
    near = r < reach
    return star[near], iy[near], ix[near], r[near]


def fitted_fwhm(field, planes, channel, *, sky=SKY, mask=None, reach=4.0, which=slice(None)):
    """Width of the Gaussian that fits all stars at once, each divided by its true peak; px."""
    star, iy, ix, r = _pixels_near(field, reach)
    chosen = np.isin(star, np.arange(len(field.x))[which])
    if mask is not None:
        chosen &= mask[iy, ix]
    star, iy, ix, r = star[chosen], iy[chosen], ix[chosen], r[chosen]
    peaks = field.colours[star, channel]
    light = (planes[channel, iy, ix] - sky[channel]) / peaks
    weight = np.sqrt(peaks / peaks.max())
    widths = np.arange(1.0, 6.0, 0.01)
    errors = []
    for w in widths:
        model = np.exp(-4 * np.log(2) * (r / w) ** 2) * weight
        height = (model * light * weight).sum() / (model * model).sum()
        errors.append((((light * weight) - height * model) ** 2).sum())
    return float(widths[int(np.argmin(errors))])


def ring_percent(field, planes, channel, *, sky=SKY, which=slice(None), reach=4.0):
    """Largest difference of a channel's mean profile from green's, each on the scale of its own peak, %."""
    star, iy, ix, r = _pixels_near(field, reach)
    chosen = np.isin(star, np.arange(len(field.x))[which])
    star, iy, ix, r = star[chosen], iy[chosen], ix[chosen], r[chosen]
    own, green = ((planes[c, iy, ix] - sky[c]) / field.colours[star, c] for c in (channel, 1))
    bins = (2 * r).astype(int)
    means = np.bincount(bins, own - green) / np.bincount(bins)
    return 100 * float(np.abs(means).max())


def flux_bias_percent(field, planes, channel, *, radius=APERTURE_PX, which=slice(None)):
    """Median of what an aperture finds of each star, against the same aperture on the truth, %."""
    star, iy, ix, r = _pixels_near(field, radius + 1)
    share = np.clip(radius + 0.5 - r, 0, 1)
    excess = np.bincount(star, share * (planes[channel, iy, ix] - field.truth[channel, iy, ix]))
    light = np.bincount(star, share * (field.truth[channel, iy, ix] - field.truth[channel].min()))
    return 100 * float(np.median((excess / light)[which]))


def block_noise(plane, size=4):
    """Scatter of the means of blocks, times their side: for independent pixels the noise of one; ADU."""
    h, w = (n // size * size for n in plane.shape)
    return size * float(plane[:h, :w].reshape(h // size, size, w // size, size).mean(axis=(1, 3)).std())


def slanted_bar(colour, *, size=240, angle_deg=27.0, fwhm=2.4, sky=SKY):
    """A bar of light with edges as sharp as a star; truth (3, size, size), and the distance from its edge, px."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle = np.radians(angle_deg)
    inside = size / 6 - np.abs(x * np.cos(angle) + y * np.sin(angle))
    scale = fwhm / (2 * np.sqrt(2 * np.log(2)))
    share = 0.5 * (1 + np.vectorize(erf)(inside / (scale * np.sqrt(2))))
    return np.asarray(sky)[:, None, None] + np.asarray(colour)[:, None, None] * share, inside


def chroma_percent(planes, colour, channel, inside, *, sky=SKY):
    """Mean difference of a channel from green on either side of the edge, each on its own scale, by distance, %."""
    own, green = ((planes[c] - sky[c]) / colour[c] for c in (channel, 1))
    middle = (slice(8, -8), slice(8, -8))
    bins = np.round(np.clip(inside[middle], -8, 8)).astype(int) + 8
    means = np.bincount(bins.ravel(), (own - green)[middle].ravel()) / np.bincount(bins.ravel())
    return 100 * means


def means_of_neighbours(raw, pattern):
    """Bilinear: every missing colour is the mean of its nearest samples; what the judges are to find wanting."""
    out = np.empty((3, *raw.shape))
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    for c in range(3):
        mask = own_samples(raw.shape, pattern, c).astype(float)
        sums, weights = (ndimage.convolve(a, kernel, mode="mirror") for a in (raw * mask, mask))
        out[c] = np.where(mask > 0, raw, sums / weights)
    return out
