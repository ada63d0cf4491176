"""The trip over the queue is exact, and the tuples are the ones listeners of the existing program know."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from zemosaic_pipeline.events import (
    PHASES,
    EtaUpdated,
    FrameLeftOut,
    GpuRecorded,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PreviewGrown,
    RunEnded,
    RunStarted,
    TileFinished,
    from_queue,
    spoken_values,
    to_queue,
)

EVENTS = [
    RunStarted("r1", "in", "out", ("phase0_survey", "phase1_prepare")),
    PhaseStarted("phase3_master_tiles", 4),
    PhaseProgress("phase1_prepare", 3, 12, "a.fit"),
    PhaseFinished("phase1_prepare", 2.5, 123456),
    FrameLeftOut("a.fit", "frame_empty", {"value": 0.0}),
    TileFinished(2, "tile.fits", 12, "p.png"),
    PreviewGrown("preview.png"),
    GpuRecorded({"kind": "decision", "op": "stack"}),
    EtaUpdated(3725.4),
    Message("run_info_grid", "INFO", {"width": 10}),
    RunEnded("success", {"science": "m.fits"}),
    RunEnded("failed", key="run_error_no_frames", values={"folder": "x"}),
    RunEnded("cancelled", key="run_cancelled"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_event_survives_the_queue(event):
    assert from_queue(pickle.loads(pickle.dumps(to_queue(event)))) == event


def test_known_tuples_of_the_protocol():
    key, stage, current, values = to_queue(PhaseProgress("phase1_prepare", 3, 12))
    assert (key, stage, current, values["total"]) == ("STAGE_PROGRESS", "phase1_prepare", 3, 12)
    assert to_queue(PhaseStarted("phase4_grid", 0))[0] == "PHASE_UPDATE:4"
    assert to_queue(EtaUpdated(3725.4))[0] == "ETA_UPDATE:01:02:05"
    assert to_queue(RunEnded("success"))[0] == "PROCESS_DONE"
    failed = to_queue(RunEnded("failed", key="k"))
    assert failed[0] == "PROCESS_ERROR"
    assert failed[3]["error"] == "k"


def test_unknown_event_type_is_an_error():
    with pytest.raises(ValueError, match="Surprise"):
        from_queue(("x", None, "INFO", {"event": "Surprise"}))


def test_phase_shares_are_the_whole_run():
    assert sum(share for _, share in PHASES.values()) == pytest.approx(100)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RunStarted("r1", Path("in"), "out", ()), "RunStarted.input_dir"),
        (lambda: RunStarted("r1", "in", "out", (Path("p"),)), r"RunStarted.phases\[0\]"),
        (lambda: PhaseProgress("phase1_prepare", 1, 2, Path("a.fit")), "PhaseProgress.item"),
        (lambda: FrameLeftOut(Path("a.fit"), "frame_empty"), "FrameLeftOut.path"),
        (
            lambda: FrameLeftOut("a.fit", "frame_empty", {"other": Path("b")}),
            r"FrameLeftOut.values\['other'\]",
        ),
        (lambda: TileFinished(1, Path("t.fits"), 2), "TileFinished.path"),
        (lambda: TileFinished(1, "t.fits", 2, None), "TileFinished.preview_path"),
        (lambda: PreviewGrown(Path("p.png")), "PreviewGrown.path"),
        (lambda: GpuRecorded({"rows": [Path("x")]}), r"GpuRecorded.record\['rows'\]\[0\]"),
        (lambda: Message("k", "INFO", {"files": [b"x"]}), r"Message.values\['files'\]\[0\]"),
        (lambda: Message("k", "INFO", {1: "x"}), r"Message.values"),
        (lambda: RunEnded("success", {"science": Path("m.fits")}), r"RunEnded.outputs\['science'\]"),
        (lambda: Message("k", "INFO", {"error": OSError("no")}), r"Message.values\['error'\]"),
        (lambda: Message(Path("k")), "Message.key"),
    ],
)
def test_event_that_carries_no_text_cannot_be_made(make, named):
    """A path instead of its text was found out after the mosaic had been written, on the other side of the queue."""
    with pytest.raises(TypeError, match=named):
        make()


def test_numbers_of_arrays_become_plain_numbers_in_an_event():
    sizes = np.array([3, 4])
    event = Message("k", "INFO", {"n": sizes.min(), "share": np.float32(0.5), "ok": np.bool_(True)})
    assert json.dumps(event.values) == '{"n": 3, "share": 0.5, "ok": true}'
    assert PhaseProgress("phase1_prepare", sizes.max(), 9).done == 4


def test_end_of_a_run_can_always_be_told():
    """Whatever an error carries: the last event must not fail for it."""
    values = spoken_values({"path": Path("a.fit"), "n": np.int64(3), "reasons": (OSError("no"), 1.5)})
    assert values == {"path": "a.fit", "n": 3, "reasons": ("no", 1.5)}
    assert RunEnded("failed", key="k", values=values).values == values
