"""The window with the real worker on a tiny night: from Start to looking at the mosaic."""

from __future__ import annotations

import pytest

from zemosaic_gui_qt import ZeMosaicQtMainWindow
from zemosaic_io.demo_session import write_demo_night
from zemosaic_ui.run_controller import WORKER_TARGET
from zemosaic_ui.run_state import RunStatus

pytestmark = pytest.mark.slow
ENDED = (RunStatus.SUCCESS, RunStatus.FAILED, RunStatus.CANCELLED)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    write_demo_night(
        folder,
        seed=3,
        panels=(1, 2),
        frames_per_panel=4,
        shape_hw=(480, 640),
        with_wcs=True,
        bad_frames=False,
    )
    return folder


@pytest.fixture
def window(make_window) -> ZeMosaicQtMainWindow:
    return make_window(WORKER_TARGET)


def wait_end(qtbot, window):
    qtbot.waitUntil(
        lambda: window.controller.state.status in ENDED and not window.controller.is_active, timeout=240_000
    )


def test_from_start_to_the_mosaic(window, session, night, tmp_path, qtbot):
    session.form.set("input_dir", str(night))
    session.form.set("output_dir", str(tmp_path / "out"))
    session.form.set("route", "panels")
    session.form.set("cluster_min_frames", 0)
    window.start_page.gpu_switch.click()
    assert window.start_run()
    wait_end(qtbot, window)
    state = window.controller.state
    assert state.status is RunStatus.SUCCESS, (state.end_key, state.end_values)
    assert len(state.tiles) == 2
    assert all(phase.status == "done" for phase in state.phases)
    assert {record.get("reason") for record in state.gpu_records if record["kind"] == "decision"} == {"off"}
    window.run_page.refresh(window.controller)
    qtbot.waitUntil(lambda: window.viewer_page.canvas.has_overview, timeout=60_000)
    assert set(window.viewer_page.canvas.overlays) == {"tiles", "frames"}
    window.open_result()
    assert window.page == "mosaic"
    words = [text for _, text in window.run_page.log.model.lines]
    assert not [text for text in words if text.startswith("_")]


def test_stopping_the_real_worker_and_going_on(window, session, night, tmp_path, qtbot):
    session.form.set("input_dir", str(night))
    session.form.set("output_dir", str(tmp_path / "out"))
    session.form.set("use_gpu_phase5", False)
    assert window.start_run()
    prepare = lambda: window.controller.state.phase("phase1_prepare")  # noqa: E731
    qtbot.waitUntil(lambda: prepare().done >= 2, timeout=120_000)
    window.stop_run()
    wait_end(qtbot, window)
    assert window.controller.state.status is RunStatus.CANCELLED
    assert not window.controller.stop_report.forced
    assert not list((tmp_path / "out").rglob("*.part"))
    assert window.start_run()
    wait_end(qtbot, window)
    assert window.controller.state.status is RunStatus.SUCCESS
