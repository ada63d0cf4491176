"""Two halves of a night, each through the whole program: how far apart their red and blue stars lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from made_frames import SHAPE_HW, field_sky, pointings, run, write_all

from zemosaic_core.synthetic_sky import NOMINAL_SCALE_ARCSEC, Camera

CAMERA = Camera()
REACH_PX, FWHM = 4.0, 2.4
DY, DX = np.mgrid[-5:6, -5:6]


def moffat(x, y, place, fwhm):
    """Profile of a star (1 at its peak) and its slopes with the place."""
    wide = (fwhm / 2) ** 2 / (2 ** (1 / 3) - 1)
    base = 1 + ((x - place[0]) ** 2 + (y - place[1]) ** 2) / wide
    slope = 6 / wide * base**-4
    return base**-3, slope * (x - place[0]), slope * (y - place[1])


def variance(light):
    return (
        CAMERA.adu_per_electron * np.maximum(light, 0) + (CAMERA.adu_per_electron * CAMERA.read_noise_e) ** 2
    )


def samples_around(place):
    x, y = round(float(place[0])) + DX, round(float(place[1])) + DY
    near = np.hypot(x - place[0], y - place[1]) <= REACH_PX
    return x[near], y[near]


def fitted_place(plane, start, sky_adu):
    """Place (px) by a weighted fit of profile, peak and background."""
    x, y = samples_around(start)
    values = plane[y, x]
    background = float(np.median(values))
    p = np.array([*start, float(values.max()) - background, background])
    for _ in range(10):
        profile, by_x, by_y = moffat(x, y, p, 1.05 * FWHM)
        jacobian = np.stack([p[2] * by_x, p[2] * by_y, profile, np.ones_like(profile)], -1)
        weight = 1 / variance(sky_adu + p[2] * profile)
        normal = jacobian.T @ (jacobian * weight[:, None])
        p += np.linalg.solve(normal, jacobian.T @ (weight * (values - p[3] - p[2] * profile)))
    return p[:2]


def information(setups, lattices, star, flux, channel):
    """What the photons of a colour's own samples tell of a star's place in all frames, px^-2; None where some miss it.

    The inverse of the covariance of a place whose peak is fitted beside it, summed over frames.
    """
    total = np.zeros((2, 2))
    for setup, lattice in zip(setups, lattices, strict=True):
        place = np.array(lattice.all_world2pix(*star, 0), float)
        if not all(6 < at < size - 6 for at, size in zip(place, SHAPE_HW[::-1], strict=True)):
            return None
        x, y = samples_around(place)
        own = np.array(list(CAMERA.pattern)).reshape(2, 2)[y % 2, x % 2] == "RGB"[channel]
        profile, by_x, by_y = moffat(x, y, place, setup.fwhm_px)
        peak = flux * 2 / (np.pi * (setup.fwhm_px / 2) ** 2 / (2 ** (1 / 3) - 1))
        jacobian = np.stack([peak * by_x, peak * by_y, profile], -1)[own]
        weight = 1 / variance(setup.sky_adu[channel] + peak * profile[own])
        total += np.linalg.inv(np.linalg.inv(jacobian.T @ (jacobian * weight[:, None]))[:2, :2])
    return total


def lone_stars(sky):
    """Stars bright enough to be placed to a tenth of a pixel, not saturated, and without a neighbour."""
    east, north = (sky.ra_deg - sky.ra_deg.mean()) * np.cos(np.radians(sky.dec_deg)), sky.dec_deg
    for k in np.flatnonzero((sky.flux[:, 1] > 700) & (sky.flux.max(axis=1) < 120_000)):
        near = np.hypot(east - east[k], north - north[k]) < 14 * NOMINAL_SCALE_ARCSEC / 3600
        if (sky.flux[near, 1] > 0.03 * sky.flux[k, 1]).sum() == 1:
            yield k


@pytest.mark.slow
def test_red_and_blue_stars_of_two_halves_agree(tmp_path):
    seed, sky = 6, field_sky(seed=6, size_deg=0.5)
    seeing = FWHM * (1 + 0.05 * np.random.default_rng([seed, 5]).standard_normal(30))
    setups = [
        replace(setup, fwhm_px=float(fwhm), transparency=(1.0, 1.0, 1.0))
        for setup, fwhm in zip(pointings(n=30, seed=seed, turn_deg=0.3), seeing, strict=True)
    ]
    halves = []
    for half in (0, 1):
        write_all(tmp_path / f"raw{half}", sky, setups[half::2])
        result = run(tmp_path / f"raw{half}", tmp_path / f"out{half}")
        assert result.report["frames_used"] == 15
        halves.append((result, setups[half::2], [WCS(setup.cards) for setup in setups[half::2]]))
    apart = []
    for k in lone_stars(sky):
        star = (sky.ra_deg[k], sky.dec_deg[k])
        for channel in (0, 2):
            known = [
                information(own, lattices, star, sky.flux[k, channel], channel) for _, own, lattices in halves
            ]
            if any(one is None for one in known):
                continue
            allowed = np.sqrt(sum(np.trace(np.linalg.inv(one)) for one in known) / 2)
            if allowed > 0.1:
                continue
            places = [
                fitted_place(one.image[channel], one.wcs.all_world2pix(*star, 0), setups[0].sky_adu[channel])
                for one, _, _ in halves
            ]
            sky_places = [
                one.wcs.all_pix2world(*place, 0) for (one, _, _), place in zip(halves, places, strict=True)
            ]
            first, second = (
                np.array(halves[0][0].wcs.all_world2pix(*place, 0), float) for place in sky_places
            )
            apart.append((first - second) / allowed)
    assert len(apart) >= 15
    assert np.sqrt(np.mean(np.square(apart))) < 1.4
