from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_core.missing_data import constant_share, has_empty_border, zeros_to_nan


def picture(seed=0, shape=(3, 200, 160), level=700.0):
    return np.random.default_rng(seed).normal(level, 10, shape).astype(np.float32)


def turned_frame(shape_hw, angle_deg=5.0):
    """True where a rectangle that lies askew in the picture covers it."""
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]] - np.array(shape_hw)[:, None, None] / 2
    a = np.deg2rad(angle_deg)
    u, v = x * np.cos(a) + y * np.sin(a), -x * np.sin(a) + y * np.cos(a)
    return (abs(u) < 0.47 * shape_hw[1]) & (abs(v) < 0.47 * shape_hw[0])


def test_empty_border_is_recognised():
    planes = picture()
    assert not has_empty_border(planes)
    planes[:, ~turned_frame((200, 160))] = 0
    assert has_empty_border(planes)
    assert has_empty_border(planes[0])
    assert has_empty_border(planes.astype(np.uint16))


def test_dark_sky_and_dead_pixels_are_no_border():
    rng = np.random.default_rng(1)
    clipped = np.maximum(picture(level=3.0), 0)
    clipped[:, rng.random((200, 160)) < 0.3] = 0
    assert not has_empty_border(clipped)
    dead = picture()
    dead[:, 0, 5:9] = 0
    dead[:, 100, 100] = 0
    assert not has_empty_border(dead)
    one_plane = picture()
    one_plane[0, :40] = 0
    assert not has_empty_border(one_plane)
    assert not has_empty_border(np.zeros((3, 20, 20)))


def test_emptiness_becomes_nan_with_its_rim():
    planes = picture()
    covered = turned_frame((200, 160))
    planes[:, ~covered] = 0
    whole = zeros_to_nan(planes, (slice(0, 200), slice(0, 160)))
    kept = ndimage.binary_erosion(covered, np.ones((5, 5)), border_value=1)
    np.testing.assert_array_equal(np.isfinite(whole[0]), kept)
    np.testing.assert_array_equal(whole[:, kept], planes[:, kept])
    # A window equals the same window of the whole.
    part = zeros_to_nan(planes[:, 38:112, 18:92], (slice(2, 72), slice(2, 72)))
    np.testing.assert_array_equal(part, whole[:, 40:110, 20:90])


@pytest.mark.parametrize("value", [0, 32768])
@pytest.mark.parametrize("first_row", [100, 260])
def test_a_tail_of_one_value_is_found(value, first_row):
    raw = picture(shape=(320, 256)).astype(np.uint16)
    raw[first_row:] = value
    # Nothing is brighter than the emptiness.
    assert constant_share(raw, zero_bytes=value) == pytest.approx(1 - first_row / 320, abs=0.1)
    raw[5, 5] = 65535
    assert constant_share(raw) == pytest.approx(1 - first_row / 320, abs=0.1)


def test_what_a_sensor_may_give_is_not_damage():
    raw = picture(shape=(320, 256)).astype(np.uint16)
    assert constant_share(raw) == 0
    raw[64:200, 64:200] = 4095
    assert constant_share(raw) == 0
    assert constant_share(np.full((320, 256), 7, np.uint16)) == 0
    # Eight bits, hardly any noise.
    quiet = np.random.default_rng(2).choice([3, 4], (320, 256), p=[0.9999, 0.0001]).astype(np.uint16)
    quiet[::40, ::40] = 200
    assert constant_share(quiet) == 0
    assert constant_share(raw[:20, :20]) == 0
    floats = picture(shape=(320, 256))
    floats[64:128] = np.nan
    assert constant_share(floats) == 0
