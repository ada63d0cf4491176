"""A dithered night of a colour camera over a made-up field: frames in memory, their maps, and the true co-add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import twins_colour as truth

from zemosaic_core.cfa import CfaColour, debayer
from zemosaic_core.coadd import coadd_block
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox
from zemosaic_core.refine import RefineSource, gather_block
from zemosaic_core.refine_structure import refined, share_of_channels, structure_mask
from zemosaic_core.sources import CoaddSource, CombineRule, SampleNoise

NOISE = 14.0
COLOUR = CfaColour(tuple(truth.SKY), (NOISE,) * 3, tuple(truth.STAR))


class Frames:
    """Raw frames in memory, as the co-add and its second pass read them."""

    def __init__(self, raws, pattern, *, missing=(), weights=None):
        self.raws, self.pattern, self.weights = raws, pattern, weights
        self.missing = dict(missing)

    def read(self, key, y0, y1, x0, x1):
        raw = self.raws[key]
        if not self.pattern:
            return np.ascontiguousarray(raw[None, y0:y1, x0:x1], np.float32)
        return np.ascontiguousarray(debayer(raw, self.pattern, colour=COLOUR)[:, y0:y1, x0:x1])

    def read_samples(self, key, y0, y1, x0, x1):
        samples = self.raws[key].astype(np.float32)
        samples.ravel()[self.missing.get(key, [])] = np.nan
        return samples[y0:y1, x0:x1]

    def read_weight(self, key, y0, y1, x0, x1):
        return None if self.weights is None else self.weights[y0:y1, x0:x1]

    def read_raw(self, key, y0, y1):
        return None


@dataclass(frozen=True)
class Night:
    """``field`` is the truth on the grid of the mosaic; ``sources`` as the second pass takes them."""

    field: truth.Field
    frames: Frames
    sources: list
    scale: float

    @property
    def coadd_sources(self):
        return [item.source for item in self.sources]

    @property
    def rule(self):
        channels = len(self.sources[0].limit)
        noise = SampleNoise((0.8 * NOISE**2,) * channels, tuple(truth.SKY[:channels]))
        return CombineRule(noise=noise)


def _stars(field, x, y, fwhms, shape_hw, n_channels, wider):
    out = np.ones((n_channels, *shape_hw)) * truth.SKY[:n_channels, None, None]
    for k in range(len(x)):
        a, b = round(y[k]), round(x[k])
        ys, xs = (
            slice(max(0, a - 14), min(shape_hw[0], a + 15)),
            slice(max(0, b - 14), min(shape_hw[1], b + 15)),
        )
        if ys.start >= ys.stop or xs.start >= xs.stop:
            continue
        yy, xx = np.mgrid[ys, xs]
        r2 = (xx - x[k]) ** 2 + (yy - y[k]) ** 2
        for c in range(n_channels):
            out[c, ys, xs] += field.colours[k, c] / wider**2 * truth.moffat(r2, wider * fwhms[c])
    return out


def night(
    n,
    colours,
    *,
    fwhm=2.4,
    pattern="GRBG",
    across=8,
    seed=0,
    noise=NOISE,
    dither=9.0,
    turn=0.01,
    feather=0.0,
    scale=1.0,
    gains=True,
    field_seed=0,
    noise_seed=None,
    seeing=0.0,
) -> Night:
    """Render `n` frames; ``field.truth`` are the planes that a perfect co-add has."""  # fmt: skip
    rng = np.random.default_rng(seed)
    base = truth.star_field(colours, fwhm=fwhm, seed=field_seed, across=across)
    n_channels = 3 if pattern else 1
    fwhms = np.broadcast_to(np.asarray(fwhm, float), (3,))
    size = truth.CELL * across
    out_hw = (round(size * scale), round(size * scale))
    # Widths of the frames; the co-add has the mean of their profiles.
    spread = np.exp(seeing * np.random.default_rng(seed + 500).normal(size=n)) if seeing else np.ones(1)
    planes = np.mean(
        [
            _stars(base, scale * base.x, scale * base.y, fwhms * scale, out_hw, n_channels, wider)
            for wider in spread
        ],
        axis=0,
    )
    field = truth.Field(planes, scale * base.x, scale * base.y, base.colours)
    raws, sources, mid = {}, [], size / 2
    seed_of_noise = 1000 * (seed if noise_seed is None else 7000 + noise_seed)
    for key in range(n):
        angle = turn * rng.uniform(-1, 1)
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = rng.uniform(-dither, dither, 2)

        def to_source(x, y, cos=cos, sin=sin, dx=dx, dy=dy):
            u, v = x / scale - mid, y / scale - mid
            return cos * u + sin * v + mid + dx, -sin * u + cos * v + mid + dy

        def to_output(x, y, cos=cos, sin=sin, dx=dx, dy=dy):
            u, v = x - mid - dx, y - mid - dy
            return scale * (cos * u - sin * v + mid), scale * (sin * u + cos * v + mid)

        x, y = to_source(field.x, field.y)
        gain = rng.uniform(0.9, 1.1) if gains else 1.0
        offset = rng.uniform(-40, 40) if gains else 0.0
        wider = spread[key % len(spread)]
        light = _stars(field, x, y, fwhms, (size, size), n_channels, wider)
        light = (light - offset) / gain
        sky = np.random.default_rng(seed_of_noise + key)
        if pattern:
            raws[key] = truth.through_filters(light, pattern, noise=noise, seed=seed_of_noise + key)
        else:
            raws[key] = np.round(light[0] + sky.normal(0, noise, light.shape[1:])).astype(np.float32)
        bbox = footprint_bbox(to_output, (size, size), out_hw, margin=4)
        terms = np.tile(np.array([gain, offset, 0, 0], np.float32), (n_channels, 1))
        source = CoaddSource(
            key,
            (size, size),
            build_pixel_map(to_source, bbox),
            bbox,
            terms,
            np.ones(n_channels, np.float32),
            feather,
            feather_start=0.1 * (key % 5),
        )
        to_grid = build_pixel_map(to_output, (0, size, 0, size))
        sources.append(
            RefineSource(
                source,
                to_grid,
                pattern,
                np.full(n_channels, 5 * gain * NOISE, np.float32),
                truth.SKY[:n_channels],
                0.5 * (scale * fwhms[1]) ** 2 * (wider**2 - np.mean(spread**2)) / (8 * np.log(2)),
            )
        )
    return Night(field, Frames(raws, pattern), sources, scale)


def coadd(made: Night, y0=0, y1=None):
    height, width = made.field.truth.shape[1:]
    return coadd_block(
        made.frames, made.coadd_sources, y0, height if y1 is None else y1, width, len(made.field.truth), made.rule,
        "lanczos3", threads=1,
    )  # fmt: skip


def refine(made: Night, block, *, threads=1):
    """Return image and variance after the second pass over the whole grid, and the mask."""
    height = block.image.shape[1]
    mask = structure_mask(
        block.image, block.weight, made.rule.noise.variance, block.coverage, slice(0, height)
    )
    gathered = gather_block(
        made.frames, made.sources, block.image, 0, mask, 0, scale=made.scale, threads=threads
    )
    shares = share_of_channels(made.frames.pattern)
    return (*refined(block.image, block.variance, gathered, mask, block.weight, shares, made.scale), mask)
