"""One mosaic per filter, where asked: frames of other filters share the grid and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import hash_key
from zemosaic_pipeline.records import FrameGroup, MasterTile, RegisteredFrame

__all__ = [
    "filter_names",
    "frames_of_filters",
    "groups_of_filters",
    "on_scale_of_filter",
    "split_text",
    "tiles_of_filters",
]

# Of a filter in names of files, which hold more than that and may have 255.
_MOST_BYTES = 60


def filter_names(infos: Sequence[FrameInfo], *, split: bool) -> list[str]:
    """Return the filter of each frame as its part of the run is called.

    Spellings that differ in case are one filter, called by the most frequent of them. Other filters never get names
    that are the same, or make the same names of files, on a disk that ignores upper and lower case.

    Returns
    -------
    list of str
        ``NONE`` for frames that name no filter; '' for all when there is nothing to split or it is not wanted.
    """
    counts = Counter(info.filter_name for info in infos)
    best: dict[str, str] = {}
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if name.casefold() not in best:
            part = _file_part(name)
            if any(_are_taken_for_another(part, other) for other in best.values()):
                part = f"{part}-{_digest(name)}"
            best[name.casefold()] = part
    if not split or len(best) < 2:
        return [""] * len(infos)
    return [best[info.filter_name.casefold()] for info in infos]


def _file_part(name: str) -> str:
    """Return a name as a part of names of files; of one that is too long for them its beginning, and what tells it."""
    part = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "NONE"
    if len(part.encode()) <= _MOST_BYTES:
        return part
    return f"{part.encode()[:_MOST_BYTES].decode(errors='ignore')}-{_digest(name)}"


def _digest(name: str) -> str:
    return hash_key(name.casefold())[:8]


def _are_taken_for_another(part: str, other: str) -> bool:
    """Tell whether files of two parts may have one name: ``L_coverage.fits`` is one of the filter L, too."""
    shorter, longer = sorted((part.casefold(), other.casefold()), key=len)
    return longer == shorter or longer.startswith(f"{shorter}_")


def split_text(names: Sequence[str]) -> str:
    """Say which mosaics there will be: ``IRCUT (8), LP (6)``; '' when there is one."""
    counts = Counter(name for name in names if name)
    return ", ".join(f"{name} ({n})" for name, n in counts.most_common())


def groups_of_filters(groups: Sequence[FrameGroup], names: Mapping[int, str]) -> list[FrameGroup]:
    """Return the groups cut so that each holds frames of one filter; ``names`` by frame index."""
    parts = []
    for group in groups:
        members: dict[str, list[int]] = {}
        for index in group.members:
            members.setdefault(names[index], []).append(index)
        parts += [replace(group, members=tuple(same)) for same in members.values()]
    return [replace(group, group_id=number) for number, group in enumerate(parts)]


def frames_of_filters(
    frames: Sequence[RegisteredFrame], names: Mapping[int, str]
) -> dict[str, tuple[RegisteredFrame, ...]]:
    """Return the frames of each filter, that with most frames first, each on the flux scale of its own filter."""
    parts: dict[str, list[RegisteredFrame]] = {}
    for frame in frames:
        parts.setdefault(names[frame.solved.frame.index], []).append(frame)
    order = sorted(parts, key=lambda name: (-len(parts[name]), name))
    if len(parts) < 2:
        return {name: tuple(parts[name]) for name in order}
    return {name: on_scale_of_filter(parts[name]) for name in order}


def on_scale_of_filter(frames: Sequence[RegisteredFrame]) -> tuple[RegisteredFrame, ...]:
    """Return the frames with gains relative to the clearer half of them.

    What a filter lets pass is no haze: without this the mosaic of a narrow one would be blown up to the brightness of
    a wide one.
    """
    gains = np.array([frame.gain for frame in frames], float)
    with np.errstate(invalid="ignore"):
        logs = np.log(np.where(gains > 0, gains, np.nan))
    clearer = np.sort(logs, axis=0)[: max(1, (len(frames) + 1) // 2)]
    known = np.isfinite(clearer).any(axis=0)
    scale = np.ones(gains.shape[1])
    scale[known] = np.exp(np.nanmedian(clearer[:, known], axis=0))
    return tuple(
        replace(frame, gain=tuple(map(float, gain / scale)))
        for frame, gain in zip(frames, gains, strict=True)
    )


def tiles_of_filters(tiles: Sequence[MasterTile], names: Mapping[int, str]) -> dict[str, list[MasterTile]]:
    """Return the tiles of each filter."""
    parts: dict[str, list[MasterTile]] = {}
    for tile in tiles:
        parts.setdefault(names[tile.frames[0]], []).append(tile)
    return parts
