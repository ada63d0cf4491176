"""The frame filter's model: rules, manual choice, selection, order, result; and the flat sky behind it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from pace import calls_of

from tools.screenshots import fill_filter
from zemosaic_settings import Settings
from zemosaic_ui.filter_model import FilterModel, FrameRow
from zemosaic_ui.plan_preview import answer, question_of
from zemosaic_ui.sky_view import SkyPlane, group_colours, inside_polygon, middle_direction, quality_colours


def make_rows(n, *, seed=3, ra0=10.0, dec0=41.0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        ra, dec = (ra0 + rng.uniform(-1, 1)) % 360, dec0 + rng.uniform(-1, 1)
        corners = tuple(
            (ra + dx, dec + dy) for dx, dy in ((-0.4, -0.3), (0.4, -0.3), (0.4, 0.3), (-0.4, 0.3))
        )
        instrument = "Seestar S50" if i % 3 else "Seestar S30"
        wcs = "header" if i % 5 else "hint"
        rows.append(
            FrameRow(
                f"/n/f_{i:05d}.fit",
                object(),
                wcs,
                ra,
                dec,
                3.0,
                corners,
                f"2024-01-{i % 28 + 1:02d}",
                10.0 + i % 2,
                instrument,
            )
        )
    return rows


@pytest.fixture
def model():
    made = FilterModel()
    made.add(make_rows(60))
    made.set_measures(
        (row.path, {"fwhm": 2.0 + 0.05 * i, "stars": 100.0 - i}) for i, row in enumerate(made.rows)
    )
    return made


def test_everything_is_kept_at_first(model):
    assert model.kept.all()
    assert model.result().excluded.size == 0


def test_quality_cut_excludes_and_says_so(model):
    model.set_cut("fwhm", (0.0, 3.0))
    assert model.kept.sum() == 21
    assert model.reason_key(59) == "filter_reason_quality"
    model.set_cut("fwhm", None)
    assert model.kept.all()


def test_a_frame_without_a_value_passes_a_cut(model):
    model.set_measures([("/n/f_00001.fit", {"fwhm": float("nan")})])
    model.set_cut("fwhm", (0.0, 2.01))
    assert model.kept[1]


def test_the_hand_outranks_the_rules(model):
    model.set_cut("fwhm", (0.0, 3.0))
    model.set_kept([59], True)
    model.set_kept([0], False)
    assert model.kept[59]
    assert not model.kept[0]
    assert model.reason_key(0) == "filter_reason_manual"
    model.clear_manual()
    assert not model.kept[59]
    assert model.kept[0]


def test_instrument_distance_and_wcs_rules(model):
    model.set_rules(instruments=frozenset({"Seestar S50"}))
    assert model.kept.sum() == 40
    assert model.reason_key(0) == "filter_reason_instrument"
    model.set_rules(instruments=None, max_distance_deg=0.5)
    far = model.plane.distance(model.column("ra"), model.column("dec")) > 0.5
    assert np.array_equal(model.kept, ~far)
    model.set_rules(max_distance_deg=None, need_wcs=True)
    assert model.kept.sum() == 48


def test_a_refused_file_cannot_be_kept(model):
    model.add([FrameRow("/n/broken.fit", None, refused_key="frame_not_fits")])
    model.set_kept([60], True)
    assert not model.kept[60]
    assert model.reason_key(60) == "frame_not_fits"


def test_undo_takes_back_choice_and_rules(model):
    model.set_cut("fwhm", (0.0, 3.0))
    model.set_kept([5], False)
    assert model.undo()
    assert model.kept[5]
    assert model.undo()
    assert model.kept.all()
    assert not model.undo()


def test_selection_by_rectangle_and_lasso(model):
    points = model.plane.project(model.column("ra"), model.column("dec"))
    inside = model.in_rectangle(-0.3, -0.3, 0.3, 0.3)
    assert set(inside) == set(np.flatnonzero((abs(points) < 0.3).all(axis=1)))
    model.select(inside)
    assert model.selected.sum() == len(inside)
    model.select(inside[:1], mode="toggle")
    assert model.selected.sum() == len(inside) - 1
    triangle = np.array([(-1.0, -1.0), (1.0, -1.0), (0.0, 1.0)])
    assert 0 < len(model.in_polygon(triangle)) < 60


def test_nearest_frame(model):
    points = model.plane.project(model.column("ra"), model.column("dec"))
    assert model.nearest(*points[17], 0.1) == 17
    assert model.nearest(50.0, 50.0, 0.1) is None


def test_order_text_and_missing_values(model):
    model.set_measures([("/n/f_00007.fit", {"fwhm": float("nan")})])
    up = model.order("fwhm")
    assert up[0] == 0
    assert up[-1] == 7
    down = model.order("fwhm", descending=True)
    assert down[0] == 59
    assert down[-1] == 7
    assert list(model.order("file", text="f_0001 s50")) == [10, 11, 13, 14, 16, 17, 19]
    model.set_kept([3, 4], False)
    assert list(model.order("file", show="excluded")) == [3, 4]


def test_groups_and_result(model):
    model.set_groups([np.arange(0, 20), np.arange(20, 60)])
    model.set_kept([0, 25], False)
    result = model.result()
    assert [len(group) for group in result.groups] == [19, 39]
    assert list(result.excluded) == [0, 25]
    blocks = model.by_group(model.order("file"))
    assert [number for number, _ in blocks] == [0, 1]


def test_csv_holds_every_frame(model, tmp_path):
    model.set_kept([2], False)
    model.write_csv(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == 60
    assert rows[2]["kept"] == "0"
    assert rows[2]["reason"] == "filter_reason_manual"


def test_no_action_goes_through_ten_thousand_frames_one_by_one():
    model = FilterModel()
    rows = make_rows(10_000)
    for start in range(0, 10_000, 200):
        model.add(rows[start : start + 200])
    model.set_measures((row.path, {"fwhm": 2.0 + i % 37}) for i, row in enumerate(rows))
    groups = np.array_split(np.arange(10_000), 150)
    calls = {
        "cut": calls_of(lambda: (model.set_cut("fwhm", (0, 20)), model.kept)),
        "sort": calls_of(lambda: model.order("fwhm", descending=True)),
        "lasso": calls_of(lambda: model.select(model.in_rectangle(-0.5, -0.5, 0.5, 0.5))),
        "group": calls_of(lambda: model.set_groups(groups)),
        "split": calls_of(lambda: model.by_group(model.order("date"))),
    }
    assert max(calls.values()) < 2 * 10_000, calls
    model.order("file", text="0011")
    assert calls_of(lambda: model.order("file", text="0012")) < 20 * 10_000


def test_projection_agrees_with_astropy():
    plane = SkyPlane(359.9, 85.0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [359.9, 85.0]
    wcs.wcs.cdelt = [1.0, 1.0]
    wcs.wcs.crpix = [1.0, 1.0]
    ra, dec = np.array([0.2, 358.0, 30.0]), np.array([84.7, 85.4, 86.0])
    expected = np.stack(wcs.wcs_world2pix(ra, dec, 0), axis=-1)
    assert np.allclose(plane.project(ra, dec), expected, atol=1e-9)
    back = plane.unproject(*plane.project(ra, dec)[2])
    assert back == pytest.approx((30.0, 86.0))
    truth = SkyCoord(359.9, 85.0, unit="deg").separation(SkyCoord(ra, dec, unit="deg")).deg
    assert np.allclose(plane.distance(ra, dec), truth)


def test_middle_across_zero_hours_ignores_a_stray_pointing():
    ra, dec = middle_direction(
        np.array([359.8, 0.2, 359.9, 0.1, 120.0]), np.array([10.0, 10.0, 10.1, 9.9, -50.0])
    )
    assert min(ra, 360 - ra) < 0.3
    assert dec == pytest.approx(10.0, abs=0.3)
    assert middle_direction(np.array([np.nan]), np.array([np.nan])) == (0.0, 0.0)


def test_polygon_and_colours():
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    found = inside_polygon(np.array([(0.5, 0.5), (1.5, 0.5), (np.nan, 0.5)]), square)
    assert found.tolist() == [True, False, False]
    colours = group_colours(np.array([0, 1, -1]), dark=True)
    assert colours.shape == (3, 3)
    assert tuple(colours[2]) == (128, 128, 132)
    ramp = quality_colours(np.array([1.0, 9.0, np.nan]), low_is_good=True)
    assert ramp[0][1] > ramp[0][0]
    assert ramp[1][0] > ramp[1][1]


@pytest.mark.parametrize("exclude", [True, False])
def test_the_preview_counts_far_frames_as_the_run_does(exclude):
    model = FilterModel()
    fill_filter(model, 60)
    given = Settings(canvas_exclude_outliers=exclude)
    shown = answer(question_of(model, given, 1))
    # One frame was moved nine degrees away.
    assert [model.rows[i].ra for i in shown.stray] == [max(row.ra for row in model.rows if row.info)]
    model.set_kept(list(shown.stray), False)
    without = answer(question_of(model, given, 2))
    assert without.stray == ()
    assert (shown.canvas_hw == without.canvas_hw) is exclude
    assert shown.canvas_hw[1] > 2 * without.canvas_hw[1] or exclude
