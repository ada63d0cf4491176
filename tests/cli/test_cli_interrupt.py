"""Signals on a real run at the command line: 130, nothing left behind; wrong settings: 2 and one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zemosaic_io.demo_session import write_demo_night

ROOT = Path(__file__).parents[2]
# Only what would never end may decide, not a busy machine.
PATIENCE_S = 200.0


def start(folder: Path, *arguments: str, encoding: str = "utf-8") -> subprocess.Popen:
    """Start the command line; ``encoding`` is that of its terminal."""
    environment = {
        **os.environ,
        "ZEMOSAIC_CONFIG_DIR": str(folder / "user"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": encoding,
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_zemosaic.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli_night") / "raw"
    write_demo_night(
        folder, panels=(1, 2), frames_per_panel=6, shape_hw=(400, 300), with_wcs=True, bad_frames=False
    )
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_a_real_run(night, tmp_path):
    out = tmp_path / "out"
    process = start(
        tmp_path, "run", str(night), str(out), "--gpu", "off", "--set", "num_processing_workers=2"
    )
    family: list[psutil.Process] = []
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Phase 1:"):
            time.sleep(1.0)
            family = psutil.Process(process.pid).children(recursive=True)
            # A terminal sends it to every process of the group.
            os.killpg(process.pid, signal.SIGINT)
            break
    text = "".join(lines) + process.stdout.read()
    assert process.wait(timeout=PATIENCE_S) == 130, text
    assert "Traceback" not in text
    assert family
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []
    assert not [*out.rglob("*.part"), *out.rglob("run_2*")]
    assert not list(out.glob("zemosaic_*.fits"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_while_the_program_is_imported_is_no_traceback(tmp_path, name):
    # Stands for a disk on which importing takes long: the first import after the handlers are set.
    (tmp_path / "argparse.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(100)\n")
    number = getattr(signal, name)
    # Shells let jobs in the background ignore Ctrl-C, and the program leaves it at that: not what is asked here.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_zemosaic.py"), "--version"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
    finally:
        signal.signal(number, before)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, text) == (130, "")


# What is sent, to whom: the command, its worker, or every process of the group, as a closed terminal does.
STOPS = [
    ("SIGHUP", "group"),
    ("SIGKILL", "command"),
    ("SIGKILL", "worker"),
]
EXIT_CODES = {("SIGKILL", "command"): -9, ("SIGKILL", "worker"): 1}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "whom"), STOPS)
def test_every_signal_ends_the_whole_family(night, tmp_path, name, whom):
    """In 2 s on an idle machine; with 1,500 messages nobody reads, which must not keep the worker alive."""
    crowd = tmp_path / "in"
    crowd.mkdir()
    for path in night.iterdir():
        os.link(path, crowd / path.name)
    for i in range(1500 if name == "SIGKILL" else 10):
        (crowd / f"empty_{i:04d}_with_a_name_as_long_as_telescopes_give_it.fit").touch()
    out = tmp_path / "out"
    process = start(
        tmp_path, "run", str(crowd), str(out), "--quiet", "--gpu", "off", "--set", "num_processing_workers=2"
    )  # fmt: skip
    state = out / ".zemosaic_state"
    while not (state / "run.lock").exists() or (name != "SIGKILL" and not list(state.glob("frames/*.npz"))):
        assert process.poll() is None
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    worker = next(p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline()))
    number = getattr(signal, name)
    if whom == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "command" else worker.pid, number)
    text, _ = process.communicate(timeout=PATIENCE_S)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []
    assert process.returncode == EXIT_CODES.get((name, whom), 130), text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "stacking_kappa_low=minus"],
        ["--set", "no_such_option=1"],
        ["--set", "resample_kernel=nearest"],
        ["--set", "canvas_max_megapixels=nan"],
    ],
)
def test_wrong_settings_are_one_clear_line(night, tmp_path, arguments):
    process = start(tmp_path, "run", str(night), str(tmp_path / "out"), *arguments)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert len(text.strip().splitlines()) == 1
    assert arguments[1].partition("=")[0] in text
    assert not (tmp_path / "out").exists()


def test_missing_folder_and_folder_without_frames(tmp_path):
    process = start(tmp_path, "run", str(tmp_path / "none"), str(tmp_path / "out"))
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "none" in text
    assert len(text.strip().splitlines()) == 1
    (tmp_path / "empty").mkdir()
    process = start(tmp_path, "run", str(tmp_path / "empty"), str(tmp_path / "out"), "--gpu", "off")
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Traceback" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_strange_file_name_is_shown_not_stumbled_over(night, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted(night.iterdir())[:3]:
        (source / path.name).write_bytes(path.read_bytes())
    Path(os.fsdecode(os.fsencode(source) + b"/empty \xff.fit")).write_bytes(b"")
    process = start(tmp_path, "plan", str(source), str(tmp_path / "out"), "--json", encoding="utf-8:strict")
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert json.loads(text)["left_out"][0]["path"].endswith("empty \udcff.fit")
    process = start(
        tmp_path, "run", str(source), str(tmp_path / "out"), "--gpu", "off", encoding="ascii:strict"
    )
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert "Traceback" not in text
