"""The beginning of a run with stacks: which files of a folder are stacks, brought into the form of master tiles.

Tiles of this program are used where they lie. Others are written once more as float32 counts with COVERAGE and WEIGHT
into the state of the run; nothing that was given is touched.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import RunFailed, SettingsError, SkipItem
from zemosaic_io.fits_write import write_image
from zemosaic_io.folders import EXCLUDED_FOLDERS, is_frame_name
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_io.manifest import file_digest, hash_key, make_folder
from zemosaic_io.stack_pictures import StackPicture, is_own_tile, is_stack_name, read_stack
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.records import Frame, LeftOut
from zemosaic_pipeline.sessions import mixture_text
from zemosaic_settings import Settings

__all__ = ["FOLDER", "TileFolders", "look_at_stacks", "run", "survey", "tile_files", "tile_folders"]

PHASE = "phase0_survey"
FOLDER = "stacks"
INTAKE_VERSION = 1
STATE_TILES = Path(".zemosaic_state") / "tiles"


@dataclass(frozen=True)
class TileFolders:
    """Where stacks come from, and whether raw frames are wanted besides."""

    folders: tuple[Path, ...]
    with_frames: bool

    def __bool__(self) -> bool:
        return bool(self.folders)


def tile_folders(settings: Settings) -> TileFolders:
    """Return where the settings say that stacks lie: in the input folder, in a folder of their own, or nowhere.

    Raises
    ------
    SettingsError
        A folder is not there, or is part of what a run keeps in the output folder and may remove.
    """
    folders = [Path(settings.input_dir)] if settings.use_existing_master_tiles else []
    own = settings.tiles_dir.strip()
    if own:
        folders.append(Path(own))
    state = (Path(settings.output_dir) / ".zemosaic_state").resolve()
    for folder in folders:
        if not os.path.isdir(folder):
            raise SettingsError(
                "error_tiles_not_folder", f"folder of tiles {folder} does not exist", path=str(folder)
            )
        if folder.resolve().is_relative_to(state) or folder.resolve() == state.parent:
            raise SettingsError(
                "error_tiles_in_output",
                f"the tiles in {folder} belong to the output folder; choose another output folder",
                path=str(folder),
            )
    return TileFolders(tuple(dict.fromkeys(folders)), bool(own) and not settings.use_existing_master_tiles)


def tile_files(folder: Path, *, recursive: bool, exclude: Iterable[Path] = ()) -> list[Path]:
    """List the stacks of a folder by name; of the output folder of a run, its master tiles."""
    if (folder / STATE_TILES).is_dir():
        folder = folder / STATE_TILES
    apart = {path.resolve() for path in exclude}
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if recursive
            and name.lower() not in EXCLUDED_FOLDERS
            and (Path(here) / name).resolve() not in apart
        )
        found.extend(Path(here) / name for name in names if is_stack_name(name))
    # A picture beside a TIFF of the same name is its header.
    headers = {path.with_suffix("") for path in found if path.suffix.lower() in (".tif", ".tiff")}
    kept = [p for p in found if p.suffix.lower() in (".tif", ".tiff") or p.with_suffix("") not in headers]
    # The same mosaic packed, or for PixInsight, is not a second one.
    plain = {path for path in kept if is_frame_name(path.name)}
    kept = [
        p
        for p in kept
        if p.suffix.lower() not in (".fz", ".xisf")
        or not {p.with_suffix(""), p.with_suffix(".fits")} & plain - {p}
    ]
    return sorted(kept, key=lambda path: (str(path.relative_to(folder)).casefold(), str(path)))


def _cards(picture: StackPicture, path: Path) -> list[tuple[Any, ...]]:
    cards: list[tuple[Any, ...]] = [(key, value) for key, value in picture.cards.items()]
    if picture.n_frames is not None:
        cards.append(("STACKCNT", picture.n_frames, "frames in the stack"))
    if picture.seconds is not None:
        cards.append(("LIVETIME", picture.seconds, "[s] exposure of all frames"))
    if picture.factor != 1.0:
        cards.append(("ZMSCALED", picture.factor, "values were multiplied with this"))
    cards.append(("ZMSOURCE", path.name[-60:], "file it was read from"))
    return cards


def _normalised(path: Path, folder: Path) -> FrameInfo:
    """Write a stack in the form of a tile, or find it written, and read its header."""
    key = hash_key("stack", INTAKE_VERSION, file_digest(path))[:16]
    target = folder / f"{path.name.split('.')[0][:60]}_{key}.fits"
    if not target.is_file():
        picture = read_stack(path)
        valid = np.isfinite(picture.planes).all(axis=0)
        depth = (
            np.full(valid.shape, picture.n_frames or 1, np.float32)
            if picture.depth is None
            else picture.depth
        )
        coverage = np.where(valid, np.clip(np.nan_to_num(depth), 1, 65535), 0).astype(np.uint16)
        weight = coverage.astype(np.float32) if picture.weight is None else picture.weight
        weight = np.where(valid, weight, 0).astype(np.float32)
        middle = float(np.median(weight[weight > 0])) if (weight > 0).any() else 1.0
        planes = picture.planes if len(picture.planes) == 3 else picture.planes[0]
        extensions = [("COVERAGE", coverage), ("WEIGHT", weight / np.float32(middle))]
        write_image(target, planes, _cards(picture, path), extensions, durable=False)
    return read_frame_info(target)


def _read(path: Path, folder: Path) -> FrameInfo:
    info = read_frame_info(path) if is_own_tile(path) else _normalised(path, folder)
    return replace(info, given_as_stack=True)


def look_at_stacks(paths: Iterable[Path]) -> Iterator[tuple[Path, FrameInfo | SkipItem]]:
    """Yield each stack with what it is, under its own path, or why it cannot be used; nothing is kept."""
    with tempfile.TemporaryDirectory(prefix="zemosaic_plan_") as work:
        for path in paths:
            # A header tells what planning needs; pictures without one are looked at.
            if is_frame_name(path.name):
                yield path, result_or_skip(path, read_frame_info, path)
                continue
            found = result_or_skip(path, _normalised, path, Path(work))
            if isinstance(found, SkipItem):
                yield path, found
                continue
            found.path.unlink()
            yield path, replace(found, path=path)


def survey(folders: TileFolders, *, recursive: bool, exclude: Path) -> tuple[list[FrameInfo], list[LeftOut]]:
    """Return what the stacks are, and what cannot be used, and keep nothing."""
    infos: list[FrameInfo] = []
    refused: list[LeftOut] = []
    for path, found in look_at_stacks(_all_files(folders, recursive, exclude)):
        if isinstance(found, SkipItem):
            values = {key: value for key, value in found.values.items() if key != "path"}
            refused.append(LeftOut(str(path), PHASE, found.key, values))
        else:
            infos.append(found)
    return infos, refused


def _all_files(folders: TileFolders, recursive: bool, exclude: Path) -> list[Path]:
    return [
        path
        for folder in folders.folders
        for path in tile_files(folder, recursive=recursive, exclude=[exclude])
    ]


def _of_one_kind(infos: Sequence[FrameInfo], n_channels: int | None) -> int:
    """Return the channels that stacks must have: those of the frames, else those of most stacks."""
    if n_channels is not None:
        return n_channels
    counts = Counter(info.n_channels for info in infos)
    return max(counts, key=lambda n: (counts[n], n))


def run(
    folders: TileFolders,
    context: RunContext,
    *,
    recursive: bool,
    first_index: int,
    n_channels: int | None,
    selection: Iterable[str] | None = None,
) -> list[Frame]:
    """Return the stacks as frames that are tiles already.

    Parameters
    ----------
    first_index : int
        Number of the first of them.
    n_channels : int or None
        Channels of the raw frames they are joined with; None: there are none.
    selection : iterable of str, optional
        Files chosen by hand; others are not looked at.

    Raises
    ------
    RunFailed
        No stack can be used.
    """
    make_folder(context.state_dir / FOLDER)
    paths = _all_files(folders, recursive, context.output_dir)
    if selection is not None:
        chosen = {str(Path(path).resolve()) for path in selection}
        paths = [path for path in paths if str(path.resolve()) in chosen]
    infos: list[FrameInfo] = []
    for done, path in enumerate(paths):
        context.cancel.check()
        found = result_or_skip(path, _read, path, context.state_dir / FOLDER)
        if isinstance(found, SkipItem):
            context.leave_out(str(path), PHASE, found.key, **found.values)
        else:
            context.known_as[str(found.path)] = str(path)
            infos.append(found)
        context.progress(done + 1, len(paths), path.name)
    if infos:
        wanted = _of_one_kind(infos, n_channels)
        for info in infos:
            if info.n_channels != wanted:
                context.leave_out(
                    str(info.path), PHASE, "tile_other_channels", found=info.n_channels, expected=wanted
                )
        infos = [info for info in infos if info.n_channels == wanted]
    if not infos and n_channels is None:
        names = ", ".join(map(str, folders.folders))
        raise RunFailed("run_error_no_stacks", f"no usable stack in {names}", folder=names)
    if len(infos) == 1 and n_channels is None:
        context.say("tiles_only_one", "WARN", name=Path(context.known_as[str(infos[0].path)]).name)
    if n_channels is None and (details := mixture_text(infos)):
        context.say("run_info_mixed", "WARN", details=details)
    context.say("run_info_stacks", n=len(infos), frames=sum(info.stack_count for info in infos))
    return [Frame(first_index + number, info, is_tile=True) for number, info in enumerate(infos)]
