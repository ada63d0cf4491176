"""Phase 0: read the headers of every FITS file in the folder; say what cannot be used and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_io.folders import survey_files
from zemosaic_io.headers import FrameInfo
from zemosaic_io.stack_plan import StackPlan, planned_infos
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.cost import frame_bytes
from zemosaic_pipeline.filters import filter_names, split_text
from zemosaic_pipeline.frame_boundary import NO_MEMORY
from zemosaic_pipeline.frame_kinds import majority_kind
from zemosaic_pipeline.header_batches import PHASE, read_batch
from zemosaic_pipeline.records import Frame, LeftOut
from zemosaic_pipeline.sessions import mixture_text

__all__ = ["PHASE", "run", "set_aside", "survey"]

# Headers handed to a worker process at once: one header takes about a millisecond, a round trip as much.
BATCH = 64


def _one_kind(infos: Sequence[FrameInfo]) -> tuple[list[FrameInfo], list[LeftOut]]:
    """Keep the kind most frames have."""
    if not infos:
        return [], []
    usual = majority_kind(infos)
    example = next(info for info in infos if info.kind == usual)
    kept = [info for info in infos if info.kind == usual]
    expected = _size_text(example)
    return kept, [
        LeftOut(
            str(info.path), PHASE, "frame_other_geometry", {"found": _size_text(info), "expected": expected}
        )
        for info in infos
        if info.kind != usual
    ]


def _not_too_large(infos: list[FrameInfo], memory_bytes: int) -> tuple[list[FrameInfo], list[LeftOut]]:
    """Leave out pictures that no memory holds; when all are so large, that is what the plan says."""
    fitting = [info for info in infos if frame_bytes(info) <= memory_bytes]
    if not fitting:
        return infos, []
    kept = set(map(id, fitting))
    values = {"free_mb": memory_bytes // 1_000_000}
    return fitting, [
        LeftOut(str(info.path), PHASE, NO_MEMORY, values) for info in infos if id(info) not in kept
    ]


def _size_text(info: FrameInfo) -> str:
    return f"{info.kind} {info.shape_hw[1]}x{info.shape_hw[0]}"


def _batches(paths: Sequence[Path]) -> list[list[str]]:
    return [[str(path) for path in paths[i : i + BATCH]] for i in range(0, len(paths), BATCH)]


def survey(
    folder: Path,
    output_dir: Path,
    *,
    recursive: bool,
    selection: Iterable[str] | None = None,
    memory_bytes: int = 1 << 60,
    other_places: Iterable[Path] = (),
    listed: StackPlan | None = None,
    map_batches: Callable[[Any, list[list[str]]], Iterable[tuple[int, list[FrameInfo | LeftOut]]]]
    | None = None,
) -> tuple[list[FrameInfo], list[LeftOut]]:
    """Return the usable frames in the order of their names, and what is left out with its reason.

    A subfolder that cannot be listed is left out like a file: its frames are missing, and nobody can count them.

    Parameters
    ----------
    selection : iterable of str, optional
        Paths chosen by the user; other files are not looked at.
    memory_bytes : int
        What there is; frames that alone need more are left out.
    other_places : iterable of Path
        Folders and files that hold no light frames: those given for calibration.
    listed : StackPlan, optional
        The files that count, and what is known of them besides; the folder is not searched then.
    map_batches : callable, optional
        ``(function, batches) -> (position, result)`` as they come; default: one after the other.
    """
    unlistable: list[LeftOut] = []

    def note_unlistable(path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        unlistable.append(LeftOut(str(path), PHASE, "input_folder_unreadable", {"reason": reason}))

    if listed is None:
        paths = survey_files(
            folder,
            recursive=recursive,
            exclude=(output_dir, *other_places),
            tell_unlistable=note_unlistable,
        )
    else:
        paths = [frame.path for frame in listed.frames]
    if selection is not None:
        wanted = {str(Path(path).resolve()) for path in selection}
        paths = [path for path in paths if str(path.resolve()) in wanted]
    batches = _batches(paths)
    results: dict[int, list[FrameInfo | LeftOut]] = {}
    read = partial(read_batch, root=folder)
    source = enumerate(map(read, batches)) if map_batches is None else map_batches(read, batches)
    for position, found in source:
        results[position] = found
    everything = [item for position in sorted(results) for item in results[position]]
    infos = [item for item in everything if isinstance(item, FrameInfo)]
    refused = [item for item in everything if isinstance(item, LeftOut)]
    if listed is not None:
        infos = planned_infos(listed, infos)
        refused += [LeftOut(name, PHASE, "stack_plan_missing") for name in listed.missing]
    kept, other = _one_kind(infos)
    kept, too_large = _not_too_large(kept, memory_bytes)
    return kept, unlistable + refused + other + too_large


def set_aside(
    folder: Path,
    output_dir: Path,
    *,
    recursive: bool,
    selection: Iterable[str],
    other_places: Iterable[Path] = (),
) -> list[LeftOut]:
    """Return what lies beside frames that were chosen by hand and is no light frame; arguments as in `survey`."""
    chosen = {str(Path(path).resolve()) for path in selection}
    paths = survey_files(folder, recursive=recursive, exclude=(output_dir, *other_places))
    beside = [str(path) for path in paths if str(path.resolve()) not in chosen]
    return [item for item in read_batch(beside, folder) if isinstance(item, LeftOut)]


def run(
    folder: Path,
    context: RunContext,
    *,
    recursive: bool,
    memory_bytes: int,
    selection: Iterable[str] | None = None,
    other_places: Iterable[Path] = (),
    listed: StackPlan | None = None,
    split_by_filter: bool = False,
) -> tuple[list[Frame], list[LeftOut]]:
    """Survey the folder and return its frames, and what is left out; arguments as in `survey`.

    Raises
    ------
    RunFailed
        No file can be used.
    """

    def map_batches(function: Any, batches: list[list[str]]) -> Iterable[tuple[int, Any]]:
        # In processes that measure as well afterwards, so starting them is no loss: in this one a header that is read
        # without end would be the end of the run.
        source = context.map(
            function,
            batches,
            name_of=lambda batch: str(Path(batch[0]).parent),
            may_compile=False,
            apart=lambda _: True,
        )
        done = 0
        for position, result in source:
            if isinstance(result, SkipItem):
                # Processes died over this batch, or had no end: each file gets a chance by itself.
                result = _one_by_one(function, batches[position], context)
            done += len(result)
            context.cancel.check()
            context.progress(done, sum(map(len, batches)), str(result[-1].path) if result else "")
            yield position, result

    infos, refused = survey(
        folder,
        context.output_dir,
        recursive=recursive,
        selection=selection,
        memory_bytes=memory_bytes,
        other_places=other_places,
        listed=listed,
        map_batches=map_batches,
    )
    if context.workers == 1:
        # Frames are measured in this process then, and have the memory for themselves.
        context.release_pool()
    for item in refused:
        context.leave_out(item.path, PHASE, item.key, **item.values)
    if not infos:
        raise RunFailed("run_error_no_frames", f"no usable FITS frame in {folder}", folder=str(folder))
    context.say("run_info_survey", frames=len(infos), left_out=len(refused))
    if listed is not None:
        _tell_list(listed, context)
    split = split_text(filter_names(infos, split=split_by_filter))
    if split:
        context.say("run_info_split_by_filter", details=split)
    if details := mixture_text(infos, except_filter=bool(split)):
        context.say("run_info_mixed", "WARN", details=details)
    weights = {} if listed is None else {str(frame.path): frame.weight for frame in listed.frames}
    frames = [
        Frame(index, info, wanted_weight=weights.get(str(info.path), 1.0)) for index, info in enumerate(infos)
    ]
    return frames, refused


def _one_by_one(function: Any, paths: list[str], context: RunContext) -> list[FrameInfo | LeftOut]:
    """Read the headers of a batch in processes that hold one file each, so that what ends one has a name."""
    found: list[FrameInfo | LeftOut] = []
    for path in paths:
        # Of one item `map` has no need of a process, unless it is told so.
        _, result = next(
            context.map(
                function, [[path]], may_compile=False, name_of=lambda batch: batch[0], apart=lambda _: True
            )
        )
        if isinstance(result, SkipItem):
            values = {key: value for key, value in result.values.items() if key != "path"}
            result = [LeftOut(path, PHASE, result.key, values)]
        found += result
    return found


def _tell_list(listed: StackPlan, context: RunContext) -> None:
    name = listed.path.name
    context.say("run_info_stack_plan", name=name, frames=len(listed.frames), batches=len(listed.batches))
    if listed.n_by_name:
        context.say("run_info_stack_plan_by_name", name=name, frames=listed.n_by_name)
    if listed.n_without_weight:
        context.say("run_info_stack_plan_weightless", name=name, frames=listed.n_without_weight)
