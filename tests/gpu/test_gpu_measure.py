"""The sweeps over raw frames on the simulated card: every number of the processor's, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_core.gpu.measure import GpuSweeps, RawFrame
from zemosaic_core.gpu.windows import Ring
from zemosaic_core.measure_pass import measure_swept, sweep_raw

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")
SIGMA = 5.75


def raw_plane(shape, seed, *, sky=1500.0, noise=40.0, stars=12, width=1.4, hot=20, top=65535, slope=0.0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    light = np.full(shape, sky) + slope * x
    for _ in range(stars):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        light += rng.uniform(20, 900) * noise * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    light += rng.normal(0, noise, shape)
    at = rng.integers(0, light.size, hot)
    light.ravel()[at] += rng.choice([-1, 1], hot) * rng.uniform(4, 60, hot) * noise
    return np.clip(light, 0, top).astype(np.uint16)


def on_card(planes, is_cfa, *, cell_px=64, noise_factor=1.0):
    device = SimulatedDevice(256 << 20)
    sweeps = GpuSweeps(planes[0].shape, is_cfa, detect_sigma=SIGMA, cell_px=cell_px)
    found = sweeps(device, [RawFrame(plane, noise_factor) for plane in planes], Ring(device, 2))
    assert device.peak_bytes() <= sweeps.workload("measure", len(planes), 2).peak(len(planes))
    return found


def assert_same(card, cpu, pattern):
    for name in ("level", "error", "spread", "steps", "sky", "noise", "cut_off"):
        a, b = getattr(card.cells, name), getattr(cpu.cells, name)
        np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
    for name in ("plane", "defects", "defect_sigma", "evidence"):
        np.testing.assert_array_equal(getattr(card, name), getattr(cpu, name), err_msg=name, strict=True)
    for ring in (6, 13):
        a, b = card.find(ring), cpu.find(ring)
        assert a.threshold_sigma == b.threshold_sigma
        for name in ("y", "x", "height", "around", "sky", "noise"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name, strict=True)
    a, b = measure_swept(card, pattern), measure_swept(cpu, pattern)
    np.testing.assert_array_equal(a.stars.x, b.stars.x)
    np.testing.assert_array_equal(a.channel_flux, b.channel_flux)
    return b


@pytest.mark.parametrize("pattern", ["GRBG", None])
def test_every_number_is_the_processors(pattern):
    shape = (154, 203)
    planes = [
        raw_plane(shape, 1),
        raw_plane(shape, 2, noise=3.0, sky=300.0, width=2.6),
        raw_plane(shape, 3, stars=40, top=9000, hot=60),
    ]
    found = on_card(planes, pattern is not None)
    for plane, card in zip(planes, found, strict=True):
        cpu = sweep_raw(plane, pattern is not None, detect_sigma=SIGMA)
        measured = assert_same(card.with_pixels(plane), cpu, pattern)
        assert len(cpu.defects) > 5
        assert len(measured.stars) > 5


def test_skies_that_are_cut_off_steep_or_coarse():
    """Zeros, gradients that leave the histogram, converters of 12 bits, cells of other sizes."""
    shape = (140, 130)
    rng = np.random.default_rng(9)
    planes = [
        np.clip(rng.normal(10, 20, shape), 0, None).astype(np.uint16),
        raw_plane(shape, 4, slope=60.0, noise=2.0, sky=100.0),
        (raw_plane(shape, 5, noise=60.0) >> 4) << 4,
        np.where(np.arange(shape[1]) < 70, 0, raw_plane(shape, 6)).astype(np.uint16),
        np.zeros(shape, np.uint16),
    ]
    for cell_px in (64, 20):
        for plane, card in zip(
            planes, on_card(planes, False, cell_px=cell_px, noise_factor=1.3), strict=True
        ):
            cpu = sweep_raw(plane, False, detect_sigma=SIGMA, cell_px=cell_px, noise_factor=1.3)
            assert_same(card.with_pixels(plane), cpu, None)


def test_a_frame_of_defects_is_left_to_the_processor():
    plane = raw_plane((64, 66), 1, hot=0, stars=0)
    far = np.zeros(plane.shape, bool)
    far[::4, ::4] = True
    spoilt = np.where(far, 60000, plane).astype(np.uint16)
    good, bad = on_card([plane, spoilt], False)
    assert bad is None
    assert good is not None


def test_more_maxima_than_are_kept_lift_the_limit_as_on_the_processor():
    plane = np.full((420, 420), 1000, np.uint16)
    plane += np.random.default_rng(1).integers(0, 4, plane.shape).astype(np.uint16)
    plane[::4, ::4] += np.random.default_rng(2).integers(60, 300, (105, 105)).astype(np.uint16)
    plane[1::4, ::4] = plane[::4, ::4] - 5
    (card,) = on_card([plane], False)
    cpu = sweep_raw(plane, False, detect_sigma=SIGMA)
    assert cpu.find(6).threshold_sigma > SIGMA
    assert_same(card.with_pixels(plane), cpu, None)
