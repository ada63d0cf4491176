"""Edges of stacked pictures: what is cut, what is masked, what a score says. Made pictures with known faults."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.altaz_mask import AltAzOptions, altaz_mask
from zemosaic_core.quality_crop import CropOptions, quality_box, quality_box_of_rows
from zemosaic_core.tile_quality import QualityOptions, accepts, tile_quality


def picture(shape=(320, 384), channels=3, noise=10.0, seed=1, n_stars=120):
    rng = np.random.default_rng(seed)
    planes = rng.normal(1000.0, noise, (channels, *shape)).astype(np.float32)
    y, x = np.mgrid[-6:7, -6:7]
    star = np.exp(-(y**2 + x**2) / (2 * 1.6**2))
    for _ in range(n_stars):
        cy, cx = rng.integers(8, shape[0] - 8), rng.integers(8, shape[1] - 8)
        planes[:, cy - 6 : cy + 7, cx - 6 : cx + 7] += (rng.uniform(20, 200) * noise * star).astype(
            np.float32
        )
    return planes


def test_nothing_is_cut_off_an_even_picture():
    found = quality_box(picture())
    assert found.reason_key == "crop_nothing"
    assert found.box == (0, 320, 0, 384)


@pytest.mark.parametrize("fault", ["missing", "noise", "level", "colour"])
def test_a_bad_edge_is_cut_and_the_others_stay(fault):
    planes = picture()
    rng = np.random.default_rng(5)
    edge = planes[:, :, :60]
    if fault == "missing":
        edge[:] = np.nan
    elif fault == "noise":
        edge += rng.normal(0, 30, edge.shape).astype(np.float32)
    elif fault == "level":
        edge += 60.0
    else:
        edge[0] += 40.0
        edge[2] -= 40.0
    y0, y1, x0, x1 = quality_box(planes).box
    assert (y0, y1, x1) == (0, 320, 384)
    assert 60 <= x0 <= 60 + 32 + 8


def test_thin_coverage_is_cut():
    coverage = np.full((320, 384), 20.0)
    coverage[:40] = 4
    found = quality_box(picture(), coverage)
    assert 40 <= found.box[0] <= 40 + 32 + 8
    assert found.bad["coverage"] > 0


def test_a_galaxy_in_the_middle_is_no_edge():
    planes = picture()
    y, x = np.mgrid[:320, :384]
    planes += (800 * np.exp(-((y - 160) ** 2 + (x - 192) ** 2) / (2 * 50.0**2))).astype(np.float32)
    y0, y1, x0, x1 = quality_box(planes).box
    assert (y1 - y0) * (x1 - x0) > 0.9 * 320 * 384


def test_a_picture_that_is_bad_on_the_whole_is_not_cut_away():
    planes = picture()
    planes[:, :, :200] = np.nan
    found = quality_box(planes)
    assert found.reason_key == "crop_refused"
    assert found.box == (0, 320, 0, 384)


def test_bands_of_rows_give_the_same_box():
    planes = picture()
    planes[:, :50] = np.nan
    asked = []

    def read(y0, y1):
        asked.append(y1 - y0)
        return planes[:, y0:y1]

    assert quality_box_of_rows(read, planes.shape) == quality_box(planes)
    assert max(asked) < 64


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="band_px"):
        quality_box(picture(), options=CropOptions(band_px=2))
    with pytest.raises(ValueError, match="coverage"):
        quality_box(picture(), np.ones((3, 3)))
    with pytest.raises(ValueError, match="margin_percent"):
        altaz_mask((50, 50), None, AltAzOptions(margin_percent=80))


def test_corners_of_a_turned_field_are_masked():
    y, x = np.mgrid[:200, :200]
    coverage = np.where(np.hypot(y - 99.5, x - 99.5) < 110, 20, 2).astype(np.float32)
    mask = altaz_mask((200, 200), coverage)
    assert mask[0, 0] == 0
    assert mask[100, 100] == 1
    assert ((mask > 0) <= (coverage > 2)).all()


def test_a_soft_edge_falls_within_the_covered_part():
    coverage = np.zeros((200, 200), np.float32)
    coverage[:, 60:] = 20
    mask = altaz_mask((200, 200), coverage, AltAzOptions(margin_percent=20, decay=0.5))
    row = mask[100]
    assert row[59] == 0
    assert 0 < row[62] < row[70] <= 1
    assert row[150] == 1


def test_without_coverage_the_distance_from_the_centre_tells():
    mask = altaz_mask((100, 140), None, AltAzOptions(margin_percent=10, decay=0.5))
    assert mask[50, 70] == 1
    assert mask[0, 0] < 0.1
    assert altaz_mask((100, 140), None, AltAzOptions(margin_percent=0)).min() == 1


def test_a_stack_of_two_frames_is_not_masked_away():
    assert altaz_mask((60, 60), np.full((60, 60), 2.0)).all()


def test_a_good_picture_scores_better_than_each_fault():
    good = tile_quality(picture())
    assert good.score < 0.2
    assert accepts(good, 0.48)
    faults = {}
    for name in ("corner", "edge", "cast", "border"):
        planes = picture()
        if name == "corner":
            planes[:, :120, :120] = np.nan
        elif name == "edge":
            planes[:, :64] += 100.0
        elif name == "cast":
            planes[0, :, :64] += 100.0
            planes[0, :, -64:] += 100.0
        else:
            planes[:, :48] = np.nan
            planes[:, -48:] = np.nan
            planes[:, :, :48] = np.nan
            planes[:, :, -48:] = np.nan
        faults[name] = tile_quality(planes)
    assert all(found.score > good.score + 0.02 for found in faults.values()), faults
    assert faults["corner"].cer > 0.8
    assert faults["edge"].ed > 2
    assert faults["cast"].cec > 0.5
    assert faults["border"].nbr > 0.7


def test_stars_that_are_lines_are_seen():
    rng = np.random.default_rng(3)
    planes = rng.normal(1000, 10, (1, 300, 300)).astype(np.float32)
    y, x = np.mgrid[-10:11, -10:11]
    line = np.exp(-(y**2) / (2 * 1.6**2) - x**2 / (2 * 4.5**2))
    for _ in range(60):
        cy, cx = rng.integers(12, 288, 2)
        planes[0, cy - 10 : cy + 11, cx - 10 : cx + 11] += (rng.uniform(300, 3000) * line).astype(np.float32)
    assert tile_quality(planes).trl > 0.25 > tile_quality(picture(channels=1)).trl


def test_an_override_speaks_for_a_full_picture():
    parts = {"score": 0.6, "CC": 0.8, "CER": 0.1, "ED": 1.0, "SC": 0.1, "NBR": 0.05, "TRL": 0.0}
    assert accepts(parts, 0.48)
    assert not accepts(parts, 0.48, override=False)
    assert not accepts(parts | {"CC": 0.3}, 0.48)


def test_an_empty_picture_has_no_score():
    from zemosaic_core.errors import SkipItem

    with pytest.raises(SkipItem):
        tile_quality(np.full((3, 64, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="16 px"):
        tile_quality(np.ones((3, 4, 4), np.float32), QualityOptions())
