"""Stand-ins for the worker that the command line starts."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

from zemosaic_pipeline.events import (
    PHASES,
    FrameLeftOut,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunStarted,
    TileFinished,
    to_queue,
)


def good(queue, input_dir, output_dir, config=None, cancel_event=None):
    """A small run with a warning and a frame left out."""
    for event in (
        RunStarted("r", input_dir, output_dir, ("phase1_prepare", "phase3_master_tiles")),
        PhaseStarted("phase1_prepare", 2),
        PhaseProgress("phase1_prepare", 1, 2, f"{input_dir}/a.fit"),
        FrameLeftOut(f"{input_dir}/b.fit", "test_reason", {"n": 1, "share": math.nan}),
        PhaseFinished("phase1_prepare", 61.0, 123_000_000),
        PhaseStarted("phase3_master_tiles", 1),
        TileFinished(1, f"{output_dir}/t.fits", 1),
        Message("settings_unknown", "WARN", {"option": "key_of_old"}),
        Message("run_preview_grown", "DEBUG", {"path": "p.png"}),
        Message("seen_config", "INFO", {"kappa": (config or {}).get("stacking_kappa_low")}),
        RunEnded(
            "success", {"science": f"{output_dir}/mosaic.fits", "coverage": f"{output_dir}/coverage.fits"}
        ),
    ):
        queue.put(to_queue(event))


def bad(queue, input_dir, output_dir, config=None, cancel_event=None):
    """A run that cannot give a result."""
    queue.put(to_queue(RunStarted("r", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(RunEnded("failed", key="settings_unknown", values={"option": "the reason"})))


def patient(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Runs until it is asked to stop, then ends cleanly; says whether Ctrl-C would have hit it."""
    queue.put(to_queue(RunStarted("r", input_dir, output_dir, tuple(PHASES))))
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    Path(output_dir, "started").write_text(str(ignored))
    cancel_event.wait(60)
    time.sleep(0.3)
    Path(output_dir, "clean").write_text("")
    queue.put(to_queue(RunEnded("cancelled", key="run_cancelled")))


def stubborn(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Does not hear the request to stop."""
    queue.put(to_queue(RunStarted("r", input_dir, output_dir, tuple(PHASES))))
    Path(output_dir, "started").write_text("")
    time.sleep(60)
