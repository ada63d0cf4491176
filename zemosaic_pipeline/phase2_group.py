"""Phase 2: put solved frames into groups by where they point; each group becomes one master tile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zemosaic_core.clustering import cluster_pointings
from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.small_groups import merge_small_groups
from zemosaic_core.sphere import footprint, image_geometry, mean_direction
from zemosaic_pipeline.batches import batches_of
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.plan import GroupOptions
from zemosaic_pipeline.records import FrameGroup, SolvedFrame

__all__ = ["PHASE", "frame_centres", "run"]

PHASE = "phase2_group"


def frame_centres(solved: Sequence[SolvedFrame]) -> np.ndarray:
    """Return ``(N, 3)``: right ascension, declination of the frame centre and position angle of its +y axis, deg."""
    places = [image_geometry(wcs_of(item.solution.wcs_cards), item.frame.info.shape_hw) for item in solved]
    return np.array([(place.ra_deg, place.dec_deg, place.rotation_deg) for place in places], dtype=float)


def _chosen_groups(solved: Sequence[SolvedFrame], preplanned: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Return groups as the user made them; frames in none of them form one more."""
    position = {str(Path(item.frame.info.path).resolve()): i for i, item in enumerate(solved)}
    groups: list[np.ndarray] = []
    used: set[int] = set()
    for paths in preplanned:
        members = [position[p] for p in (str(Path(path).resolve()) for path in paths) if p in position]
        members = sorted(set(members) - used)
        used.update(members)
        if members:
            groups.append(np.array(members))
    rest = sorted(set(range(len(solved))) - used)
    return [*groups, np.array(rest)] if rest else groups


def _of_one_size(solved: Sequence[SolvedFrame], groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Split groups so that the frames of a tile have one size: their sky meshes are compared cell by cell."""
    parts: list[np.ndarray] = []
    for members in groups:
        sizes: dict[tuple[int, int], list[int]] = {}
        for i in members.tolist():
            sizes.setdefault(solved[i].frame.info.shape_hw, []).append(i)
        parts.extend(np.array(same) for same in sizes.values())
    return parts


def _without_small_ones(
    solved: Sequence[SolvedFrame], groups: list[np.ndarray], options: GroupOptions, context: RunContext
) -> list[np.ndarray]:
    """Return the groups after those of few frames have joined others that cover their sky."""
    shapes = [item.frame.info.shape_hw for item in solved]
    corners = [
        footprint(wcs_of(item.solution.wcs_cards), shape, 1)
        for item, shape in zip(solved, shapes, strict=True)
    ]
    merged = merge_small_groups(
        groups,
        np.array(corners),
        min_frames=options.min_frames,
        max_per_group=options.max_per_group,
        kinds=shapes,
    )
    if len(merged) < len(groups):
        context.say(
            "run_info_small_groups",
            before=len(groups),
            groups=len(merged),
            frames=options.min_frames,
        )
    small = sum(len(group) < options.min_frames for group in merged)
    if small:
        context.say("run_info_small_groups_alone", groups=small, frames=options.min_frames)
    context.detail(merged_groups=len(groups) - len(merged), small_groups=small)
    return merged


def _times(solved: Sequence[SolvedFrame]) -> np.ndarray:
    """Return the order of the exposures; ISO dates sort as text, frames without one by their number."""
    order = sorted(range(len(solved)), key=lambda i: (solved[i].frame.info.date_obs, i))
    rank = np.empty(len(solved))
    rank[order] = np.arange(len(solved))
    return rank


def run(solved: Sequence[SolvedFrame], options: GroupOptions, context: RunContext) -> list[FrameGroup]:
    """Return the groups, in the order of their first frame."""
    centres = frame_centres(solved)
    shares: list[float | None] = []
    if options.preplanned:
        groups = _chosen_groups(solved, options.preplanned)
    elif options.batches is not None:
        batches = batches_of(solved, options.batches, split_by_filter=options.split_by_filter)
        groups, shares = [batch.members for batch in batches], [round(batch.covered, 4) for batch in batches]
    else:
        groups = cluster_pointings(
            centres[:, 0],
            centres[:, 1],
            centres[:, 2],
            threshold_deg=options.threshold_deg,
            orientation_split_deg=options.orientation_split_deg,
            target_groups=options.target_groups,
            max_per_group=options.max_per_group,
            times=_times(solved),
        )
    records = []
    if not shares:
        groups = _of_one_size(solved, groups)
        shares = [None] * len(groups)
    if options.min_frames > 1:
        groups = _without_small_ones(solved, groups, options, context)
        shares = [None] * len(groups)
    for number, (members, share) in enumerate(zip(groups, shares, strict=True)):
        ra, dec = mean_direction(centres[members, 0], centres[members, 1])
        indices = tuple(solved[i].frame.index for i in members)
        records.append(FrameGroup(number, indices, float(ra), float(dec), share))
        context.progress(number + 1, len(groups))
    sizes = [len(group.members) for group in records]
    smallest, largest = min(sizes), max(sizes)
    context.detail(groups=len(records), smallest=smallest, largest=largest)
    if smallest == largest:
        context.say("run_info_groups_alike", groups=len(records), smallest=smallest)
    else:
        context.say("run_info_groups", groups=len(records), smallest=smallest, largest=largest)
    known = [share for share in shares if share is not None]
    if known:
        context.say(
            "run_info_batches",
            batches=len(known),
            smallest=min(sizes),
            largest=max(sizes),
            percent=round(100 * min(known)),
        )
    return records
