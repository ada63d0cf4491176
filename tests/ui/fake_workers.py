"""Stand-ins for the worker process: they speak its protocol and do exactly what a test needs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

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
    to_queue,
)


def happy(queue, input_dir, output_dir, config=None, cancel_event=None):
    """A whole run of few items; obeys a stop."""
    config = config or {}
    frames = int(config.get("fake_frames", 8))
    pause = float(config.get("fake_pause", 0.0))

    def send(event):
        queue.put(to_queue(event))

    send(RunStarted("run-1", input_dir, output_dir, tuple(PHASES)))
    for phase in PHASES:
        total = 3 if phase == "phase3_master_tiles" else frames
        send(PhaseStarted(phase, total))
        for index in range(total):
            if cancel_event is not None and cancel_event.is_set():
                send(RunEnded("cancelled", key="run_cancelled"))
                return
            time.sleep(pause)
            send(PhaseProgress(phase, index + 1, total, f"frame_{index:04d}.fit"))
            if phase == "phase1_prepare" and index == 1:
                send(FrameLeftOut(f"{input_dir}/frame_0001.fit", "skip_no_stars", {"n": 2}))
            if phase == "phase3_master_tiles":
                send(TileFinished(index, f"{output_dir}/tile_{index}.fits", 4, ""))
        send(PhaseFinished(phase, 0.5, 100_000_000))
        send(GpuRecorded({"event": "decision", "op": phase, "device": "cpu", "reason_key": "gpu_off"}))
        hold = config.get("fake_hold_in")
        if hold == phase:
            while not cancel_event.is_set():
                time.sleep(0.02)
            send(RunEnded("cancelled", key="run_cancelled"))
            return
    send(Message("fake_config_seen", "INFO", {"config": dict(config)}))
    send(EtaUpdated(1.0))
    out = Path(output_dir) / "mosaic.fits"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"")
    send(PreviewGrown(str(Path(output_dir) / "preview.png")))
    send(RunEnded("success", {"mosaic": str(out)}))


def killed(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Dies as a process does that the system kills."""
    queue.put(to_queue(RunStarted("run-2", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(PhaseStarted("phase0_survey", 10)))
    time.sleep(0.2)
    os.kill(os.getpid(), 9)


def killed_with_a_child(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Dies while a program it started, in a session of its own, is at work."""
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    queue.put(to_queue(Message("fake_child", "INFO", {"pid": child.pid})))
    time.sleep(3.0)
    os.kill(os.getpid(), 9)


def raises(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Ends with a traceback and no last word."""
    queue.put(to_queue(RunStarted("run-3", input_dir, output_dir, tuple(PHASES))))
    raise MemoryError("the tile did not fit")


def silent_exit(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Leaves with exit code 0 and without saying that it ended."""
    queue.put(to_queue(RunStarted("run-4", input_dir, output_dir, tuple(PHASES))))


def success_then_crash(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Announces success, then breaks."""
    queue.put(to_queue(RunStarted("run-5", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(RunEnded("success", {})))
    time.sleep(0.3)
    os._exit(139)


def success_then_stopped(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Announces success, and gets a signal on its way out, where nothing answers it any more."""
    queue.put(to_queue(RunStarted("run-6", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(RunEnded("success", {})))
    # Python waits for this thread when everything else is done.
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()


def deaf(queue, input_dir, output_dir, config=None, cancel_event=None):
    """Ignores the stop, has a child of its own and a half-written file."""
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tile.fits.part").write_bytes(b"half")
    queue.put(to_queue(RunStarted("run-6", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(PhaseStarted("phase3_master_tiles", 4)))
    queue.put(to_queue(TileFinished(1, str(folder / "tile_1.fits"), 9, "")))
    queue.put(to_queue(Message("fake_child", "INFO", {"pid": child.pid})))
    while True:
        time.sleep(0.1)


def flood(queue, input_dir, output_dir, config=None, cancel_event=None):
    """A night of 10,000 frames as fast as the queue takes it."""
    queue.put(to_queue(RunStarted("run-7", input_dir, output_dir, tuple(PHASES))))
    queue.put(to_queue(PhaseStarted("phase1_prepare", 10_000)))
    for index in range(10_000):
        path = f"{input_dir}/{'a_long_folder_name/' * 8}frame_{index:05d}.fit"
        queue.put(to_queue(PhaseProgress("phase1_prepare", index + 1, 10_000, path)))
        if index % 4 == 0:
            queue.put(to_queue(FrameLeftOut(path, "skip_no_stars", {"n": 1})))
    queue.put(to_queue(RunEnded("success", {})))


def countdown(queue, start, cancel_event=None):
    """A small background job: counts down and obeys a cancel."""
    for value in range(start, 0, -1):
        if cancel_event.is_set():
            return
        queue.put(value)
        time.sleep(0.01)
