"""The command line runs, stops and fails as its exit code says."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import run_zemosaic
from locales.zemosaic_localization import available_languages
from zemosaic_pipeline.events import PHASES, FrameLeftOut, GpuRecorded, PhaseProgress
from zemosaic_pipeline.output_formats import COPIES, PICTURES
from zemosaic_pipeline.report import sentences
from zemosaic_settings import Settings
from zemosaic_ui import commands
from zemosaic_ui.run_state import RunState
from zemosaic_ui.terminal import LiveDisplay, PlainDisplay, Verbosity, make_display
from zemosaic_ui.texts import Texts
from zemosaic_worker import _log_line


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    for name in ("ZEMOSAIC_CONFIG", "ZEMOSAIC_LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folders(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    return source, target


def start(monkeypatch, worker: str) -> None:
    original = commands.follow_run

    def with_worker(settings, texts, verbosity, **options):
        return original(settings, texts, verbosity, target=f"cli_workers:{worker}", **options)

    monkeypatch.setattr(commands, "follow_run", with_worker)


def run(folders, *arguments: str) -> int:
    return run_zemosaic.main(["run", str(folders[0]), str(folders[1]), *arguments])


def test_success_in_plain_lines(folders, monkeypatch, capsys):
    start(monkeypatch, "good")
    assert run(folders, "--set", "stacking_kappa_low=2.5") == 0
    shown, warned = capsys.readouterr()
    assert "Phase 1: Measuring and solving frames" in shown
    assert "1:01" in shown
    assert "kappa=2.5" in shown
    assert "Preview:" not in shown
    assert "key_of_old" in warned
    assert "Frames left out: 1" in warned
    assert "test_reason" in warned


LONG = "a folder [bold]with[/bold] :star: a long name and tabs\there " + "0123456789" * 12


@pytest.mark.parametrize("arguments", [(), ("--verbose",), ("--quiet",)])
def test_paths_of_written_files_are_whole_lines(tmp_path, monkeypatch, capsys, arguments):
    """Whoever reads the output of a run copies the path, or has a program read it."""
    monkeypatch.delenv("COLUMNS")
    (tmp_path / "in").mkdir()
    start(monkeypatch, "good")
    assert run((tmp_path / "in", tmp_path / LONG), *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("mosaic.fits", "coverage.fits"):
        path = str(tmp_path / LONG / name)
        assert [line.endswith(path) for line in lines].count(True) == 1
        if arguments == ("--quiet",):
            assert path in lines


def test_quiet_prints_the_written_files_alone(folders, monkeypatch, capsys):
    start(monkeypatch, "good")
    assert run(folders, "--quiet") == 0
    shown, warned = capsys.readouterr()
    assert shown.splitlines() == [str(folders[1] / "mosaic.fits"), str(folders[1] / "coverage.fits")]
    assert "key_of_old" in warned
    # Half of a night may be of another camera: no frame is lost without a word.
    assert "Frames left out: 1" in warned
    assert "test_reason" in warned


def test_verbose_shows_every_item(folders, monkeypatch, capsys):
    start(monkeypatch, "good")
    assert run(folders, "--verbose", "--language", "fr") == 0
    shown, warned = capsys.readouterr()
    assert "Mesure et résolution des images, 1/2, a.fit" in shown
    assert "Tuile maîtresse 1" in shown
    assert "Aperçu : p.png" in shown
    assert "Écarté b.fit" in warned


@pytest.mark.parametrize("arguments", [(), ("--quiet",), ("--verbose",)])
def test_failure_names_its_reason_on_stderr(folders, monkeypatch, capsys, arguments):
    start(monkeypatch, "bad")
    assert run(folders, *arguments) == 1
    shown, warned = capsys.readouterr()
    assert "the reason" in warned
    assert "the reason" not in shown


def test_json_is_one_object_at_the_end(folders, monkeypatch, capsys):
    start(monkeypatch, "good")
    assert run(folders, "--json") == 0
    shown, said = capsys.readouterr()
    facts = json.loads(shown)
    assert (facts["outcome"], facts["exit_code"], facts["error"]) == ("success", 0, None)
    assert facts["outputs"] == {
        "science": str(folders[1] / "mosaic.fits"),
        "coverage": str(folders[1] / "coverage.fits"),
    }
    left_out = facts["left_out"][0]
    assert (left_out["path"], left_out["key"], left_out["values"]) == (
        str(folders[0] / "b.fit"),
        "test_reason",
        {"n": 1, "share": None},
    )
    assert [(item["key"], "key_of_old" in item["text"]) for item in facts["warnings"]] == [
        ("settings_unknown", True)
    ]
    assert "Phase 1: Measuring and solving frames" in said
    assert run(folders, "--json", "--quiet") == 0
    shown, said = capsys.readouterr()
    assert json.loads(shown)["outputs"] == facts["outputs"]
    assert "Phase 1" not in said


def test_json_tells_of_failures_too(folders, monkeypatch, capsys):
    start(monkeypatch, "bad")
    assert run(folders, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["outcome"], facts["exit_code"], facts["outputs"]) == ("failed", 1, {})
    assert facts["error"]["key"] == "settings_unknown"
    assert "the reason" in facts["error"]["text"]
    assert run(folders, "--json", "--set", "stacking_kappa_low=99") == 2
    facts = json.loads(capsys.readouterr().out)
    assert (facts["outcome"], facts["exit_code"]) == ("failed", 2)
    assert "stacking_kappa_low" in facts["error"]["text"]


def interrupt_when(path: Path, signals: list[int]) -> threading.Thread:
    """Send this process the signals once the worker has started, as a terminal does for Ctrl-C."""

    def send() -> None:
        until = time.monotonic() + 30
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
        for number in signals:
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_a_clean_end(folders, monkeypatch, capsys, number):
    start(monkeypatch, "patient")
    # A shell that starts its jobs in the background has them ignore Ctrl-C; whatever it was must come back.
    before = signal.getsignal(signal.SIGINT)
    thread = interrupt_when(folders[1] / "started", [number])
    assert run(folders) == 130
    thread.join()
    assert (folders[1] / "clean").exists()
    assert (folders[1] / "started").read_text() == "True"
    assert "a new start goes on from there" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_second_ctrl_c_ends_at_once(folders, monkeypatch):
    start(monkeypatch, "stubborn")
    thread = interrupt_when(folders[1] / "started", [signal.SIGINT, signal.SIGINT])
    before = time.monotonic()
    assert run(folders) == 130
    assert time.monotonic() - before < 55  # the worker itself would take 60 s
    thread.join()


def test_broken_display_leaves_no_worker_behind(folders, monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(
        commands, "make_display", lambda *_: PlainDisplay(Console(file=io.StringIO()), Texts())
    )
    monkeypatch.setattr(PlainDisplay, "show", broken)
    start(monkeypatch, "stubborn")
    with pytest.raises(BrokenPipeError):
        run(folders)
    left = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "kappa=3"], ["kappa"]),
        (["--set", "stacking_kapa_low=3"], ["stacking_kapa_low", "stacking_kappa_low"]),
        (["--set", "stacking_kappa_low=99"], ["stacking_kappa_low", "99", "0.1", "10"]),
        (["--set", "stacking_kappa_low"], ["--set", "key=value"]),
        (["--set", "stacking_kappa_low="], ["stacking_kappa_low"]),
        (["--gpu-device", "many"], ["gpu_id_phase5", "many"]),
        (["--config", "/nowhere/at.json"], ["/nowhere/at.json"]),
        (["--language", "xx"], ["--language", "xx", "en, "]),
    ],
)
def test_wrong_argument_is_one_clear_line_and_code_two(folders, capsys, arguments, words):
    assert run(folders, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    for word in words:
        assert word in shown


def test_unknown_command_and_missing_folder_are_code_two(tmp_path, capsys):
    assert run_zemosaic.main(["fly"]) == 2
    assert run_zemosaic.main(["run"]) == 2
    assert run_zemosaic.main(["run", str(tmp_path / "none"), str(tmp_path)]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_version_and_help(capsys):
    assert run_zemosaic.main(["--version"]) == 0
    assert run_zemosaic.main(["run", "--help", "--language", "fr"]) == 0
    shown = capsys.readouterr().out
    assert "ZeMosaic 5" in shown
    assert "dossier des images brutes" in shown
    assert "utilisation: run_zemosaic.py run" in shown
    for english in ("usage", "positional", "show this help", "version number"):
        assert english not in shown


def options_of(*arguments: str):
    return run_zemosaic.build_parser(Texts()).parse_args(["run", "in", "out", *arguments])


def test_arguments_win_over_set_and_set_over_the_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"gpu_mode": "require", "tile_feather_px": 8, "resume": "off", "language": "fr"}')
    options = options_of(
        "--config", str(file), "--set", "tile-feather-px=16", "--gpu", "off", "--gpu-device", "-1"
    )
    settings = commands.settings_from(options)
    assert settings.tile_feather_px == 16
    assert settings.asked_gpu_mode == "off"
    assert settings.resume == "off"
    assert settings.language == "fr"
    assert (
        commands.settings_from(options_of("--set", "use_gpu=no", "--gpu", "require")).asked_gpu_mode
        == "require"
    )
    assert commands.settings_from(options_of("--set", "input_dir=")).input_dir == ""
    assert commands.settings_from(options_of("--hips")).save_hips
    assert not commands.settings_from(options_of()).save_hips


def test_no_arguments_open_the_window(monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_zemosaic.sys, "platform", "linux")
    monkeypatch.setattr(run_zemosaic, "missing_packages", lambda: [])
    assert run_zemosaic.main([]) == 1
    assert "DISPLAY" in capsys.readouterr().err
    monkeypatch.setenv("DISPLAY", ":9")
    opened = []

    class Window:
        @staticmethod
        def run_qt_main() -> int:
            opened.append(True)
            return 0

    monkeypatch.setattr(run_zemosaic.importlib, "import_module", lambda name: Window)
    assert run_zemosaic.main([]) == 0
    assert opened


def test_missing_toolkit_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")

    def missing(name):
        raise ModuleNotFoundError("No module named 'PySide6'", name="PySide6.QtCore")

    monkeypatch.setattr(run_zemosaic.importlib, "import_module", missing)
    assert run_zemosaic.main(["gui"]) == 1
    assert "pip install" in capsys.readouterr().err


# ------------------------------------------------------------------ display


@pytest.mark.parametrize("language", ["en", "fr"])
def test_variable_of_old_is_mentioned_in_one_line(folders, monkeypatch, capsys, language):
    """The first lines of a run, also of one that ends for want of frames."""
    monkeypatch.setenv("ZEMOSAIC_FORCE_CPU_INTERTILE", "1")
    assert run(folders, "--gpu", "off", "--language", language) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [n for n, line in enumerate(lines) if "ZEMOSAIC_FORCE_CPU_INTERTILE" in line] == [2]
    assert ("processeur" if language == "fr" else "processor") in lines[2]


def test_live_only_on_a_terminal():
    texts = Texts()
    pipe = Console(file=io.StringIO())
    screen = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    assert isinstance(make_display(texts, Verbosity.NORMAL, screen), LiveDisplay)
    assert isinstance(make_display(texts, Verbosity.NORMAL, pipe), PlainDisplay)
    assert isinstance(make_display(texts, Verbosity.VERBOSE, screen), PlainDisplay)
    assert isinstance(make_display(texts, Verbosity.QUIET, screen), PlainDisplay)


def test_live_picture_shows_phases_items_and_time_left():
    from zemosaic_pipeline.events import (
        FrameLeftOut,
        PhaseFinished,
        PhaseProgress,
        PhaseStarted,
        TileFinished,
    )

    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    display = LiveDisplay(console, Texts())
    state = RunState()
    state.begin("in", "out", 1.0)
    for event in (
        PhaseStarted("phase1_prepare", 4),
        PhaseFinished("phase1_prepare", 65.0, 1),
        FrameLeftOut("in/x.fit", "test_reason"),
        PhaseStarted("phase3_master_tiles", 7),
        TileFinished(1, "t", 3),
        PhaseProgress("phase3_master_tiles", 3, 7, "C:\\sky\\[tile] 3.fits"),
    ):
        state.apply(event, 2.0)
    console.print(display.draw(state, 125.0, 3700.0))
    shown = console.file.getvalue()
    assert "Stacking master tiles" in shown
    assert "3/7" in shown
    assert "[tile] 3.fits" in shown
    assert "1:05" in shown
    assert "Elapsed: 2:05" in shown
    assert "Time left: 1:01:40" in shown
    assert "Master tiles: 1" in shown
    assert "Frames left out: 1" in shown


@pytest.mark.parametrize("errors_to_a_file", [False, True])
def test_live_display_keeps_its_picture_whole_and_warnings_apart(folders, errors_to_a_file):
    """Two streams that write on one terminal tear the picture; in a file, warnings belong to the file."""
    screen = {"force_terminal": True, "width": 120, "_environ": {"TERM": "xterm"}}
    console = Console(file=io.StringIO(), **screen)
    errors = Console(file=io.StringIO()) if errors_to_a_file else Console(file=io.StringIO(), **screen)
    display = LiveDisplay(console, Texts(), errors)
    with display:
        display.say("settings_unknown", "WARN", option="while it runs")
    display.say("settings_unknown", "WARN", option="afterwards")
    where = errors if errors_to_a_file else console
    assert "while it runs" in where.file.getvalue()
    assert "afterwards" in errors.file.getvalue()


def test_live_display_runs_to_the_end(folders, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    settings = Settings.from_mapping({"input_dir": str(folders[0]), "output_dir": str(folders[1])})
    code = commands.follow_run(
        settings, Texts(), Verbosity.NORMAL, target="cli_workers:good", console=console
    )
    assert code == 0
    assert "Finished in" in console.file.getvalue()


def test_numbers_of_the_summary_are_written_as_the_language_writes_them():
    console = Console(file=io.StringIO(), width=120)
    phase = {"phase": "phase6_export", "seconds": 4.25, "peak_bytes": 1}
    PlainDisplay(console, Texts("de"))._summary(
        {
            "mosaic": {"width": 939, "height": 772, "scale_arcsec": 2.37},
            "frames_used": 18, "frames_found": 20, "tiles": [1], "phases": [phase], "planned_peak_bytes": 2_500_000,
            "peak_bytes": 1, "seconds": 24.75,
        }
    )  # fmt: skip
    shown = console.file.getvalue()
    assert "939 × 772 px, 2,370″/px" in shown
    assert ("4,2 s" in shown, "24,8 s" in shown, "2,5 MB" in shown) == (True, True, True)


@pytest.mark.parametrize("language", available_languages())
def test_no_line_of_the_summary_is_broken_on_a_terminal_of_80_columns(language):
    console, texts = Console(file=io.StringIO(), width=80), Texts(language)
    phases = [{"phase": phase, "seconds": 4712.5, "peak_bytes": 12_300_000_000} for phase in PHASES]
    PlainDisplay(console, texts)._summary(
        {
            "mosaic": {"width": 12939, "height": 10772, "scale_arcsec": 2.37},
            "frames_used": 1218, "frames_found": 1220, "tiles": [1], "phases": phases,
            "planned_peak_bytes": 12_500_000_000, "peak_bytes": 12_300_000_000, "seconds": 24_175.0,
        }
    )  # fmt: skip
    lines = [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]
    assert len(lines) == 3 + len(PHASES) + 1
    assert lines[0].endswith("1\u202f218 / 1\u202f220")


def test_every_file_of_a_run_has_a_name_in_words():
    display = PlainDisplay(Console(file=io.StringIO()), Texts("en"))
    kinds = [
        "science",
        "calibrated",
        "viewer",
        "tiff",
        "zoom",
        "hips",
        "annotated",
        "annotation",
        "objects",
        "sky",
    ]
    kinds += [f"picture_{form}" for form in PICTURES]
    kinds += [f"science_{form}" for form in COPIES]
    assert [kind for kind in kinds if display._kind(kind) == kind] == []


NASTY = "bad\x1b[2J\x1b]0;own\x07\x9b31m\u202etif.\nFinished.fit"


@pytest.mark.parametrize("is_live", [False, True])
def test_names_and_headers_are_text_whatever_is_in_them(is_live):
    from zemosaic_pipeline.events import (
        FrameLeftOut,
        Message,
        PhaseProgress,
        PhaseStarted,
        RunEnded,
        RunStarted,
    )

    texts, state = Texts(), RunState()
    screen = Console(
        file=io.StringIO(), force_terminal=True, width=400, color_system=None, _environ={"TERM": "xterm"}
    )
    display = LiveDisplay(screen, texts) if is_live else PlainDisplay(screen, texts, Verbosity.VERBOSE)
    state.begin(f"/in/{NASTY}", "/out", 0.0)
    for event in (
        RunStarted("id", f"/in/{NASTY}", "/out", ("phase0_survey", "phase1_prepare")),
        PhaseStarted("phase1_prepare", 2),
        PhaseProgress("phase1_prepare", 1, 2, NASTY),
        Message("wcs_solver_wrong", "WARN", {"path": NASTY, "solver": NASTY, "matched": 3}),
        Message("no_text_for_this", "WARN", {"object": NASTY}),
        Message("run_info_mixed", "WARN", {"details": [NASTY, NASTY]}),
        FrameLeftOut(f"/in/{NASTY}", "frame_unreadable", {"reason": NASTY}),
    ):
        state.apply(event, 1.0)
        display.show(event, state)
        if is_live:
            screen.print(display.draw(state, 1.0, None))
    state.apply(RunEnded("success", {"science": f"/out/{NASTY}"}), 2.0)
    display.end(state, 2.0)
    shown = screen.file.getvalue()
    assert "bad" in shown
    assert not [c for c in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", ".\nFinished") if c in shown]


@pytest.mark.parametrize(
    ("content", "word"),
    [("[" * 100_000, "nested too deeply"), ("[" + "1," * 6_000_000 + "1]", "more than"), ("[1]", "list")],
    ids=["deep", "huge", "list"],
)
def test_settings_that_are_no_use_are_one_sentence(folders, tmp_path, capsys, content, word):
    path = tmp_path / "settings.json"
    path.write_text(content)
    assert run(folders, "--config", str(path)) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert word in shown
    assert str(path) in shown
    assert len(shown) < 500


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "language=fr"],
        ["--set=language=fr"],
        ["--config", "FILE"],
        ["--config=FILE"],
        ["--set", "language=en", "--language", "fr"],
        ["--config", "FILE", "--set", "gpu_mode=off"],
    ],
)
def test_the_language_of_set_and_config_is_that_of_the_terminal(tmp_path, arguments):
    file = tmp_path / "mine.json"
    file.write_text('{"language": "fr"}')
    given = [argument.replace("FILE", str(file)) for argument in arguments]
    assert run_zemosaic._language(["run", *given]) == "fr"
    assert run_zemosaic._language(["run", "--set", "gpu_mode=off"]) == "en"


def test_names_of_one_setting_that_differ_are_told(folders, tmp_path, monkeypatch, capsys):
    start(monkeypatch, "good")
    file = tmp_path / "old.json"
    file.write_text('{"use_gpu_phase5": true, "stack_use_gpu": false}')
    assert run(folders, "--config", str(file)) == 0
    assert "stack_use_gpu" in capsys.readouterr().err
    assert run(folders, "--set", "use_gpu_phase5=yes", "--set", "stack_use_gpu=no") == 2
    assert "stack_use_gpu" in capsys.readouterr().err


def test_a_variable_that_contradicts_the_command_line_stops_it_at_once(folders, monkeypatch, capsys):
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    assert run(folders, "--gpu", "require", "--set", "language=fr") == 2
    shown, warned = capsys.readouterr()
    assert "ZEMOSAIC_GPU=off contredit" in shown + warned
    assert "Phase 0" not in shown


def test_what_the_worker_logs_reads_like_the_terminal():
    say = sentences("en")
    values = {
        "op": "stack",
        "op_key": "gpu_op_stack",
        "reason_key": "gpu_reason_device_lost",
        "detail": "719",
    }
    record = {"kind": "fallback", "key": "gpu_fallback_runtime_error", "level": "WARN", "values": values}
    level, line = _log_line(GpuRecorded(record), say)
    shown = Texts().message(record["key"], values)
    assert (level, line) == ("WARN", f"{shown} [gpu_fallback_runtime_error]")
    assert _log_line(GpuRecorded({**record, "repeat": True}), say)[0] == "DEBUG"
    left = FrameLeftOut("/night/a.fit", "frame_unreadable", {"reason": "cut off"})
    level, line = _log_line(left, say)
    assert level == "WARN"
    assert line.startswith("a.fit: ")
    assert "[frame_unreadable]" in line
    assert "phase1" in _log_line(PhaseProgress("phase1", 3, 9), say)[1]


@pytest.mark.skipif(os.name == "nt", reason="numbers of streams of POSIX")
def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    code = (
        "import os, sys, run_zemosaic; run_zemosaic._open_closed_streams(); print('x'); sys.stderr.write('y');"
        f"file = open({str(tmp_path / 'number')!r}, 'w'); file.write(str(file.fileno()))"
    )
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(line, check=False).returncode == 0
    assert int((tmp_path / "number").read_text()) > 2


@pytest.mark.parametrize(
    ("typed", "shown"), [("/usr/bin/zemosaic", "zemosaic"), ("run_zemosaic.py", "run_zemosaic.py")]
)
def test_help_names_the_command_that_was_typed(monkeypatch, capsys, typed, shown):
    monkeypatch.setattr(sys, "argv", [typed])
    assert run_zemosaic.main(["no-such-command"]) == 2
    said = capsys.readouterr().err
    assert f": {shown} [-h]" in said
    assert "argument COMMAND: invalid choice" in said
