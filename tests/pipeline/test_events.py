"""The trip over the queue is exact, and the tuples are the ones listeners of the existing program know."""

import pickle

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
