"""Slow plain float64 twins of the co-add engine: one pixel at a time, written from the definitions."""

from __future__ import annotations

import numpy as np

from zemosaic_core.lanczos_table import LANCZOS_TABLE
from zemosaic_core.rejection import FEW_SAMPLES


def coordinate(pixel_map, x, y):
    step = pixel_map.step
    ny, nx = pixel_map.src_x.shape
    i = min(max((x - pixel_map.x0) // step, 0), nx - 2)
    j = min(max((y - pixel_map.y0) // step, 0), ny - 2)
    fx, fy = (x - pixel_map.x0 - i * step) / step, (y - pixel_map.y0 - j * step) / step
    out = []
    for nodes in (pixel_map.src_x, pixel_map.src_y):
        left = nodes[j, i] + fy * (nodes[j + 1, i] - nodes[j, i])
        right = nodes[j, i + 1] + fy * (nodes[j + 1, i + 1] - nodes[j, i + 1])
        out.append(left + fx * (right - left))
    return out


def tap(plane, y, x):
    height, width = plane.shape
    return float(plane[y, x]) if 0 <= y < height and 0 <= x < width else np.nan


def bilinear(plane, sx, sy):
    ix, iy = int(np.floor(sx)), int(np.floor(sy))
    fx, fy = float(np.float32(sx - ix)), float(np.float32(sy - iy))
    total = 0.0
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            if (dx == 1 and fx == 0) or (dy == 1 and fy == 0):
                continue
            total += wx * wy * tap(plane, iy + dy, ix + dx)
    return total if np.isfinite(total) else np.nan


def lanczos(plane, sx, sy):
    ix, iy = int(np.floor(sx)), int(np.floor(sy))
    fx, fy = np.float32(sx - ix), np.float32(sy - iy)
    if fx == 0 and fy == 0:
        return tap(plane, iy, ix)
    wx = LANCZOS_TABLE[int(fx * np.float32(4096) + np.float32(0.5))].astype(np.float64)
    wy = LANCZOS_TABLE[int(fy * np.float32(4096) + np.float32(0.5))].astype(np.float64)
    taps = np.array([[tap(plane, iy - 2 + q, ix - 2 + k) for k in range(6)] for q in range(6)])
    if np.isfinite(taps).all():
        value, lowest, span = float(wy @ taps @ wx), taps.min(), np.ptp(taps)
        if value < lowest and span > 4 * abs(lowest):
            value += np.clip((lowest - value) / (0.005 * span) - 1, 0, 1) * (lowest - value)
        return value
    return bilinear(plane, sx, sy)


def sample(source, image, weight_map, box, kernel):
    """Samples (C, h, w) and weights (h, w) of one source on an output box, float64."""
    y0, y1, x0, x1 = box
    height, width = source.shape_hw
    values = np.full((image.shape[0], y1 - y0, x1 - x0), np.nan)
    weights = np.zeros((y1 - y0, x1 - x0))
    take = bilinear if kernel == "bilinear" else lanczos
    for y in range(y0, y1):
        for x in range(x0, x1):
            sx, sy = coordinate(source.pixel_map, x, y)
            if not (0 <= sx <= width - 1 and 0 <= sy <= height - 1):
                continue
            weight = 1.0
            if source.feather_px > 0:
                edge = min(sx, sy, width - 1 - sx, height - 1 - sy)
                start = source.feather_start
                ramp = min(start + (1 - start) * (edge + 1) / source.feather_px, 1.0)
                weight *= ramp * ramp * (3 - 2 * ramp)
            if weight_map is not None:
                mapped = bilinear(weight_map, sx, sy)
                weight *= mapped if np.isfinite(mapped) else 0.0
            if not weight > 0:
                continue
            weights[y - y0, x - x0] = weight
            u = 2 * sx / (width - 1) - 1 if width > 1 else 0.0
            t = 2 * sy / (height - 1) - 1 if height > 1 else 0.0
            diagonal = (width - 1) ** 2 + (height - 1) ** 2
            q = (u**2 * (width - 1) ** 2 + t**2 * (height - 1) ** 2) / diagonal if diagonal else 0.0
            for c in range(image.shape[0]):
                gain, c0, cx, cy = (float(v) for v in source.photometry[c])
                f1, f2, d1, d2 = (0.0,) * 4 if source.radial is None else (float(v) for v in source.radial[c])
                v = take(image[c], sx, sy) * (1 + f1 * q + f2 * q**2)
                sky = c0 + cx * u + cy * t + d1 * q + d2 * q**2
                if source.surface is not None:
                    powers = [(i, j) for i in range(6) for j in range(6 - i)]
                    sky += sum(
                        float(s) * u**i * t**j for s, (i, j) in zip(source.surface[c], powers, strict=True)
                    )
                values[c, y - y0, x - x0] = gain * v + sky if np.isfinite(v) else np.nan
    return values, weights


def keep_kappa(kept, rule, expected):
    centre, scale = np.median(kept), np.std(kept, ddof=1)
    return _within(kept, centre, max(scale, expected(centre)), rule)


def keep_winsorized(kept, rule, expected):
    centre = np.median(kept)
    low, high = np.quantile(kept, [rule.winsor_limits[0], 1 - rule.winsor_limits[1]])
    scale = np.std(np.clip(kept, low, high), ddof=1)
    for _ in range(10):
        new = 1.134 * np.std(np.clip(kept, centre - 1.5 * scale, centre + 1.5 * scale), ddof=1)
        settled = abs(new - scale) <= 0.0005 * scale
        scale = new
        if settled:
            break
    return _within(kept, centre, max(scale, expected(centre)), rule)


def _within(kept, centre, scale, rule):
    if not scale > 0:
        return kept
    return kept[(kept >= centre - rule.kappa_low * scale) & (kept <= centre + rule.kappa_high * scale)]


def keep_few(kept, rule, expected):
    n = len(kept)
    if n < 2:
        return kept
    lower, upper = kept[(n - 1) // 2], kept[n // 2]
    spare = np.sqrt(n / (n - 1))
    far = upper - lower > rule.kappa_high * spare * expected(lower)
    centre = lower if far else (lower + upper) / 2
    return _within(kept, centre, spare * expected(centre), rule)


def keep_line(kept, rule, expected):
    rank = np.arange(len(kept))
    slope, level = np.polyfit(rank, kept, 1)
    residual = kept - (slope * rank + level)
    scale = np.abs(residual).mean()
    low, high = 0, len(kept)
    if scale > 0:
        while low < high and residual[low] < -rule.kappa_low * scale:
            low += 1
        while high > low and residual[high - 1] > rule.kappa_high * scale:
            high -= 1
    return kept[low:high]


KEEP = {"kappa_sigma": keep_kappa, "winsorized_sigma_clip": keep_winsorized, "linear_fit_clip": keep_line}


def expected_scale(rule, channel, weights):
    """Expected scatter of samples of one pixel as a function of their centre; 0 when nothing is known."""
    if rule.noise is None:
        return lambda centre: 0.0
    variance, level = np.mean(rule.noise.variance[channel] / weights), rule.noise.background[channel]
    return lambda centre: np.hypot(np.sqrt(variance), rule.noise.mismatch * max(centre - level, 0.0))


def combine_pixel(values, weights, rule, channel=0, shares=1.0):
    """(value, weight, variance, n, rejected low, rejected high) of one pixel and channel.

    ``weights`` are those of the sources, ``shares`` those of the samples.
    """
    sources = np.asarray(weights, np.float64)
    weights = sources * shares
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    good = np.isfinite(values) & (weights > 0)
    values, weights = values[good], weights[good]
    n = len(values)
    if n == 0:
        return np.nan, 0.0, np.nan, 0, 0, 0
    kept = np.sort(values)
    if rule.rejection != "none":
        expected = expected_scale(rule, channel, sources[good])
        few = rule.noise is not None and n <= FEW_SAMPLES
        for _ in range(10):
            if len(kept) <= 3 and not few:
                break
            smaller = (keep_few if few else KEEP[rule.rejection])(kept, rule, expected)
            if len(smaller) in (0, len(kept)):
                break
            kept = smaller
    inside = (values >= kept[0]) & (values <= kept[-1])
    below, above = int((values < kept[0]).sum()), int((values > kept[-1]).sum())
    x, w = values[inside], weights[inside]
    total = w.sum()
    if rule.combine == "median":
        value, w, factor = np.median(x), np.ones(len(x)), np.pi / 2
    else:
        value, factor = x[0] + (w * (x - x[0])).sum() / total, 1.0
    variance = np.nan
    if len(x) > 1:
        mean = x[0] + (w * (x - x[0])).sum() / w.sum()
        variance = factor * len(x) / (len(x) - 1) * (w**2 * (x - mean) ** 2).sum() / w.sum() ** 2
    return value, total, variance, n, below, above


def combine(stack, weights, maps, rule):
    """Twin of `combine_stack`: stack (N, C, h, w), weights (N, C), maps (N, h, w) or None."""
    _, n_channels, height, width = stack.shape
    names = ("image", "weight", "variance", "count", "rejected_low", "rejected_high")
    out = {name: np.zeros((n_channels, height, width)) for name in names}
    for c in range(n_channels):
        for y in range(height):
            for x in range(width):
                shares = 1.0 if maps is None else maps[:, y, x]
                pixel = combine_pixel(stack[:, c, y, x], weights[:, c], rule, c, shares)
                for name, value in zip(names, pixel, strict=True):
                    out[name][c, y, x] = value
    return out


# Malvar, He and Cutler (2004): what the pixels of the colour measured weigh, in eighths. Named by the colour wanted and
# where: green or the opposite colour at a coloured pixel, the colour of the row or of the column at a green one.
_CURVATURES = {
    "green": {(0, -2): -1, (0, 2): -1, (-2, 0): -1, (2, 0): -1},
    "opposite": {(0, -2): -1.5, (0, 2): -1.5, (-2, 0): -1.5, (2, 0): -1.5},
    "row": {(0, -2): -1, (0, 2): -1, (-2, 0): 0.5, (2, 0): 0.5},
    "column": {(0, -2): 0.5, (0, 2): 0.5, (-2, 0): -1, (2, 0): -1},
}
for _name in ("row", "column"):
    _CURVATURES[_name] |= {(-1, -1): -1, (-1, 1): -1, (1, -1): -1, (1, 1): -1}
_NEIGHBOURS = {
    "green": ((0, -1), (0, 1), (-1, 0), (1, 0)),
    "opposite": ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    "row": ((0, -1), (0, 1)),
    "column": ((-1, 0), (1, 0)),
}


def debayer(cfa, pattern, y0=0, x0=0, colour=None):
    """Twin of `zemosaic_core.cfa.debayer`, pixel by pixel."""
    height, width = cfa.shape
    pad = 8
    plane = np.pad(cfa.astype(np.float64), pad, mode="reflect")

    def channel(y, x):
        return "RGB".index(pattern[2 * ((y + y0) % 2) + (x + x0) % 2])

    taps = (1, 6, 15, 20, 15, 6, 1)
    shares = {}

    def lights(y, x):
        sums, weights = np.zeros(3), np.zeros(3)
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                c, w = channel(y + dy, x + dx), taps[dy + 3] * taps[dx + 3]
                sums[c] += w * plane[pad + y + dy, pad + x + dx]
                weights[c] += w
        if colour is None:
            return 1 + 0 * sums
        trust = colour.noise_adu[1] * np.array(colour.star) / colour.star[1]
        return 1 + np.maximum(sums / weights - colour.sky_adu, 0) / trust

    def ratio(y, x, wanted):
        if (y, x, wanted) not in shares:
            light, here = lights(y, x), channel(y, x)
            star = np.ones(3) if colour is None else np.array(colour.star)
            times = np.minimum(light[wanted] / light[here], max(1.0, light[here] / 4))
            shares[y, x, wanted] = times * star[wanted] / star[here]
        return shares[y, x, wanted]

    out = np.zeros((3, height, width))
    for y in range(height):
        for x in range(width):
            here, value = channel(y, x), plane[pad + y, pad + x]
            for wanted in range(3):
                if wanted == here:
                    out[wanted, y, x] = value
                    continue
                if here == 1:
                    case = "row" if channel(y, x + 1) == wanted else "column"
                else:
                    case = "green" if wanted == 1 else "opposite"
                mean = np.mean([plane[pad + y + dy, pad + x + dx] for dy, dx in _NEIGHBOURS[case]])
                change = 0.0
                for (dy, dx), weight in _CURVATURES[case].items():
                    both = (ratio(y, x, wanted) + ratio(y + dy, x + dx, wanted)) / 2
                    change += weight / 8 * both * (plane[pad + y + dy, pad + x + dx] - value)
                found = mean + (change if np.isfinite(change) else 0.0)
                if colour is not None and np.isfinite(found):
                    sky, noise = colour.sky_adu[wanted], colour.noise_adu[wanted]
                    found = max(found, min(mean, sky) - 4 * noise)
                out[wanted, y, x] = found
    return out
