"""The filter dialog: what can be done in it, what it returns, and that 10,000 frames stay fluid."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pace import calls_of
from PySide6.QtCore import QPointF, Qt
from tifffile import imwrite

import zemosaic_filter_gui_qt
from zemosaic_filter_gui_qt import FilterQtDialog, launch_filter_interface_qt
from zemosaic_pipeline.runner import Selection
from zemosaic_ui.route_costs import RouteCost


def write_frame(path, ra, dec, *, wcs=True, instrument="Seestar S50", seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(1200, 20, (120, 80))
    y, x = np.mgrid[0:120, 0:80]
    for _ in range(30):
        cy, cx = rng.uniform(8, 112), rng.uniform(8, 72)
        image += rng.uniform(800, 4000) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 3.0)
    header = fits.Header()
    header.update(
        {
            "INSTRUME": instrument,
            "EXPTIME": 10.0,
            "DATE-OBS": f"2024-10-12T22:{seed % 60:02d}:00",
            "RA": ra,
            "DEC": dec,
        }
    )
    header.update({"FOCALLEN": 250.0, "XPIXSZ": 2.9, "BAYERPAT": "GRBG"})
    if wcs:
        header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 40.5, "CRPIX2": 60.5})
        header.update({"CRVAL1": ra, "CRVAL2": dec, "CDELT1": -2.4 / 3600, "CDELT2": 2.4 / 3600})
    fits.writeto(path, np.clip(image, 0, 65535).astype(np.uint16), header)


@pytest.fixture(autouse=True)
def _routes_wait(monkeypatch):
    """Only a test that wants it starts the process that compares routes."""
    monkeypatch.setattr(zemosaic_filter_gui_qt, "ROUTES_AFTER_MS", 3_600_000)


@pytest.fixture
def night(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    for i in range(6):
        write_frame(folder / f"a_{i}.fit", 10.0, 41.0, seed=i)
    for i in range(4):
        write_frame(folder / f"b_{i}.fit", 10.6, 41.0, seed=10 + i, instrument="Seestar S30")
    write_frame(folder / "c_hint.fit", 10.0, 41.1, wcs=False, seed=20)
    (folder / "broken.fit").write_bytes(b"this is no FITS file")
    return folder


def settle(qtbot, dialog):
    """Wait until survey, redraw and preview have come to rest."""
    qtbot.waitUntil(lambda: not dialog.is_busy and not dialog._refresh_timer.isActive(), timeout=60_000)
    qtbot.waitUntil(
        lambda: dialog.preview is not None and dialog.preview.number == dialog._question, timeout=60_000
    )
    qtbot.waitUntil(lambda: not dialog._refresh_timer.isActive(), timeout=60_000)


@pytest.fixture
def dialog(session, night, qtbot):
    made = FilterQtDialog(session, str(night))
    qtbot.addWidget(made)
    made.show()
    settle(qtbot, made)
    yield made
    made.reject()


def path_of(night, name):
    return str(night / name)


def test_the_survey_fills_table_sky_and_preview(dialog, night, qtbot):
    frames = dialog.frames
    assert len(frames) == 12
    assert frames.kept.sum() == 11
    broken = frames.index_of(path_of(night, "broken.fit"))
    assert frames.reason_key(broken) == "frame_not_fits"
    assert frames.rows[frames.index_of(path_of(night, "c_hint.fit"))].wcs == "hint"
    assert [len(group) for group in dialog.preview.groups] == [6, 4, 1]
    # For frames as small as these the panels lie far apart: a run leaves one out unless told not to.
    assert len(dialog.preview.stray) == 4
    dialog.session.form.set("canvas_exclude_outliers", False)
    settle(qtbot, dialog)
    assert dialog.preview.canvas_hw[1] > 300
    assert dialog.preview.memory_bytes > 0
    assert "3" in dialog.panels.result_text.text()
    assert dialog.sky.plot._curves


def test_a_box_excludes_a_frame_and_a_group_box_all_of_it(dialog, night, qtbot):
    table = dialog.table.view.table
    group = table.index(0, 0)
    state = Qt.ItemDataRole.CheckStateRole
    table.setData(table.index(0, 0, group), Qt.CheckState.Unchecked.value, state)
    assert dialog.frames.kept.sum() == 10
    assert table.data(group, state) == Qt.CheckState.PartiallyChecked
    table.setData(group, Qt.CheckState.Unchecked.value, state)
    assert dialog.frames.kept.sum() == 5
    settle(qtbot, dialog)
    dialog.frames.undo()
    dialog.frames.undo()
    assert dialog.frames.kept.sum() == 11


def test_selection_is_the_same_in_sky_and_table(dialog, qtbot):
    plot = dialog.sky.plot
    box = np.array([(0.2, -0.5), (0.8, -0.5), (0.8, 0.5), (0.2, 0.5)])
    plot._on_drawn(box, Qt.KeyboardModifier.NoModifier)
    chosen = np.flatnonzero(dialog.frames.selected)
    assert len(chosen) == 4
    rows = dialog.table.view.selectionModel().selectedRows()
    assert sorted(dialog.table.view.table.position(index) for index in rows) == sorted(chosen)
    plot._on_clicked(QPointF(50.0, 50.0), Qt.KeyboardModifier.NoModifier)
    assert not dialog.frames.selected.any()
    table = dialog.table.view.table
    group = table.index(1, 0)
    dialog.table.view.selectionModel().select(
        table.index(0, 0, group),
        dialog.table.view.selectionModel().SelectionFlag.Select
        | dialog.table.view.selectionModel().SelectionFlag.Rows,
    )
    assert dialog.frames.selected.sum() == 1
    assert "1" in dialog.counts.text()
    qtbot.keyClick(dialog.table.view, Qt.Key.Key_Space)
    assert dialog.frames.kept.sum() == 10


def test_rules_of_the_panel(dialog, qtbot):
    panels = dialog.panels
    panels.distance.setText("0.1")
    panels.distance_switch.click()
    settle(qtbot, dialog)
    assert dialog.frames.kept.sum() < 11
    panels.distance_switch.click()
    assert dialog.frames.kept.sum() == 11
    index = panels.instrument.findData("Seestar S30")
    panels.instrument.setCurrentIndex(index)
    panels.instrument.activated.emit(index)
    assert dialog.frames.kept.sum() == 4
    panels.instrument.activated.emit(0)
    panels.need_wcs.click()
    assert dialog.frames.kept.sum() == 10


def test_grouping_controls_change_the_preview_at_once(dialog, qtbot):
    dialog.session.form.set("max_raw_per_master_tile", 3)
    settle(qtbot, dialog)
    assert max(len(group) for group in dialog.preview.groups) <= 3
    dialog.session.form.set("cluster_panel_threshold", 2.0)
    dialog.session.form.set("max_raw_per_master_tile", 0)
    settle(qtbot, dialog)
    assert [len(group) for group in dialog.preview.groups] == [11]


def test_what_the_filter_returns(dialog, night, qtbot):
    dialog.frames.set_kept([dialog.frames.index_of(path_of(night, "a_0.fit"))], False)
    settle(qtbot, dialog)
    assert dialog.overrides()["frame_groups"] is None
    dialog.panels.use_groups.click()
    overrides = dialog.overrides()
    assert len(overrides["frame_selection"]) == 10
    assert path_of(night, "a_0.fit") not in overrides["frame_selection"]
    assert [len(group) for group in overrides["frame_groups"]] == [5, 4, 1]
    assert len(overrides["filter_excluded_indices"]) == 2
    assert overrides["filter_cancelled"] is False
    dialog.panels.use_groups.click()
    assert dialog.overrides()["frame_groups"] is None
    items = dialog.items()
    assert {item["shape"] for item in items} == {(120, 80)}
    assert items[0]["center"] == pytest.approx((10.0, 41.0))


def test_the_form_of_the_window_is_untouched_until_accepted(dialog, session):
    dialog.session.form.set("cluster_panel_threshold", 1.5)
    assert session.form["cluster_panel_threshold"] == 0.05


def test_search_sort_and_show(dialog, qtbot):
    view = dialog.table.view
    dialog.table.search.setText("b_")
    dialog.table._apply()
    assert sum(len(members) for _, members in view.table.blocks) == 4
    dialog.table.search.clear()
    dialog.table.show_combo.setCurrentIndex(2)
    assert sum(len(members) for _, members in view.table.blocks) == 1
    dialog.table.show_combo.setCurrentIndex(0)
    view._on_header(1)
    view._on_header(1)
    first = view.table.blocks[0][1]
    dates = [dialog.frames.rows[i].date for i in first]
    assert dates == sorted(dates, reverse=True)


def test_measuring_fills_the_histograms_and_a_cut_excludes(dialog, qtbot):
    qtbot.mouseClick(dialog.panels.measure_button, Qt.MouseButton.LeftButton)
    assert dialog.work_job.is_running
    qtbot.waitUntil(lambda: not dialog.work_job.is_running, timeout=60_000)
    stars = dialog.frames.column("stars")
    assert np.isfinite(stars).sum() == 11
    edges, counts = dialog.frames.histogram("stars")
    assert counts.sum() == 11
    histogram = dialog.histograms["stars"]
    histogram.lines[0].setValue(float(np.nanmedian(stars)) + 0.5)
    histogram.lines[0].sigPositionChangeFinished.emit(histogram.lines[0])
    assert dialog.frames.kept.sum() < 11
    assert edges[0] < edges[-1]


def test_csv_export(dialog, tmp_path):
    dialog.export_csv(tmp_path / "frames.csv")
    rows = list(csv.DictReader((tmp_path / "frames.csv").open(encoding="utf-8")))
    assert len(rows) == 12
    assert sum(row["kept"] == "1" for row in rows) == 11
    dialog.export_csv(tmp_path / "no" / "folder" / "x.csv")
    assert "x.csv" in dialog.status.text()


@pytest.mark.parametrize("language", ["en", "fr"])
def test_both_languages(session, night, qtbot, caplog, language):
    session.texts.set_language(language)
    made = FilterQtDialog(session, str(night), survey=False)
    qtbot.addWidget(made)
    made.show()
    assert made.windowTitle() == {"en": "Choose frames", "fr": "Choix des images"}[language]
    assert not [record for record in caplog.records if "has no text" in record.message]
    made.reject()
    session.texts.set_language("en")


def test_launch_returns_what_callers_expect(night, session, themes, qtbot, monkeypatch):
    def press(accept):
        def run(self):
            self.show()
            settle(qtbot, self)
            self.accept() if accept else self.reject()
            return self.result()

        return run

    monkeypatch.setattr(zemosaic_filter_gui_qt, "ThemeSwitch", lambda app: themes)
    monkeypatch.setattr(FilterQtDialog, "exec", press(True))
    items, accepted, overrides = launch_filter_interface_qt(str(night), {"cluster_panel_threshold": 0.2})
    assert accepted
    assert len(items) == 11
    assert overrides["cluster_panel_threshold"] == 0.2
    files = [str(night / "a_0.fit"), str(night / "a_1.fit")]
    items, accepted, _ = launch_filter_interface_qt(files)
    assert [item["path"] for item in items] == files
    monkeypatch.setattr(FilterQtDialog, "exec", press(False))
    items, accepted, overrides = launch_filter_interface_qt(str(night))
    assert not accepted
    assert items == str(night)
    assert overrides == {"filter_cancelled": True}


def test_a_caller_of_version_4_gets_what_it_reads(night, themes, session, qtbot, monkeypatch):
    """All keywords of version 4, with its option names, and every field that its worker takes from the answer."""

    def accept(self):
        self.show()
        settle(qtbot, self)
        self.frames.set_kept([self.frames.index_of(path_of(night, "b_0.fit"))], False)
        self.accept()
        return self.result()

    monkeypatch.setattr(zemosaic_filter_gui_qt, "ThemeSwitch", lambda app: themes)
    monkeypatch.setattr(FilterQtDialog, "exec", accept)
    items, accepted, overrides = launch_filter_interface_qt(
        str(night),
        {"cluster_panel_threshold": 0.3, "cluster_orientation_split_deg": 5.0, "sds_mode": True},
        stream_scan=True,
        scan_recursive=True,
        batch_size=200,
        preview_cap=1500,
        solver_settings_dict={
            "solver_choice": "ASTAP",
            "astap_max_instances": 2,
            "astap_search_radius_deg": 4.0,
        },
        config_overrides={"max_raw_per_master_tile": 40, "scan_subfolders": True},
    )
    assert accepted is True
    for item in items:
        assert item["path"].endswith(".fit")
        assert (item["header"]["NAXIS1"], item["header"]["NAXIS2"]) == (80, 120)
        assert item["header"]["INSTRUME"] == item["instrument"]
        assert item["wcs"] is None or item["header"]["CRVAL1"] == item["wcs"]["CRVAL1"]
    assert [item["index"] for item in items] == sorted(item["index"] for item in items)
    kept = {item["path"] for item in items}
    assert path_of(night, "b_0.fit") not in kept
    assert len(kept) == 10
    assert overrides["sds_mode"] is True
    assert overrides["route"] == "sds"
    assert overrides["preplan_master_groups"] == []
    assert len(overrides["filter_excluded_indices"]) == 2
    for name in ("filter_auto_group", "resolved_wcs_count", "astap_max_instances", "filter_cancelled"):
        assert name in overrides
    assert (overrides["cluster_panel_threshold"], overrides["astap_max_instances"]) == (0.3, 2)
    assert overrides["max_raw_per_master_tile"] == 40


def test_routes_are_compared_when_the_choice_rests(dialog, qtbot):
    started = []
    dialog.route_job.start = lambda *args: started.append(args)
    dialog.session.form.set("route", "panels")
    settle(qtbot, dialog)
    dialog._route_timer.setInterval(1)
    dialog._route_timer.start()
    dialog._route_timer.start()
    qtbot.waitUntil(lambda: bool(started) and not dialog._route_timer.isActive(), timeout=8000)
    assert len(started) == 1
    target, infos, stacks, config, canvas_hw, groups = started[0]
    assert target == "zemosaic_ui.route_costs:compare_routes"
    assert (len(infos), stacks) == (dialog.frames.kept.sum(), [])
    assert (config["route"], canvas_hw, groups) == ("panels", dialog.preview.canvas_hw, [])
    dialog.panels.use_groups.setChecked(True)
    dialog.ask_routes()
    assert [len(group) for group in started[1][5]] == [6, 4, 1]


def write_stack(path, seed):
    write_frame(path, 10.0, 41.0, seed=seed)
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header["BAYERPAT"]


def test_finished_stacks_are_chosen_like_frames(dialog, night, tmp_path, qtbot):
    folder = tmp_path / "stacks"
    folder.mkdir()
    for seed in range(3):
        write_stack(folder / f"Stacked_{seed}.fit", seed)
    plane = np.random.default_rng(1).normal(0.1, 0.01, (60, 40)).astype(np.float32)
    imwrite(folder / "from_elsewhere.tif", plane)
    header = fits.getheader(folder / "Stacked_0.fit")
    (folder / "from_elsewhere.wcs").write_text(header.tostring(sep="\n"), encoding="ascii")
    by_hand = path_of(night, "a_0.fit")
    dialog.frames.set_kept([dialog.frames.index_of(by_hand)], False)
    dialog._survey_timer.setInterval(1)
    dialog.session.form.set("tiles_dir", str(folder))
    qtbot.waitUntil(lambda: len(dialog.frames) == 16 and not dialog.is_busy, timeout=60_000)
    settle(qtbot, dialog)
    frames = dialog.frames
    assert frames.is_stack.sum() == 4
    assert not frames.kept[frames.index_of(by_hand)]
    assert dialog.preview.n_stacks == 4
    assert [len(group) for group in dialog.preview.groups] == [5, 4, 1]
    table = dialog.table.view.table
    last = table.index(len(table.blocks) - 1, 0)
    assert "Finished stacks   4 of 4" in table.data(last)
    gone = str(folder / "Stacked_1.fit")
    frames.set_kept([frames.index_of(gone)], False)
    overrides = dialog.overrides()
    names = [Path(path).name for path in overrides["tile_selection"]]
    assert names == ["from_elsewhere.tif", "Stacked_0.fit", "Stacked_2.fit"]
    assert len(overrides["frame_selection"]) == 10
    assert not set(overrides["frame_selection"]) & set(overrides["tile_selection"])
    chosen = Selection.from_config(overrides)
    assert (len(chosen.tiles), chosen.has_no_frames) == (3, False)
    # Without any frame the stacks alone become the mosaic.
    frames.set_kept(np.flatnonzero(~frames.is_stack), False)
    assert Selection.from_config(dialog.overrides()).has_no_frames
    # A folder of stacks as input: nothing else is looked at, and what was left out stays so.
    dialog.session.form.set("tiles_dir", "")
    dialog.folder = str(folder)
    dialog.session.form.set("use_existing_master_tiles", True)
    qtbot.waitUntil(lambda: len(frames) == 4 and not dialog.is_busy, timeout=60_000)
    settle(qtbot, dialog)
    assert frames.is_stack.all()
    assert [Path(path).name for path in dialog.overrides()["frame_selection"]] == names
    dialog.session.form.set("tiles_dir", str(tmp_path / "nowhere"))
    qtbot.waitUntil(lambda: "nowhere" in dialog.status.text(), timeout=60_000)


def test_each_route_shows_memory_device_and_time(dialog):
    costs = [
        RouteCost("direct", False, "route_asked", {}, True, 2_100_000_000, 10, 250.0, True),
        RouteCost("panels", True, "route_asked", {}, True, 900_000_000, 10, 61.0, False),
        RouteCost("sds", False, "run_error_memory", {}, False),
    ]
    dialog.panels.routes.show_costs(costs, 3, "Some card")
    text = dialog.session.texts
    lines = [[made.text() for made in labels] for labels in dialog.panels.routes._lines]
    assert lines[0] == ["All frames at once", text.size(2_100_000_000), "GPU", "4:10"]
    assert lines[1] == ["▸ Panel by panel", text.size(900_000_000), "CPU", "1:01"]
    assert lines[2][0] == "Batch by batch (SDS)"
    assert lines[2][1:3] == ["", ""]
    note = dialog.panels.routes.note.text()
    assert "Some card" in note
    assert "3 finished stacks" in note
    dialog.panels.routes.show_costs(costs[:1], 0, "")
    assert not dialog.panels.routes._lines[1][0].isVisible()


def test_no_event_does_much_with_ten_thousand_frames(session, qtbot, qapp, tmp_path):
    from tools.screenshots import fill_filter

    made = FilterQtDialog(session, str(tmp_path), survey=False)
    qtbot.addWidget(made)
    made.resize(1600, 900)
    made.show()
    fill_filter(made.frames, 10_000)
    settle(qtbot, made)

    def most_at_once(action):
        worst, end = calls_of(action), time.monotonic() + 0.7
        while time.monotonic() < end:
            worst = max(worst, calls_of(qapp.processEvents))
            time.sleep(0.001)
        return worst

    calls = {
        "expand": most_at_once(made.table.view.expandAll),
        "cut": most_at_once(lambda: made.frames.set_cut("fwhm", (0.0, 3.5))),
        "select": most_at_once(lambda: made.frames.select(made.frames.in_rectangle(-1, -1, 1, 1))),
        "sort": most_at_once(lambda: made.table.view._on_header(5)),
        "colour": most_at_once(lambda: made.sky.colour.setCurrentIndex(3)),
        "text": most_at_once(lambda: made.table.search.setText("0012")),
    }
    made.reject()
    # The view asks for each row's place; what is shown of it is asked for the visible ones alone.
    assert max(calls.values()) < 30 * 10_000, calls
