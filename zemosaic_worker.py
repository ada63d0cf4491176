"""The run as other programs start it: in this process, or as a child that talks through a queue.

The child puts 4-tuples ``(key, progress, level, values)`` on its queue (`zemosaic_pipeline.events`). It always ends
with ``PROCESS_DONE`` or ``PROCESS_ERROR``, and its exit code tells the truth: 0 success, 1 failed, 2 wrong
settings, 130 stopped by the user, by SIGTERM or SIGHUP, or by the end of the process that started it.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from zemosaic_core.errors import Cancelled, RunFailed, SaveFailed, SettingsError, ZeMosaicError
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, PixelSource
from zemosaic_core.visible_text import visible_text
from zemosaic_io.regular_files import add_to_regular
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.events import (
    Event,
    FrameLeftOut,
    GpuRecorded,
    Message,
    PhaseProgress,
    RunEnded,
    spoken_values,
    to_queue,
)
from zemosaic_pipeline.machine import no_more_processes
from zemosaic_pipeline.outside_stop import EXIT_STOPPED, send_the_rest, stop_from_outside
from zemosaic_pipeline.report import sentences
from zemosaic_pipeline.runner import RunResult, Selection, run_classic
from zemosaic_pipeline.single_tile import make_single_tile
from zemosaic_settings import Settings, canonical_values, conflicting_names
from zemosaic_settings.old_call import OldCall, read_call, read_tile_call, with_callback_place
from zemosaic_settings.old_options import changed_old_options
from zemosaic_utils import coadd_incremental, coadd_on_grid

__all__ = [
    "EXIT_CANCELLED",
    "EXIT_FAILED",
    "EXIT_OK",
    "EXIT_SETTINGS",
    "assemble_final_mosaic_incremental",
    "assemble_final_mosaic_reproject_coadd",
    "create_master_tile",
    "run_hierarchical_mosaic",
    "run_hierarchical_mosaic_process",
]

EXIT_OK, EXIT_FAILED, EXIT_SETTINGS, EXIT_CANCELLED = 0, 1, 2, EXIT_STOPPED

LOG_NAME = "zemosaic_worker.log"
LOG_MAX_BYTES = 4_000_000
_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "SUCCESS": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}

log = logging.getLogger(__name__)


class _VisibleLines(logging.Formatter):
    """Lines in which nothing acts on the terminal that shows them: names of files come from anywhere."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(visible_text, super().format(record).split("\n")))


def _as_callback(progress_callback: Callable[..., Any] | None) -> Callable[[Event], None]:
    """Return a reporter that calls a progress callback in its two known forms."""

    def report(event: Event) -> None:
        if progress_callback is None:
            return
        if isinstance(event, PhaseProgress):
            progress_callback(event.phase, event.done, event.total)
            return
        key, progress, level, values = to_queue(event)
        progress_callback(
            key, progress, level, **{k: v for k, v in values.items() if k not in ("key", "level")}
        )

    return report


def _settings(
    input_folder: str | Path,
    output_folder: str | Path,
    config: Mapping[str, Any] | None,
    call: OldCall,
) -> tuple[Settings, Selection]:
    merged = {**(config or {}), **call.options, **call.selection}
    selection = replace(Selection.from_config(merged), known_wcs=_cards_of(call.known_wcs))
    # By whatever name: what the call says goes before the configuration.
    given, _ = canonical_values(config or {})
    asked, _ = canonical_values(call.options)
    folders = {"input_dir": str(input_folder), "output_dir": str(output_folder)}
    return Settings.from_mapping({**given, **asked, **folders}), selection


def _tell_old_options(
    config: Mapping[str, Any] | None, call: OldCall, report: Callable[[Event], None]
) -> None:
    """Say what stands for options that are none any more, and which names of one contradict each other."""
    for conflict in conflicting_names(config or {}):
        report(Message(conflict.key, "WARN", spoken_values(conflict.values)))
    for family, values in changed_old_options({**(config or {}), **call.options}):
        told = ", ".join(f"{key} = {str(value)[:40]}" for key, value in values.items())
        report(Message(family.text_key, "INFO", {"options": told, "instead": family.instead}))


def _cards_of(known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the FITS cards of WCS objects, or of headers, by path."""
    found = {}
    for path, wcs in known.items():
        header = wcs.to_header(relax=True) if hasattr(wcs, "to_header") else wcs
        found[path] = {str(key): header[key] for key in header if key not in ("", "COMMENT", "HISTORY")}
    return found


def run_hierarchical_mosaic(
    input_folder: str | Path,
    output_folder: str | Path,
    *old_arguments: Any,
    progress_callback: Callable[..., Any] | None = None,
    config: Mapping[str, Any] | None = None,
    cancel_event: Any = None,
    reporter: Callable[[Event], None] | None = None,
    **overrides: Any,
) -> RunResult:
    """Make a mosaic of a folder in this process.

    Parameters
    ----------
    input_folder, output_folder : path
        Raw frames; results.
    *old_arguments
        What callers of version 4 give by position, see `zemosaic_settings.old_call`.
    progress_callback : callable, optional
        ``(key, progress, level, **values)`` for messages, ``(stage, done, total)`` for progress.
    config : mapping, optional
        Settings by key, and ``frame_selection`` / ``tile_selection`` / ``frame_groups`` from the filter.
    cancel_event : optional
        Anything with ``is_set()``; a set event stops the run at the next item.
    reporter : callable, optional
        Takes the typed events instead of the callback.
    **overrides
        Single settings, with or without the old ``_config`` suffix; they win over ``config``. What version 4 took
        besides is understood: ``solver_settings``, ``filter_overrides`` and ``filtered_header_items``.

    Raises
    ------
    SettingsError, RunFailed, SaveFailed, Cancelled
        There is no mosaic, and why.
    """
    call = read_call(old_arguments, overrides)
    settings, selection = _settings(input_folder, output_folder, config, call)
    report = reporter or _as_callback(progress_callback or call.progress_callback)
    if call.cancelled:
        raise Cancelled()
    _tell_old_options(config, call, report)
    return run_classic(settings, report, cancel=CancelToken(cancel_event), selection=selection)


def run_hierarchical_mosaic_process(
    progress_queue: Any,
    input_folder: str | Path,
    output_folder: str | Path,
    *old_arguments: Any,
    config: Mapping[str, Any] | None = None,
    cancel_event: Any = None,
    **overrides: Any,
) -> None:
    """Make a mosaic as the main function of a child process, then leave with an exit code that tells the truth.

    Parameters
    ----------
    progress_queue : multiprocessing queue
        Gets the 4-tuples.
    *old_arguments
        As in `run_hierarchical_mosaic`; a callback among them does not count, and may be missing.
    config, cancel_event, **overrides
        As in `run_hierarchical_mosaic`.
    """
    # Ctrl-C reaches every process of a terminal; only the one that talks to the user may act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with _log_file(Path(input_folder), Path(output_folder), str((config or {}).get("logging_level", "INFO"))):
        say = sentences(str((config or {}).get("language") or "en"))

        def report(event: Event) -> None:
            item = to_queue(event)
            level, line = _log_line(event, say)
            # The log lies in the output folder, whose disk may hang.
            progress_queue.put(item)
            log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

        with stop_from_outside(cancel_event) as stop:
            old = with_callback_place(old_arguments)
            code = _guarded_run(input_folder, output_folder, old, config, stop, overrides, report)
    send_the_rest(progress_queue)
    sys.exit(code)


def _log_line(event: Event, say: Callable[[str, Mapping[str, Any]], str]) -> tuple[str, str]:
    """Return level and words of an event for the log: as the terminal says it, and the key to search for."""
    key, _, level, values = to_queue(event)
    spoken: Mapping[str, Any] = values
    match event:
        case GpuRecorded(record):
            key, spoken = str(record.get("key") or ""), record.get("values") or {}
            level = "DEBUG" if record.get("repeat") or not key else str(record.get("level", "INFO"))
        case FrameLeftOut() | RunEnded():
            key, spoken = event.key or key, event.values
    words = say(key, {name: value for name, value in spoken.items() if name != "default_text"})
    if not words:
        return str(level), f"{key} {values}"
    if isinstance(event, FrameLeftOut):
        words = f"{Path(event.path).name}: {words}"
    return str(level), f"{words} [{key}]"


@contextmanager
def _log_file(input_folder: Path, output_folder: Path, level: str) -> Iterator[None]:
    """Write this process's log to ``zemosaic_worker.log`` in the output folder while the block runs.

    It is added to, because another run may be at work in this folder. A folder that cannot be written gets no log,
    nor does the input folder; the run itself says what is wrong there.
    """
    if output_folder.resolve() == input_folder.resolve():
        yield
        return
    path = output_folder / LOG_NAME
    try:
        output_folder.mkdir(parents=True, exist_ok=True)
        file = add_to_regular(path)
        if os.fstat(file.fileno()).st_size > LOG_MAX_BYTES:
            file.truncate(0)
        # What is buffered is flushed with each record.
        stream = io.TextIOWrapper(
            io.BufferedWriter(cast(io.RawIOBase, file)), encoding="utf-8", errors="backslashreplace"
        )
        handler = logging.StreamHandler(stream)
    except OSError as error:
        log.warning("no log file in %s: %s", output_folder, error)
        yield
        return
    handler.setFormatter(_VisibleLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(_LEVELS.get(level.upper(), logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        # On a full disk closing fails on what is still buffered; the outcome has been told already.
        with suppress(OSError):
            stream.close()


def _guarded_run(
    input_folder: str | Path,
    output_folder: str | Path,
    old_arguments: Sequence[Any],
    config: Mapping[str, Any] | None,
    cancel_event: Any,
    overrides: Mapping[str, Any],
    report: Callable[[Event], None],
) -> int:
    """Run, turn every outcome into a last event and an exit code; the one broad handler of the worker."""
    try:
        result = run_hierarchical_mosaic(
            input_folder,
            output_folder,
            *old_arguments,
            config=config,
            cancel_event=cancel_event,
            reporter=report,
            **overrides,
        )
    except Cancelled as stop:
        report(RunEnded("cancelled", key=stop.key, values=spoken_values(stop.values)))
        return EXIT_CANCELLED
    except SettingsError as error:
        values = {**error.values, "text": str(error), "exit_code": EXIT_SETTINGS}
        report(RunEnded("failed", key=error.key, values=spoken_values(values)))
        return EXIT_SETTINGS
    except ZeMosaicError as error:
        report(RunEnded("failed", key=error.key, values=spoken_values({**error.values, "text": str(error)})))
        return EXIT_FAILED
    except Exception as error:
        if (refused := no_more_processes(error)) is not None:
            report(RunEnded("failed", key=refused.key, values={"text": str(refused)}))
            return EXIT_FAILED
        log.exception("the run ended by an error nobody expected (process %d)", os.getpid())
        report(Message("run_error_traceback", "ERROR", {"error": repr(error)}))
        report(RunEnded("failed", key="run_error_unexpected", values={"error": repr(error)}))
        return EXIT_FAILED
    report(RunEnded("success", result.outputs))
    return EXIT_OK


def create_master_tile(
    seestar_stack_group_info: Sequence[Any],
    tile_id: int,
    output_temp_dir: str | Path,
    *old_arguments: Any,
    reporter: Callable[[Event], None] | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[tuple[str | None, Any], list[list[Any]]]:
    """Stack frames into one master tile, as callers of version 4 ask for it.

    Parameters
    ----------
    seestar_stack_group_info : sequence
        Frames: paths, or mappings with ``path_raw`` (or ``path``) and, of frames without a WCS in their files, ``wcs``.
        Decoded copies that a caller may have are not needed.
    tile_id : int
        Number in the name, ``master_tile_007.fits``.
    output_temp_dir : path
        Folder of the tile.
    *old_arguments
        What callers of version 4 give by position, see `zemosaic_settings.old_call`; all of it has a name, too.
    reporter, config, **options
        As in `run_hierarchical_mosaic`, ``progress_callback`` among them.

    Returns
    -------
    ((path, wcs), retry_groups)
        ``(None, None)`` where there is no tile; why was told before. There is never anything to try again: frames that
        do not fit are left out and named.

    Raises
    ------
    SettingsError, Cancelled
        An option is not allowed; a stop was asked for.
    """
    call = read_tile_call(seestar_stack_group_info, old_arguments, options)
    folder = Path(output_temp_dir)
    settings, selection = _settings("", folder, config, call)
    report = reporter or _as_callback(call.progress_callback)
    _tell_old_options(config, call, report)
    target = folder / f"master_tile_{int(tile_id):03d}.fits"
    frames = [Path(path) for path in selection.frames]
    try:
        wcs = make_single_tile(frames, target, settings, report, selection.known_wcs, int(tile_id))
    except (RunFailed, SaveFailed) as error:
        report(Message(error.key, "ERROR", spoken_values(error.values)))
        return (None, None), []
    return (str(target), wcs), []


def assemble_final_mosaic_reproject_coadd(
    tiles: PixelSource,
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    *,
    sink: Callable[[int, int, CoaddBlock], None],
    budget_bytes: int,
    rule: CombineRule | None = None,
    kernel: str = "lanczos3",
    policy: Any = None,
    threads: int = 2,
) -> None:
    """Combine tiles block by block of output rows; any rule, memory grows with the overlap depth."""
    rule = rule or CombineRule(rejection="none")
    coadd_on_grid(
        tiles, sources, shape_hw, n_channels, rule, kernel,
        sink=sink, budget_bytes=budget_bytes, policy=policy, threads=threads,
    )  # fmt: skip


def assemble_final_mosaic_incremental(
    tiles: PixelSource,
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    *,
    sink: Callable[[int, int, CoaddBlock], None],
    budget_bytes: int,
    kernel: str = "lanczos3",
    policy: Any = None,
    threads: int = 2,
) -> None:
    """Combine tiles one after the other into sums on disk; weighted mean only, the smallest memory."""
    coadd_incremental(
        tiles, sources, shape_hw, n_channels, CombineRule(rejection="none"), kernel,
        sink=sink, budget_bytes=budget_bytes, policy=policy, threads=threads,
    )  # fmt: skip
