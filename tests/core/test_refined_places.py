"""Places of red and blue stars in two halves of a night, against what the photons of their own samples allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import refine_cases as cases
import twins_colour as truth

from zemosaic_core.cfa import CfaColour
from zemosaic_core.pixel_map import map_row
from zemosaic_core.refine import gather_block
from zemosaic_core.refine_structure import refined, share_of_channels, structure_mask

PEDESTAL, ADU_PER_ELECTRON = 440.0, 14.3
FWHM, REACH, ACROSS = 2.4, 4.0, 5


def variance(level):
    """ADU^2 of photons and one electron of read-out noise."""
    return ADU_PER_ELECTRON * np.maximum(level - PEDESTAL, 0) + ADU_PER_ELECTRON**2


def half_a_night(seed, half, n):
    """Frames with photon noise, whose seeing scatters by 5 %."""
    white = [20000.0 * truth.STAR]
    made = cases.night(
        n, white, fwhm=FWHM, across=ACROSS, seed=100 * seed + half, field_seed=seed, seeing=0.05, noise=0.0
    )
    rng = np.random.default_rng([seed, half])
    raws = {}
    for key, raw in made.frames.raws.items():
        electrons = rng.poisson((raw - PEDESTAL) / ADU_PER_ELECTRON) + rng.normal(0, 1, raw.shape)
        raws[key] = np.round(PEDESTAL + ADU_PER_ELECTRON * electrons).astype(np.uint16)
    return replace(made, frames=cases.Frames(raws, made.frames.pattern))


def fitted(x, y, values, channel, start):
    """Place of a star by a weighted fit of its profile, and the error (px) that its noise allows along an axis."""
    p = np.array(start, float)
    wide = (FWHM / 2) ** 2 / (2 ** (1 / 3) - 1)
    sky = truth.SKY[channel]
    for _ in range(8):
        base = 1 + ((x - p[0]) ** 2 + (y - p[1]) ** 2) / wide
        profile, slope = base**-3, p[2] * 6 / wide * base**-4
        jacobian = np.stack([slope * (x - p[0]), slope * (y - p[1]), profile], axis=-1)
        weight = 1 / variance(sky + p[2] * profile)
        normal = jacobian.T @ (jacobian * weight[:, None])
        p += np.linalg.solve(normal, jacobian.T @ (weight * (values - sky - p[2] * profile)))
    return p[:2], np.sqrt(np.trace(np.linalg.inv(normal)[:2, :2]) / 2)


def bounds(made, channel):
    """What a fit to the untouched samples of all frames could reach for each star, px."""
    field, xs, ys, values = made.field, [], [], []
    for item in made.sources:
        raw, lattice = made.frames.raws[item.source.key].astype(float), item.to_output
        x, y = np.empty(raw.shape), np.empty(raw.shape)
        for row in range(len(raw)):
            map_row(
                lattice.src_x, lattice.src_y, (lattice.y0, lattice.x0, lattice.step), row, 0, x[row], y[row]
            )
        own = truth.own_samples(raw.shape, item.pattern, channel)
        gain, offset = map(float, item.source.photometry[channel][:2])
        xs.append(x[own])
        ys.append(y[own])
        values.append(raw[own] * gain + offset)
    x, y, v = map(np.concatenate, (xs, ys, values))
    found = []
    for sx, sy, peak in zip(field.x, field.y, field.colours[:, channel], strict=True):
        near = np.hypot(x - sx, y - sy) <= REACH
        found.append(fitted(x[near], y[near], v[near], channel, (sx, sy, peak))[1])
    return np.array(found)


def places(made, plane, channel):
    field = made.field
    dy, dx = np.mgrid[-5:6, -5:6]
    found = []
    for sx, sy, peak in zip(field.x, field.y, field.colours[:, channel], strict=True):
        x, y = round(sx) + dx, round(sy) + dy
        near = np.hypot(x - sx, y - sy) <= REACH
        x, y = x[near], y[near]
        place, _ = fitted(x.astype(float), y.astype(float), plane[y, x], channel, (sx, sy, peak))
        found.append(place)
    return np.array(found)


def test_red_and_blue_lie_where_their_samples_say(monkeypatch):
    """In errors that photons allow, 15 frames against 15 others; with means of differences alone it is 1.6."""
    monkeypatch.setattr(cases, "NOISE", float(np.sqrt(variance(truth.SKY).mean())))
    colour = CfaColour(tuple(truth.SKY), tuple(np.sqrt(variance(truth.SKY))), tuple(truth.STAR))
    monkeypatch.setattr(cases, "COLOUR", colour)
    ratios = {"means": [], "refined": []}
    for seed in (71, 72, 73):
        halves = []
        for half in (0, 1):
            made = half_a_night(seed, half, 15)
            block = cases.coadd(made)
            rows = slice(0, block.image.shape[1])
            mask = structure_mask(block.image, block.weight, made.rule.noise.variance, block.coverage, rows)
            sums = gather_block(made.frames, made.sources, block.image, 0, mask, 0)
            nothing = np.zeros_like(sums.total)
            without = replace(sums, weight_x=nothing, weight_y=nothing)
            shares = share_of_channels(made.frames.pattern)
            planes = {
                name: refined(block.image, None, one, mask, block.weight, shares)[0]
                for name, one in (("means", without), ("refined", sums))
            }
            halves.append((made, planes))
        for channel in (0, 2):
            (one, first), (other, second) = halves
            bound = np.hypot(bounds(one, channel), bounds(other, channel))
            for name, found in ratios.items():
                apart = places(one, first[name][channel], channel) - places(
                    other, second[name][channel], channel
                )
                found.append(apart / bound[:, None])
    scatter = {name: float(np.sqrt(np.mean(np.concatenate(found) ** 2))) for name, found in ratios.items()}
    assert scatter["refined"] < 1.4
    assert scatter["means"] > 1.45
