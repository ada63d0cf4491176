from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from zemosaic_core.measure_pass import measure_raw
from zemosaic_core.synthetic_galaxy import Galaxy
from zemosaic_core.synthetic_sky import (
    FrameSetup,
    Satellite,
    make_hot_pixels,
    make_sky,
    render_frame,
    star_pixels,
    tan_cards,
)

SHAPE = (960, 720)


def observe(seed=3, galaxy=None, density=90.0, **changes):
    sky = make_sky((10.6, 41.2), 0.9, seed=seed, stars_per_deg2=density, galaxy=galaxy)
    cards = tan_cards(10.6, 41.2, rotation_deg=33.0, shape_hw=SHAPE)
    setup = FrameSetup(cards, shape_hw=SHAPE, seed=(seed, 1), **changes)
    rows, x, y = star_pixels(sky, setup)
    return render_frame(sky, setup), (sky.flux[rows], x, y), setup


def match(found, x, y, radius=1.5):
    distance, index = cKDTree(np.c_[x, y]).query(np.c_[found.x, found.y])
    return distance < radius, index


def mono(fwhm, seed=0, shape=(512, 512), n=300, noise=30.0, brightest=4.6):
    """Mono frame of stars integrated over their pixels, peaks from 3 sigma up."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    sigma = fwhm / 2.3548
    at = rng.uniform(8, min(shape) - 9, (n, 2))
    at = at[cKDTree(at).query(at, k=2)[0][:, 1] > 9]
    flux = 10 ** rng.uniform(2.2, brightest, len(at))
    light = np.zeros(shape)
    fine = (np.arange(5) - 2) / 5
    for (sy, sx), f in zip(at, flux, strict=True):
        j, i = int(sy), int(sx)
        part = np.s_[max(j - 12, 0) : j + 13, max(i - 12, 0) : i + 13]
        gy = sum(np.exp(-((y[part][:, 0] + e - sy) ** 2) / (2 * sigma**2)) for e in fine) / 5
        gx = sum(np.exp(-((x[part][0] + e - sx) ** 2) / (2 * sigma**2)) for e in fine) / 5
        light[part] += f / (2 * np.pi * sigma**2) * np.outer(gy, gx)
    plane = np.clip(800 + light + rng.normal(0, 1, shape) * np.sqrt(noise**2 + light), 0, 65535)
    return plane.astype(np.uint16), at, flux, flux / (noise * np.sqrt(4 * np.pi) * max(sigma, 1.0))


@pytest.mark.parametrize("fwhm", [1.6, 1.9, 2.2, 3.0])
def test_sharp_stars_of_a_mono_camera_are_stars(fwhm):
    kept = wanted = false = 0
    errors = []
    for seed in range(3):
        plane, at, _flux, snr = mono(fwhm, seed)
        found = measure_raw(plane, None).stars
        distance, _ = cKDTree(np.c_[found.x, found.y]).query(at[:, ::-1])
        kept += np.count_nonzero(distance[snr > 10] < 1.0)
        wanted += np.count_nonzero(snr > 10)
        apart, index = cKDTree(at[:, ::-1]).query(np.c_[found.x, found.y])
        false += np.count_nonzero(apart > 1.5)
        bright = (apart < 1.0) & (snr[index] > 100)
        errors.append(np.c_[found.x, found.y][bright] - at[index[bright], ::-1])
    assert wanted > 200
    assert kept >= 0.95 * wanted
    assert false <= 0.01 * wanted
    errors = np.concatenate(errors)
    assert np.sqrt((errors**2).mean()) < 0.04
    assert np.abs(errors.mean(axis=0)).max() < 0.01


@pytest.mark.parametrize("fwhm", [4.5, 6.0, 8.0])
def test_a_frame_out_of_focus_keeps_its_wide_stars_and_says_how_wide_they_are(fwhm):
    plane, at, _flux, snr = mono(fwhm, 1, n=200, brightest=5.4)
    found = measure_raw(plane, None).stars
    distance, _ = cKDTree(np.c_[found.x, found.y]).query(at[snr > 30][:, ::-1])
    # Stars stand at least 9 px apart: some of the widest run into each other.
    assert (distance < 1.0).mean() > (0.97 if fwhm < 8 else 0.9)
    assert np.median(found.fwhm_px[found.snr > 30]) == pytest.approx(fwhm, rel=0.06)


@pytest.mark.parametrize("floor", [770, 800, 815])
def test_a_sky_cut_off_at_zero_keeps_its_stars_and_its_noise(floor):
    plane, at, _flux, snr = mono(2.4, 2)
    whole = measure_raw(plane, None)
    cut = measure_raw(np.clip(plane.astype(int) - floor, 0, 65535).astype(np.uint16), None)
    distance, _ = cKDTree(np.c_[cut.stars.x, cut.stars.y]).query(at[snr > 10][:, ::-1])
    assert (distance < 1.0).mean() > 0.98
    # What is left of the noise is skewed: a few of the faintest more.
    assert abs(len(cut.stars) - len(whole.stars)) <= 0.1 * len(whole.stars)
    np.testing.assert_allclose(cut.noise, whole.noise, rtol=0.1)
    # Faint stars go on being found: the mesh is the mean of what is left.
    left = np.clip(np.random.default_rng(0).normal(800 - floor, 30, 100_000), 0, None).mean()
    assert np.nanmedian(cut.mesh) == pytest.approx(left, abs=1.5)


@pytest.mark.parametrize("fwhm", [2.2, 3.0])
def test_bright_stars_are_centred_to_a_twentieth_of_a_pixel(fwhm):
    errors = []
    for seed in (3, 4, 5):
        frame, (_, x, y), _ = observe(seed=seed, fwhm_px=fwhm)
        stars = measure_raw(frame, "GRBG").stars
        found, index = match(stars, x, y)
        alone = cKDTree(np.c_[x, y]).query(np.c_[x, y], k=2)[0][:, 1][index] > 12.0
        bright = found & (stars.snr > 150) & ~stars.saturated & alone
        errors.append(np.c_[stars.x[bright] - x[index[bright]], stars.y[bright] - y[index[bright]]])
    errors = np.concatenate(errors)
    assert len(errors) > 15
    assert np.sqrt((errors**2).mean()) < 0.05
    assert np.abs(errors.mean(axis=0)).max() < 0.02


def test_nearly_all_detections_are_stars_in_spite_of_defects_and_a_satellite():
    hot = make_hot_pixels(SHAPE, count=150, seed=1)
    frame, (_, x, y), _ = observe(
        hot_pixels=hot, n_cosmics=30, satellites=(Satellite(0, 100, 720, 800, 1.3, 1500.0),)
    )
    measured = measure_raw(frame, "GRBG")
    found, _ = match(measured.stars, x, y)
    assert len(measured.stars) > 60
    assert np.count_nonzero(~found) <= 0.02 * len(measured.stars)
    assert np.isin(hot.flat[hot.adu > 1500], measured.defects).mean() > 0.9


def test_almost_all_bright_stars_are_found_saturated_ones_too():
    frame, (flux, x, y), _ = observe()
    measured = measure_raw(frame, "GRBG")
    inside = (x > 8) & (x < SHAPE[1] - 9) & (y > 8) & (y < SHAPE[0] - 9) & (flux.mean(axis=1) > 12000)
    alone = cKDTree(np.c_[x, y]).query(np.c_[x, y], k=2)[0][:, 1] > 10.0
    wanted = inside & alone
    distance, _ = cKDTree(np.c_[measured.stars.x, measured.stars.y]).query(np.c_[x[wanted], y[wanted]])
    assert wanted.sum() > 15
    assert (distance < 1.0).mean() > 0.97
    cut = np.minimum(frame, 9000)
    below = measure_raw(cut, "GRBG")
    assert len(below.stars) >= 0.98 * len(measured.stars)
    tops = np.array(
        [
            cut[int(b) : int(b) + 2, int(a) : int(a) + 2].max()
            for a, b in zip(below.stars.x, below.stars.y, strict=True)
        ]
    )
    assert below.stars.saturated.sum() >= 3
    np.testing.assert_array_equal(below.stars.saturated[tops >= 9000], True)
    assert (tops[below.stars.saturated] > 8500).all()
    assert (below.ceiling[:, 0] == 9000).all()
    assert (below.ceiling[:, 2] >= 3).all()


def test_galaxy_core_and_knots_do_not_pass_for_stars():
    frame, (_, x, y), _ = observe(galaxy=Galaxy(radius_deg=0.8))
    stars = measure_raw(frame, "GRBG").stars
    found, _ = match(stars, x, y)
    assert found.mean() > 0.85
    plain = measure_raw(observe()[0], "GRBG").stars
    assert np.median(stars.fwhm_px) == pytest.approx(np.median(plain.fwhm_px), rel=0.08)


def test_light_of_each_colour_follows_its_transparency_and_width_the_seeing():
    clear = measure_raw(observe(fwhm_px=2.4)[0], "GRBG")
    dim = measure_raw(observe(fwhm_px=2.4, transparency=(0.8, 0.6, 0.5))[0], "GRBG")
    wide = measure_raw(observe(fwhm_px=3.6)[0], "GRBG")
    found, index = match(dim.stars, clear.stars.x, clear.stars.y)
    bright = found & (dim.stars.snr > 80) & (clear.stars.peak[index] < 40000)
    ratio = dim.channel_flux[:, bright] / clear.channel_flux[:, index[bright]]
    np.testing.assert_allclose(np.nanmedian(ratio, axis=1), [0.8, 0.6, 0.5], atol=0.015)
    assert np.median(wide.stars.fwhm_px) > np.median(clear.stars.fwhm_px) + 0.7


def test_light_is_that_of_all_pixels_whatever_filters_are_over_them():
    """Frames of colour cameras, of mono cameras and finished stacks are brought to one scale by it."""
    frame, (flux, x, y), _ = observe()
    colours = measure_raw(frame, "GRBG")
    found, index = match(colours.stars, x, y)
    bright = found & (colours.stars.snr > 80) & (colours.stars.peak < 40000)
    ratio = colours.channel_flux[:, bright] / flux[index[bright]].T
    np.testing.assert_allclose(np.nanmedian(ratio, axis=1), 1.0, atol=0.08)
    plane, at, flux, _ = mono(3.0)
    grey = measure_raw(plane, None)
    found, index = match(grey.stars, at[:, 1], at[:, 0])
    bright = found & (grey.stars.snr > 80)
    assert np.nanmedian(grey.channel_flux[0, bright] / flux[index[bright]]) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("pattern", ["GRBG", "RGGB", "GBRG", "BGGR"])
def test_every_pattern_tells_the_same_sky_and_colours(pattern):
    frame, _, _ = observe()
    y0, x0 = {"GRBG": (0, 0), "RGGB": (0, 1), "BGGR": (1, 0), "GBRG": (1, 1)}[pattern]
    part, whole = measure_raw(frame[y0:, x0:].copy(), pattern), measure_raw(frame, "GRBG")
    np.testing.assert_allclose(part.sky, whole.sky, rtol=0.005)
    np.testing.assert_allclose(part.noise, whole.noise, rtol=0.03)
    distance, index = cKDTree(np.c_[whole.stars.x - x0, whole.stars.y - y0]).query(
        np.c_[part.stars.x, part.stars.y]
    )
    assert (distance < 0.05).mean() > 0.95
    same = (distance < 0.05) & (part.stars.snr > 100)
    np.testing.assert_allclose(
        np.nanmedian(part.channel_flux[:, same] / whole.channel_flux[:, index[same]], axis=1), 1.0, atol=0.01
    )


def test_mesh_and_noise_of_the_colours_are_those_of_the_sky():
    slope = (0.3, -0.2, 0.0, 0.0, 0.0)
    frame, _, setup = observe(density=30.0, sky_shape=slope)
    measured = measure_raw(frame, "GRBG")
    level = np.array(setup.sky_adu)
    truth = np.sqrt(14.3 * level + 14.3**2 + 3.2**2 / 12)
    np.testing.assert_allclose(measured.noise, truth, rtol=0.03)
    # Stars too faint to be clipped lift it.
    np.testing.assert_allclose(measured.sky, 440 + level, atol=8)
    t, u = np.meshgrid(*(2 * (np.arange(n // 64) * 64 + 31.5) / (n - 1) - 1 for n in SHAPE), indexing="ij")
    shape = 1 + slope[0] * u + slope[1] * t
    # Steps of 3.2 ADU are cut to whole numbers: 0.4 ADU on average.
    expected = 440 - 0.4 + level[:, None, None] * shape
    difference = measured.mesh[:, : shape.shape[0], : shape.shape[1]] - expected
    # Few electrons make a skewed distribution: its middle lies 2 ADU below its mean, in every frame alike.
    assert np.abs(np.nanmedian(difference, axis=(1, 2))).max() < 3.0
    scaled = difference / measured.mesh_noise[:, : shape.shape[0], : shape.shape[1]]
    # Faint stars lift the level a little; the rest is as uncertain as is said.
    spread = 1.4826 * np.nanmedian(
        np.abs(scaled - np.nanmedian(scaled, axis=(1, 2))[:, None, None]), axis=(1, 2)
    )
    np.testing.assert_allclose(spread, 1.0, atol=0.3)


def test_missing_pixels_cost_only_the_stars_in_them():
    frame, _, _ = observe()
    missing = np.zeros(SHAPE, bool)
    missing[:, 300:420] = True
    whole = measure_raw(frame, "GRBG").stars
    holed = measure_raw(np.where(missing, 0, frame).astype(np.uint16), "GRBG", missing=missing)
    part = holed.stars
    assert not ((part.x > 302) & (part.x < 417)).any()
    far = (whole.x < 250) | (whole.x > 470)
    distance, _ = cKDTree(np.c_[part.x, part.y]).query(np.c_[whole.x[far], whole.y[far]])
    assert (distance < 0.1).mean() > 0.95
    assert np.isnan(holed.mesh[:, :, 5]).all()
    assert len(holed.defects) < 20


def test_a_trailed_frame_keeps_its_long_stars():
    stars = measure_raw(observe(trail_px=9.0, trail_angle_deg=20.0)[0], "GRBG").stars
    good = measure_raw(observe()[0], "GRBG").stars
    assert len(stars) > 25
    assert np.median(stars.elongation) > 1.6 > np.median(good.elongation)


@pytest.mark.parametrize("pattern", ["GRBG", None])
def test_frames_without_stars_have_none(pattern):
    rng = np.random.default_rng(0)
    noise = rng.normal(900.0, 60.0, (500, 500)).astype(np.uint16)
    assert len(measure_raw(noise, pattern).stars) <= 1
    y, x = np.mgrid[0:300, 0:300]
    for plane in (
        np.full((300, 300), 500),
        np.full((300, 300), 65535),
        1000 * ((y + x) % 2),
        20 * x + 10 * y,
        rng.integers(0, 65536, (300, 300)),
    ):
        measured = measure_raw(plane.astype(np.uint16), pattern)
        assert len(measured.stars) <= 1
        assert measured.mesh.shape == ((3 if pattern else 1), 5, 5)


def test_half_of_a_frame_in_the_dark_costs_the_stars_of_that_half_only():
    frame, (_, _x, _y), _ = observe()
    dark = frame.copy()
    dark[:, 360:] = 0
    whole, half = measure_raw(frame, "GRBG").stars, measure_raw(dark, "GRBG").stars
    assert not (half.x > 366).any()
    # The cell across the edge has no sky of its own; what it says reaches into the middle of its neighbour.
    near = whole.x < 288
    distance, _ = cKDTree(np.c_[half.x, half.y]).query(np.c_[whole.x[near], whole.y[near]])
    assert (distance < 0.1).mean() > 0.95


def test_the_frame_is_only_read_and_the_list_sorted_and_cut():
    frame, _, _ = observe()
    before = frame.copy()
    measured = measure_raw(frame, "GRBG", max_stars=20)
    np.testing.assert_array_equal(frame, before)
    assert len(measured.stars) == 20 < measured.n_found
    assert (np.diff(measured.stars.flux) <= 0).all()
    assert measured.channel_flux.shape == (3, 20)
    again = measure_raw(frame, "GRBG", max_stars=20)
    np.testing.assert_array_equal(again.stars.x, measured.stars.x)
