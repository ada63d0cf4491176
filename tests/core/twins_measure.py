"""Slow, plain versions of what is measured on raw frames: they follow the words of the docstrings, not the code."""

from __future__ import annotations

import math

import numpy as np

TAPS = np.array([1, 3, 4, 3, 1])


def sky_of_values(values: np.ndarray, total: int) -> tuple[float, float, float]:
    """Mean of the central half after clipping at 2.5 sigma, sigma and error of that mean; NaN with too few values."""
    values = np.sort(values.astype(float))
    middle = np.median(values)
    sigma = max(middle - np.quantile(values, 0.1587), 0.5)
    kept = values
    for _ in range(10):
        inside = values[(values >= middle - 2.5 * sigma) & (values <= middle + 2.5 * sigma)]
        if inside.size < 4 or inside.size == kept.size:
            break
        kept = inside
        middle = np.median(kept)
        sigma = kept.std(ddof=1) * 1.0476
    if kept.size < 0.3 * total:
        return math.nan, math.nan, math.nan
    quarter = kept.size // 4
    level = kept[quarter : kept.size - quarter].mean()
    return level, sigma, 1.092 * sigma / math.sqrt(kept.size)


def cell_sky(plane: np.ndarray, cell: int, j: int, i: int, phase: int, missing: np.ndarray | None = None):
    """Level, spread, error of one cell and phase, and its noise from steps."""
    part = plane[cell * j : cell * (j + 1), cell * i : cell * (i + 1)]
    part = part[: part.shape[0] // 2 * 2, : part.shape[1] // 2 * 2]
    one = part[phase // 2 :: 2, phase % 2 :: 2].astype(float)
    steps = np.abs(one[::2, 1:] - one[::2, :-1])
    values = one.ravel()
    if missing is not None:
        hidden = missing[cell * j : cell * (j + 1), cell * i : cell * (i + 1)]
        hidden = hidden[: part.shape[0], : part.shape[1]][phase // 2 :: 2, phase % 2 :: 2]
        values = one[~hidden]
    return *sky_of_values(values, one.size), 1.0483 * np.median(steps)


def mirrored(plane: np.ndarray, margin: int) -> np.ndarray:
    return np.pad(plane.astype(float), margin, mode="reflect")


def isolation(plane: np.ndarray, y: int, x: int) -> tuple[float, float, float, float]:
    """Excess of a pixel and of its eight neighbours over their kin, the kin and their scatter."""
    patch = mirrored(plane, 3)[y : y + 7, x : x + 7]
    at = {(j, i): patch[j + 3, i + 3] for j in range(-3, 4) for i in range(-3, 4)}
    near = [at[j, i] for j in (-2, 0, 2) for i in (-2, 0, 2) if (j, i) != (0, 0)]
    around = 0.0
    for j in (-1, 0, 1):
        for i in (-1, 0, 1):
            if (j, i) == (0, 0):
                continue
            # Kin of this neighbour that lie three pixels from the middle.
            kin = [v for (b, a), v in at.items()
                   if (b - j) % 2 == 0 and (a - i) % 2 == 0 and max(abs(b), abs(a)) == 3]  # fmt: skip
            around += at[j, i] - np.median(kin)
    ordered = np.sort(near)
    return at[0, 0] - np.median(near), around, float(np.median(near)), (ordered[6] - ordered[1]) / 1.70


def defects(
    plane: np.ndarray, sky: np.ndarray, noise: np.ndarray, cell: int, sigma: float
) -> dict[int, float]:
    found = {}
    padded = mirrored(plane, 2)
    height, width = plane.shape
    for y in range(height):
        for x in range(width):
            p = 2 * (y % 2) + x % 2
            level, unit = float(sky[p, y // cell, x // cell]), float(noise[p, y // cell, x // cell])
            value = float(plane[y, x])
            if int(level - sigma * unit) <= value <= int(level + sigma * unit):
                continue
            sign = 1.0 if value > level else -1.0
            beside = [padded[y + 2 + j, x + 2 + i] for j, i in ((0, -2), (0, 2), (-2, 0), (2, 0))]
            if any(sign * (value - other) < 0 for other in beside):
                continue
            own, around, _kin, scatter = isolation(plane, y, x)
            unit = max(unit, 0.5 * scatter)
            if sign * own > sigma * unit and sign * around < 0.4 * sign * own:
                found[y * width + x] = own / unit
    return found


def smoothed(plane: np.ndarray, is_cfa: bool) -> np.ndarray:
    """Sum of 2 x 2 windows (CFA) or pixels times (1 3 4 3 1) both ways; 0 where it is not known."""
    light = plane.astype(np.int64)
    if is_cfa:
        light = light[:-1, :-1] + light[:-1, 1:] + light[1:, :-1] + light[1:, 1:]
    out = np.zeros(plane.shape, np.int64)
    for y in range(2, light.shape[0] - 2):
        for x in range(2, light.shape[1] - 2):
            out[y, x] = (np.outer(TAPS, TAPS) * light[y - 2 : y + 3, x - 2 : x + 3]).sum()
    return out


def mesh_value(mesh: np.ndarray, cell: int, y: float, x: float) -> float:
    def split(position: float, n: int) -> tuple[int, int, float]:
        k = min(max(math.floor(position), 0), max(n - 2, 0))
        return k, min(k + 1, n - 1), position - k

    j, below, v = split((y + 0.5) / cell - 0.5, mesh.shape[0])
    i, right, u = split((x + 0.5) / cell - 0.5, mesh.shape[1])
    upper = (1 - u) * mesh[j, i] + u * mesh[j, right]
    lower = (1 - u) * mesh[below, i] + u * mesh[below, right]
    return (1 - v) * upper + v * lower


def maxima(plane, is_cfa, sky, noise, cell, threshold_sigma, ring_px=6) -> list[tuple[int, int, int, int]]:
    smooth = smoothed(plane, is_cfa)
    extra = 1 if is_cfa else 0
    shift = 0.5 if is_cfa else 0.0
    height, width = plane.shape
    low, high_y, high_x = 2, height - 3 - extra, width - 3 - extra
    rows = []
    for y in range(low + 2, high_y - 1):
        for x in range(low + 2, high_x - 1):
            value = smooth[y, x]
            limit = mesh_value(sky + threshold_sigma * noise, cell, y + shift, x + shift)
            if value <= int(limit):
                continue
            before = [smooth[y, x - 1], *smooth[y - 1, x - 1 : x + 2]]
            after = [smooth[y, x + 1], *smooth[y + 1, x - 1 : x + 2]]
            if value <= max(before) or value < max(after):
                continue
            r, d = ring_px, 2 * ring_px // 3
            points = [(0, -r), (0, r), (-r, 0), (r, 0), (-d, -d), (-d, d), (d, -d), (d, d)]
            ring = sorted(
                smooth[min(max(y + b, low), high_y), min(max(x + a, low), high_x)] for b, a in points
            )
            around = int(sum(ring[1:4])) // 3
            unit = float(noise[y // cell, x // cell])
            light = min(max((around - float(sky[y // cell, x // cell])) / (6.0 * unit), 0.0), 1.0)
            if value - around >= (3.5 + 2.5 * light) * unit:
                rows.append((y, x, int(value), around))
    return rows


def luminance(plane: np.ndarray, is_cfa: bool) -> np.ndarray:
    light = plane.astype(float)
    if is_cfa:
        light = 0.25 * (light[:-1, :-1] + light[:-1, 1:] + light[1:, :-1] + light[1:, 1:])
    return light


def star_row(plane, is_cfa, y0, x0, sky, sigma, aperture):
    """x, y (luminance px), flux, peak, fwhm, elongation of the light around a maximum."""
    light = luminance(plane, is_cfa) - sky
    reach = math.ceil(max(4.0 * sigma, aperture + 1.0)) + 1
    yy, xx = np.mgrid[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1]
    stamp = light[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1]
    x, y = float(x0), float(y0)
    for _ in range(12):
        w = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2)) * stamp
        dx, dy = (w * (xx - x)).sum() / w.sum(), (w * (yy - y)).sum() / w.sum()
        x, y = x + 2 * dx, y + 2 * dy
        if 4 * (dx * dx + dy * dy) < 1e-7:
            break
    wide = 1.2 * sigma
    w = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * wide**2)) * stamp
    moments = np.array(
        [[(w * (xx - x) ** 2).sum(), (w * (xx - x) * (yy - y)).sum()], [0, (w * (yy - y) ** 2).sum()]]
    )
    moments[1, 0] = moments[0, 1]
    minor, major = np.sqrt(1 / (1 / np.linalg.eigvalsh(moments / w.sum()) - 1 / wide**2))
    r = np.hypot(xx - x, yy - y)
    flux = (np.clip(aperture + 0.5 - r, 0, 1) * stamp).sum()
    return x, y, flux, stamp[r < 2.0].max(), 2.35482 * math.sqrt(major * minor), major / minor


def phase_flux(plane, is_cfa, x, y, radius, phase):
    """Light in a circle less the sky of a ring, on the half-size plane of a phase or on a mono plane."""
    if is_cfa:
        plane = plane[phase // 2 :: 2, phase % 2 :: 2]
        x, y = (x - 0.5) / 2, (y - 0.5) / 2
    yy, xx = np.mgrid[: plane.shape[0], : plane.shape[1]]
    r = np.hypot(xx - x, yy - y)
    inside = np.clip(radius + 0.5 - r, 0, 1)
    ring = plane[(r >= radius + 3) & (r <= radius + 7)].astype(float)
    for _ in range(6):
        ring = ring[np.abs(ring - ring.mean()) <= 2.5 * ring.std() * 1.0476]
    return (inside * (plane - ring.mean())).sum()
