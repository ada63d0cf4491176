from __future__ import annotations

import numpy as np
import pytest
import twins_measure as twins

from zemosaic_core.raw_defects import ceilings, find_defects, isolation, mend_defects, saturation_levels
from zemosaic_core.raw_maxima import find_maxima, smoothing_sums
from zemosaic_core.raw_sky import sky_cells

COLOURS = np.array([[1.0, 0.7], [0.55, 1.0]])


def frame(shape=(150, 140), seed=0, fwhm=2.4, cfa=True, stars=30, defects=25):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    light = np.zeros(shape)
    for _ in range(stars):
        sy, sx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        peak = 10 ** rng.uniform(2.3, 4.8)
        light += peak * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * (fwhm / 2.3548) ** 2))
    # A knot of diffuse light in a corner.
    light += 900 * np.exp(-((x - 30) ** 2 + (y - 110) ** 2) / (2 * 18.0**2))
    if cfa:
        light *= COLOURS[y % 2, x % 2]
    plane = 800 + 1.2 * x + light + rng.normal(0, 40, shape)
    flat = rng.choice(plane.size, defects, replace=False)
    plane.ravel()[flat] += rng.choice([-500.0, 400.0, 900.0, 8000.0], defects)
    return np.clip(plane, 0, 60000).astype(np.uint16)


@pytest.mark.parametrize("shape", [(150, 140), (131, 97)])
@pytest.mark.parametrize("seed", [0, 1])
def test_defects_agree_with_a_plain_search(shape, seed):
    plane = frame(shape, seed)
    cells = sky_cells(plane)
    index, significance = find_defects(plane, cells)
    expected = twins.defects(plane, cells.sky, cells.noise, 64, 6.0)
    assert index.tolist() == sorted(expected)
    assert len(index) > 8
    np.testing.assert_allclose(significance, [expected[k] for k in index.tolist()], rtol=1e-4)


def test_isolation_agrees_with_plain_numpy_also_at_the_border():
    plane = frame()
    patch, values = np.empty((7, 7), np.float32), np.empty(12, np.float32)
    for y, x in ((0, 0), (1, 139), (149, 2), (70, 0), (75, 81), (3, 3)):
        np.testing.assert_allclose(
            isolation(plane, y, x, patch, values), twins.isolation(plane, y, x), rtol=1e-4
        )


def test_the_list_of_defects_has_an_end():
    plane = frame(defects=400)
    cells = sky_cells(plane)
    whole, _ = find_defects(plane, cells)
    part, _ = find_defects(plane, cells, capacity=5)
    assert len(whole) > 50
    np.testing.assert_array_equal(part, whole[:5])


def test_mending_looks_at_the_old_pixels_only():
    plane = frame()
    index = np.array([4 * 140 + 4, 4 * 140 + 6, 0, 149 * 140 + 139])
    mended = plane.copy()
    mend_defects(mended, index)
    for k in index.tolist():
        assert mended.ravel()[k] == int(twins.isolation(plane, k // 140, k % 140)[2])
    changed = np.flatnonzero((mended != plane).ravel())
    assert set(changed.tolist()) <= set(index.tolist())


@pytest.mark.parametrize("cfa", [True, False])
@pytest.mark.parametrize(("shape", "ring_px"), [((150, 140), 6), ((131, 97), 6), ((131, 97), 13)])
def test_maxima_agree_with_a_plain_search(cfa, shape, ring_px):
    plane = frame(shape, 3, cfa=cfa)
    cells = sky_cells(plane)
    found = find_maxima(plane, cells, cfa, threshold_sigma=5.0, ring_px=ring_px)
    sky, noise, per_pixel = smoothing_sums(cells, cfa)
    expected = twins.maxima(plane, cfa, sky, noise, 64, 5.0, ring_px)
    assert len(expected) > 15
    rows = zip(*(v.tolist() for v in (found.y, found.x, found.height, found.around)), strict=True)
    assert list(rows) == expected
    assert per_pixel == pytest.approx(1 / 576 if cfa else 1 / 144)


@pytest.mark.parametrize("cfa", [True, False])
def test_noise_of_the_smoothed_light_is_what_the_sky_says(cfa):
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:256, 0:256]
    unequal = (40 * COLOURS[y % 2, x % 2]) if cfa else 40.0
    plane = np.clip(
        rng.normal(1000, 1, (256, 256)) + unequal * rng.normal(0, 1, (256, 256)), 0, 65535
    ).astype(np.uint16)
    sky, noise, _ = smoothing_sums(sky_cells(plane), cfa)
    smooth = twins.smoothed(plane, cfa)[4:-4, 4:-4]
    assert noise.mean() == pytest.approx(smooth.std(), rel=0.05)
    assert sky.mean() == pytest.approx(smooth.mean(), rel=1e-3)


def test_more_maxima_than_there_is_room_for_are_searched_again_with_a_higher_limit():
    y, x = np.mgrid[0:700, 0:700]
    rng = np.random.default_rng(0)
    peaks = np.where((y % 7 == 3) & (x % 7 == 3), rng.uniform(200, 3000, (700, 700)), 0)
    plane = (
        1000 + rng.normal(0, 5, (700, 700)) + peaks + 0.3 * np.roll(peaks, 1, 0) + 0.3 * np.roll(peaks, 1, 1)
    )
    found = find_maxima(
        plane.astype(np.uint16), sky_cells(plane.astype(np.uint16)), False, threshold_sigma=5.0
    )
    assert found.threshold_sigma > 5.0
    assert 1000 < len(found) <= 8192
    # They are all over the frame, not only in its upper part.
    assert found.y.max() > 680


def test_a_cut_core_is_a_plateau_and_a_hot_pixel_is_not():
    plane = frame(stars=0, defects=0)
    plane[40, 40] = 65535
    assert (saturation_levels(ceilings(plane)) == 65535).all()
    # A core of 7 x 7 px, cut off at 30,000 and a little uneven.
    plane[70:77, 50:57] = 30000 - np.arange(49).reshape(7, 7)
    evidence = ceilings(plane)
    assert (evidence[:, 0] >= 29950).all()
    assert (evidence[:, 0] <= 30000).all()
    np.testing.assert_array_equal(evidence[:, 2], [16, 12, 12, 9])
    np.testing.assert_array_equal(evidence[:, 3], 0)
    # The hot pixel is counted, but nothing beside it is.
    assert evidence[0].tolist()[1:3] == [17, 16]
    levels = saturation_levels(evidence)
    assert ((levels > 29500) & (levels < 30000)).all()


def test_ceilings_agree_with_a_plain_search():
    plane = np.minimum(frame((131, 97), 2, stars=60), 9000)
    for phase, row in enumerate(ceilings(plane).tolist()):
        one = plane[phase // 2 :: 2, phase % 2 :: 2].astype(int)
        padded = np.pad(one, 1, mode="constant")
        # Beyond the border lies the mirrored pixel: of the same phase, one inside.
        padded[0, 1:-1], padded[-1, 1:-1] = mirror_row(plane, phase, 0), mirror_row(plane, phase, 1)
        padded[1:-1, 0], padded[1:-1, -1] = mirror_column(plane, phase, 0), mirror_column(plane, phase, 1)
        beside = np.maximum.reduce([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])
        shared = np.minimum(one, beside)
        bound = shared.max() - shared.max() // 128
        below = (one >= bound - shared.max() // 128) & (one < bound)
        assert row == [shared.max(), (one >= bound).sum(), (shared >= bound).sum(), below.sum()]


def mirror_row(plane, phase, end):
    rows = np.arange(phase // 2, plane.shape[0], 2)
    y = rows[-1] + 2 if end else rows[0] - 2
    y = -y if y < 0 else 2 * plane.shape[0] - 2 - y
    return plane[y, phase % 2 :: 2]


def mirror_column(plane, phase, end):
    columns = np.arange(phase % 2, plane.shape[1], 2)
    x = columns[-1] + 2 if end else columns[0] - 2
    x = -x if x < 0 else 2 * plane.shape[1] - 2 - x
    return plane[phase // 2 :: 2, x]
