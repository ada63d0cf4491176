"""What the command line does without a window: run, plan, demo, doctor, solve."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zemosaic_config import get_config_path, load_config, load_old_values, read_config
from zemosaic_core.errors import SettingsError
from zemosaic_core.visible_text import visible_text
from zemosaic_pipeline.events import RunEnded, spoken_values
from zemosaic_pipeline.outside_stop import STOP_SIGNALS
from zemosaic_settings import OPTIONS_BY_KEY, Settings, canonical_values
from zemosaic_ui.run_controller import WORKER_TARGET, RunController, RunRequest
from zemosaic_ui.run_state import RunState, RunStatus
from zemosaic_ui.terminal import Display, Verbosity, make_display
from zemosaic_ui.texts import Texts
from zemosaic_ui.tile_commands import crop, quality

if TYPE_CHECKING:
    from zemosaic_pipeline.solve_files import FileSolution

__all__ = ["COMMANDS", "demo", "doctor", "follow_run", "plan", "run", "settings_from", "solve"]

EXIT_SETTINGS = 2
EXIT_OF = {RunStatus.SUCCESS: 0, RunStatus.FAILED: 1, RunStatus.CANCELLED: 130}
# The worker ends by itself a second after it was asked; where it does not hear, a person at a terminal can ask twice.
STOP_GRACE_S = 120.0
# Whoever sends another signal (a system that shuts down, a closed terminal) kills what does not end soon.
SIGNAL_GRACE_S = 1.4
TICK_S = 0.1
_ENDED_WITHOUT_A_WORD = (
    "ui_worker_not_started",
    "ui_worker_died",
    "ui_worker_killed",
    "ui_worker_signalled",
    "ui_worker_cpu_limit",
)


def settings_from(options: Namespace, **folders: Any) -> Settings:
    """Return the settings of a command: the file, then ``--set``, then the other arguments.

    Raises
    ------
    SettingsError
        The file or an argument holds a value that is not allowed, or names an unknown option.
    """
    settings = Settings.from_mapping(load_config(options.config, strict=True))
    settings = settings.updated(dict(_assignment(text) for text in options.set))
    arguments: dict[str, Any] = {**folders, "language": options.language}
    if "executor" in options:  # not where nothing is computed that these would change
        arguments |= {
            "resume": options.resume,
            "gpu_mode": options.gpu,
            "use_gpu_phase5": None if options.gpu is None else options.gpu != "off",
            "gpu_id_phase5": options.gpu_device,
            "gpu_memory_mb": options.gpu_memory_mb,
            "executor": options.executor,
            "map_path": None if options.map_path is None else ";".join(options.map_path),
            "save_hips": True if options.hips else None,
        }
    return settings.updated({key: value for key, value in arguments.items() if value is not None})


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key, value = key.strip().replace("-", "_"), value.strip()
    if not equals or not key:
        raise SettingsError("cli_not_an_assignment", f"--set {text!r}: write --set key=value", text=text)
    known, unknown = canonical_values({key: value})
    if not known and not unknown:
        option = next(option for option in OPTIONS_BY_KEY.values() if key in option.all_names)
        raise SettingsError("cli_no_value", f"--set {key}= has no value", option=option.key)
    return key, value


def run(options: Namespace, texts: Texts) -> int:
    """Make a mosaic."""
    target = Path(options.output).expanduser().resolve()
    try:
        settings = settings_from(options, **_sources(options), output_dir=str(target))
    except SettingsError as error:
        if options.json:
            _write_json(_facts_of_no_run(error, options.input or "", str(target), texts))
        raise
    _tell_conflicts(options, texts)
    return follow_run(
        settings,
        texts,
        _verbosity(options),
        as_json=options.json,
        gpu_asked_by=_gpu_asked_by(options),
        old_values=load_old_values(options.config),
    )


def plan(options: Namespace, texts: Texts) -> int:
    """Say what a run would do and cost."""
    from zemosaic_pipeline.plan import make_plan

    source, target = _folder(options.input), Path(options.output).expanduser().resolve()
    settings = settings_from(options, input_dir=str(source), output_dir=str(target))
    _tell_conflicts(options, texts)
    made = make_plan(source, target, settings, solve_some=options.solve_some)
    facts = made.to_dict()
    if options.json:
        _write_json(facts)
        return 0
    console = Console()
    _print_facts(console, texts, facts)
    console.print(_plan_table(made.rows, facts, texts))
    return 0


def demo(options: Namespace, texts: Texts) -> int:
    """Write a made-up night and make its mosaic."""
    from zemosaic_ui.demo import prepare_demo

    folder = Path(options.folder).expanduser().resolve()
    verbosity = _verbosity(options)
    target = folder / "mosaic"
    settings = settings_from(options, output_dir=str(target))
    _tell_conflicts(options, texts)
    display = make_display(texts, verbosity)
    frames = prepare_demo(folder, options.frames, _quiet_say(display))
    settings = settings.updated({"input_dir": str(frames)})
    return follow_run(settings, texts, verbosity, gpu_asked_by=_gpu_asked_by(options))


def doctor(options: Namespace, texts: Texts) -> int:
    """Check the installation; 1 when something needed is missing."""
    from zemosaic_pipeline.doctor import examine

    loaded = read_config(options.config)
    settings = Settings.from_mapping(loaded.values)
    path = options.config or get_config_path()
    console = Console()
    findings = []
    for finding in examine(
        settings, config_path=path, config_problems=loaded.problems, config_conflicts=loaded.conflicts
    ):
        findings.append(finding)
        if not options.json:
            console.print(_finding_line(finding, texts), soft_wrap=True)
    if options.json:
        _write_json([finding.to_dict() for finding in findings])
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def solve(options: Namespace, texts: Texts) -> int:
    """Find the place of single frames in the sky; 1 when one of them was not found."""
    from zemosaic_io.wcs_write import solved_path, write_wcs
    from zemosaic_pipeline.solve_files import iter_solutions

    settings = settings_from(options)
    paths = [Path(name).expanduser().resolve() for name in options.files]
    console = Console()
    all_found = True
    with tempfile.TemporaryDirectory(prefix="zemosaic_solve_") as work:
        for solution in iter_solutions(paths, settings, Path(work)):
            all_found &= solution.ok
            console.print(_solution_line(solution, texts), soft_wrap=True, highlight=False)
            if solution.ok and solution.info is not None and (options.write or options.in_place):
                target = solution.path if options.in_place else solved_path(solution.path)
                write_wcs(solution.path, target, solution.info.hdu, solution.outcomes[-1].wcs_cards or {})
                console.print(Text("    → " + texts("solve.written", path=str(target))), soft_wrap=True)
    return 0 if all_found else 1


COMMANDS: Mapping[str, Callable[[Namespace, Texts], int]] = {
    "run": run,
    "plan": plan,
    "demo": demo,
    "doctor": doctor,
    "solve": solve,
    "crop": crop,
    "quality": quality,
}


def follow_run(
    settings: Settings,
    texts: Texts,
    verbosity: Verbosity,
    *,
    target: str = WORKER_TARGET,
    console: Console | None = None,
    as_json: bool = False,
    gpu_asked_by: str = "",
    old_values: Mapping[str, Any] | None = None,
) -> int:
    """Run the worker in its own process, show what it says, and return the exit code.

    The first Ctrl-C asks for a clean stop and waits for it, the second ends everything at once. SIGTERM and SIGHUP
    ask for a clean stop within two seconds.
    With ``as_json`` one JSON object is all that goes to standard output, at the end (see `run_facts`).
    ``old_values`` are what the settings file still says to version 4; the run tells what stands for it.
    ``gpu_asked_by`` is the text key of who chose whether the graphics card is used; empty: the settings.
    """
    if as_json:
        console = Console(stderr=True)
    controller = RunController(target, grace_s=STOP_GRACE_S)
    config = {**(old_values or {}), **settings.to_mapping(), "gpu_asked_by": gpu_asked_by}
    request = RunRequest(settings.input_dir, settings.output_dir, config)
    with make_display(texts, verbosity, console) as display, _stop_requests() as asked:
        controller.start(request)
        try:
            _follow(controller, display, asked)
        finally:
            # Only an error of the display itself leaves the worker behind; nobody would listen to it any more.
            if controller.is_active:
                controller.stop_now()
                controller.wait(STOP_GRACE_S)
    state, seconds = controller.state, controller.elapsed()
    if asked and state.end_key in _ENDED_WITHOUT_A_WORD:
        # The signal went to the whole group, and the worker was gone before it could be asked.
        controller.note_stopped()
    display.end(state, seconds)
    # Wrong settings have a code of their own: nothing was started. Other codes of the worker, such as that of a
    # signal that killed it, are not those of the command.
    wrong_settings = state.end_values.get("exit_code") == EXIT_SETTINGS
    exit_code = EXIT_SETTINGS if wrong_settings else EXIT_OF[state.status]
    if as_json:
        from zemosaic_ui.run_facts import run_facts

        _write_json(run_facts(state, texts, seconds=seconds, exit_code=exit_code))
    return exit_code


def _gpu_asked_by(options: Namespace) -> str:
    return "" if options.gpu is None else "gpu_by_command"


def _tell_conflicts(options: Namespace, texts: Texts) -> None:
    """Name the settings of the file that have two values, and which one is used; and names that are misspelt."""
    for conflict in read_config(options.config).conflicts:
        sys.stderr.write(texts.message(conflict.key, conflict.values) + "\n")


def _facts_of_no_run(error: SettingsError, source: str, target: str, texts: Texts) -> dict[str, Any]:
    """Return what `run --json` prints when the arguments or settings are wrong and nothing was started."""
    from zemosaic_ui.run_facts import run_facts

    state = RunState()
    state.begin(source, target, 0.0)
    state.apply(RunEnded("failed", key=error.key, values=spoken_values(error.values)), 0.0)
    return run_facts(state, texts, seconds=0.0, exit_code=EXIT_SETTINGS)


def _write_json(facts: Any) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    if not text.isprintable():
        # Characters that a terminal would obey are the same JSON when they are written out.
        text = "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(text + "\n")


def _follow(controller: RunController, display: Display, asked: list[int]) -> None:
    answered = 0
    while controller.is_active:
        answered = _answer_stop(controller, display, asked, answered)
        events = controller.poll(budget_s=0.05)
        for event in events:
            display.show(event, controller.state)
        display.tick(controller)
        if not events:
            time.sleep(TICK_S)


def _answer_stop(controller: RunController, display: Display, asked: list[int], answered: int) -> int:
    if len(asked) > answered:
        if answered == 0:
            display.say("run_stopping", "WARN")
            controller.stop(within_s=None if asked[0] == signal.SIGINT else SIGNAL_GRACE_S)
        elif signal.SIGINT in asked:
            # A person asks twice who means it; a system that shuts down sends one signal after the other.
            display.say("run_killed", "WARN")
            controller.stop_now()
    return len(asked)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that ask for a stop, instead of dying of them."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if number not in (signal.SIGINT, signal.SIGTERM):
            _forget_terminal()

    # Whoever starts a run with `nohup` wants it to outlive the terminal.
    watched = [signal.SIGINT, *(s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN)]
    before = {number: signal.signal(number, note) for number in watched}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_terminal() -> None:
    """Write to nowhere what was meant for a terminal that is closed: it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _sources(options: Namespace) -> dict[str, Any]:
    """Return where a run takes its pictures from: raw frames, stacks, or both.

    Raises
    ------
    SettingsError
        A folder does not exist, or none is given.
    """
    if options.tiles is None:
        if options.input is None:
            raise SettingsError("cli_no_input", "INPUT is missing: a folder of frames, or --tiles FOLDER")
        return {"input_dir": str(_folder(options.input))}
    tiles = str(_folder(options.tiles))
    if options.input is None:
        return {"input_dir": tiles, "use_existing_master_tiles": True, "tiles_dir": ""}
    return {"input_dir": str(_folder(options.input)), "tiles_dir": tiles}


def _folder(path: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if not os.path.isdir(folder):
        raise SettingsError(
            "error_input_not_folder", f"input folder {folder} does not exist", path=str(folder)
        )
    return folder


def _verbosity(options: Namespace) -> Verbosity:
    if options.quiet:
        return Verbosity.QUIET
    return Verbosity.VERBOSE if options.verbose else Verbosity.NORMAL


def _quiet_say(display: Display) -> Callable[..., None]:
    return (lambda *_, **__: None) if display.verbosity is Verbosity.QUIET else display.say


def _print_facts(console: Console, texts: Texts, facts: Mapping[str, Any]) -> None:
    height, width = facts["canvas_hw"]
    lines = [
        texts("plan.frames", n=facts["n_frames"]),
        texts(
            f"plan.canvas.{facts['outline']['known_from']}",
            solved=facts["outline"]["n_solved"],
            width=width,
            height=height,
            mpx=texts.number(width * height / 1e6, 1),
        ),
        texts(
            "plan.cost",
            memory=texts.size(facts["peak_bytes"]),
            disk=texts.size(max(0, facts["disk_bytes"])),
            clock=texts.clock(facts["seconds"]),
        ),
    ]
    if facts["outline"]["n_far"]:
        lines.insert(2, texts("plan.far", n=facts["outline"]["n_far"]))
    unsolved = facts["outline"]["n_asked"] - facts["outline"]["n_solved"]
    if unsolved:
        lines.append(texts("plan.not_solved", n=unsolved))
    lines += [texts(line["key"], **line["values"]) for line in facts.get("cluster", ())]
    if facts.get("split"):
        lines.append(texts("run_info_split_by_filter", details=facts["split"]))
    if facts.get("mixture"):
        lines.append(texts("run_info_mixed", details=facts["mixture"]))
    if facts.get("calibration"):
        lines.append(texts("plan.calibration", details=facts["calibration"]))
    if facts.get("calibration_unused"):
        lines.append(texts("run_warn_calibration_unused", details=facts["calibration_unused"]))
    route = facts["run"]["route"]
    lines.append(texts(route["reason_key"], route=route["route"], **route["values"]))
    if facts["small_pointings"]:
        fewest = facts["run"]["group"]["min_frames"]
        lines.append(texts("plan.small_groups", n=facts["small_pointings"], frames=fewest))
    refine = facts["run"]["refine"]
    lines.append(texts(refine["reason_key"], **refine["values"]))
    if facts["left_out"]:
        lines.append(texts("run_left_out_total", n=len(facts["left_out"])))
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for item in facts["left_out"][:10]:
        reason = texts.reason(item["key"], item.get("values", {}), item["path"])
        name = visible_text(Path(item["path"]).name)
        console.print(Text(f"  {name}: {reason}", style="yellow"), soft_wrap=True)


def _plan_table(rows: Any, facts: Mapping[str, Any], texts: Texts) -> Table:
    table = Table()
    for name in ("phase", "items", "memory", "disk", "time", "device"):
        numeric = name in ("items", "memory", "disk", "time")
        table.add_column(texts(f"plan.column.{name}"), justify="right" if numeric else "left")
    for row in rows:
        device = texts(f"device.{row.device}")
        if row.reason_key and row.device == "cpu":
            device += f" ({texts.message(row.reason_key, facts['gpu'])})"
        table.add_row(
            texts(f"phase.{row.phase}"),
            texts.number(row.items),
            texts.size(row.ram_bytes),
            texts.size(row.disk_bytes) if row.disk_bytes else "",
            texts.clock(row.seconds),
            device,
        )
    return table


def _finding_line(finding: Any, texts: Texts) -> Text:
    mark, style = {
        "ok": ("✔", "green"),
        "info": ("·", ""),
        "warn": ("!", "yellow"),
        "fail": ("✖", "bold red"),
    }[finding.state]
    line = Text(f"{mark} ", style=style)
    line.append(f"{texts(finding.topic_key)}: ", style="bold")
    line.append(texts.message(finding.key, finding.values))
    if finding.advice_key:
        line.append("\n    → " + texts.message(finding.advice_key, finding.values), style="cyan")
    return line


def _solution_line(solution: FileSolution, texts: Texts) -> Text:
    name = visible_text(solution.path.name)
    if solution.ok:
        ra, dec = solution.centre_deg
        last = solution.outcomes[-1]
        found = texts(
            "solve.found",
            ra=ra,
            dec=dec,
            scale=solution.scale_arcsec,
            rotation=solution.rotation_deg,
            rms="?" if last.rms_px is None else texts.number(last.rms_px, 2),
            solver=last.solver,
            n="?" if last.n_matched is None else last.n_matched,
            seconds=last.seconds,
        )
        line = Text.assemble(("✔ ", "green"), (f"{name}: ", "bold"), found)
        if not solution.confirmed:
            line.append("\n    ! " + texts("solve.unconfirmed"), style="yellow")
        return line
    reasons = [f"{o.solver}: {texts.message(o.key, o.values)}" for o in solution.outcomes]
    if solution.key:
        reasons.append(texts.reason(solution.key, solution.values or {}, str(solution.path)))
    return Text.assemble(("✖ ", "bold red"), (f"{name}: ", "bold"), "; ".join(reasons))
