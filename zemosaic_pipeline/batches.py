"""The route SDS: frames cut in time into batches, each of which covers the field and becomes a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaic_core.errors import SettingsError
from zemosaic_core.field_batches import FieldBatch, field_batches
from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.sphere import footprint, tan_wcs
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.filters import filter_names
from zemosaic_pipeline.records import SolvedFrame
from zemosaic_settings import Settings
from zemosaic_settings.words import listed

__all__ = ["BatchOptions", "batch_options", "batches_of", "expected_batches", "tile_numbers"]


@dataclass(frozen=True)
class BatchOptions:
    """When a batch is full; see `zemosaic_core.field_batches`."""

    coverage: float
    min_frames: int
    target_frames: int

    def cut(self, corners_deg: np.ndarray) -> list[FieldBatch]:
        """Return the batches of frames (N, 4, 2) in the order of time."""
        return field_batches(
            corners_deg,
            coverage=self.coverage,
            min_frames=self.min_frames,
            target_frames=self.target_frames,
        )


def batch_options(settings: Settings) -> BatchOptions:
    """Return when the settings call a batch full."""
    return BatchOptions(
        settings.sds_coverage_threshold, settings.sds_min_batch_size, settings.sds_target_batch_size
    )


def _in_time(infos: Sequence[FrameInfo], split_by_filter: bool) -> list[list[int]]:
    """Return positions in the order of time; of each filter by itself where each has a mosaic."""
    names = filter_names(infos, split=split_by_filter)
    order = sorted(range(len(infos)), key=lambda i: (infos[i].date_obs, i))
    parts: dict[str, list[int]] = {}
    for i in order:
        parts.setdefault(names[i], []).append(i)
    return list(parts.values())


def batches_of(
    solved: Sequence[SolvedFrame], options: BatchOptions, *, split_by_filter: bool
) -> list[FieldBatch]:
    """Return the batches, by time; members are positions in ``solved``."""
    infos = [item.frame.info for item in solved]
    corners = np.array(
        [
            footprint(wcs_of(item.solution.wcs_cards), info.shape_hw, 1)
            for item, info in zip(solved, infos, strict=True)
        ]
    )
    return [
        replace(batch, members=np.array(part, np.int64)[batch.members])
        for part in _in_time(infos, split_by_filter)
        for batch in options.cut(corners[part])
    ]


def expected_batches(
    infos: Sequence[FrameInfo], options: BatchOptions, *, split_by_filter: bool
) -> tuple[int, ...]:
    """Return how many frames each batch is likely to have, by the positions in the headers.

    Frames without position and scale are taken to cover the whole field.
    """
    corners = np.array([_hinted_corners(info) for info in infos])
    sizes: list[int] = []
    for part in _in_time(infos, split_by_filter):
        own = corners[part]
        if np.isfinite(own).all():
            sizes += [len(batch.members) for batch in options.cut(own)]
            continue
        most = max(options.min_frames, options.target_frames)
        full, left = divmod(len(part), most)
        sizes += [most] * full + ([left] if left >= options.min_frames or not full else [])
    return tuple(sizes)


def _hinted_corners(info: FrameInfo) -> np.ndarray:
    if info.ra_deg is None or info.dec_deg is None or not info.scale_arcsec:
        return np.full((4, 2), np.nan)
    wcs = tan_wcs((info.ra_deg, info.dec_deg), info.scale_arcsec / 3600, info.shape_hw)
    return footprint(wcs, info.shape_hw, 1)


def tile_numbers(text: str) -> tuple[int, ...]:
    """Return numbers of tiles from a setting such as ``2, 5``; none where it is empty.

    Raises
    ------
    SettingsError
        It holds something else than whole numbers.
    """
    parts = listed(text.replace(" ", ","))
    try:
        numbers = sorted({int(part) for part in parts})
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise SettingsError(
            "settings_no_tiles",
            f"leave_out_tiles = {text!r} is not allowed; allowed are numbers of tiles from the report, such as 2, 5",
            option="leave_out_tiles",
            value=text,
        )
    return tuple(numbers)
