"""Master tiles of earlier runs: what a tile follows from, and whether the one that was stored is still whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core import __version__
from zemosaic_core.errors import SkipItem
from zemosaic_io.frame_store import TileStore
from zemosaic_io.manifest import Manifest, file_digest
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import (
    FrameGroup,
    FrameTerms,
    MasterTile,
    RegisteredFrame,
)
from zemosaic_pipeline.tile_cards import frame_cards
from zemosaic_pipeline.tile_sources import TileInputs

__all__ = ["store_tile", "stored_tile", "tile_key"]

TILE_VERSION = 12
# Fields of a tile that JSON gives back as lists.
TUPLES = ("origin_yx", "shape_hw", "noise_adu", "covered_bbox", "flux_gain")

log = logging.getLogger(__name__)


def tile_key(
    manifest: Manifest,
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    inputs: TileInputs,
) -> str:
    """Return the key of a tile: the same key gives the same tile."""
    plan = inputs.plan
    of_frames = [
        (
            frame.solved.measure.content_key,
            frame.solved.frame.info.kind,
            frame.solved.frame.info.cfa_pattern,
            frame.solved.frame.info.total_exposure_s,
            frame.solved.frame.info.stack_count,
            frame.solved.frame.info.instrument,
            frame.solved.frame.info.filter_name,
            frame.to_frame.to_dict(),
            frame.gain,
            weights[i].tolist(),
            inputs.hot_pixels.get(frame.solved.frame.index),
            inputs.masks.key_of(frame.solved.frame.index),
            _plain_terms(inputs.sky.get(frame.solved.frame.index)),
            *([frame.solved.frame.calibration_key] if frame.solved.frame.calibration else []),
        )
        for i, frame in enumerate(frames)
    ]
    facts = frame_cards(frames)
    return manifest.key(
        "tile",
        TILE_VERSION,
        __version__,
        of_frames,
        facts,
        inputs.grid.wcs_cards,
        inputs.grid.shape_hw,
        _stack_rules(plan),
        plan.grid.drizzle_scale,
        plan.sky.model,
        plan.output.variance,
        inputs.tile_set.cards(),
    )


def _stack_rules(plan: RunPlan) -> dict[str, Any]:
    """How frames are combined, without what bounds memory and processors and changes no pixel."""
    rules = asdict(plan.stack)
    return {name: value for name, value in rules.items() if name not in ("max_frames_per_pass", "threads")}


def _plain_terms(terms: FrameTerms | None) -> list[Any]:
    if terms is None:
        return []
    plain = [terms.photometry.tolist(), terms.radial.tolist()]
    return plain if terms.surface is None else [*plain, terms.surface.tolist()]


def stored_tile(
    manifest: Manifest, key: str, group: FrameGroup, frames: Sequence[RegisteredFrame], folder: Path
) -> MasterTile | None:
    """Return the tile made before under this key, when its file is still whole."""
    record = manifest.get(key)
    if record is None:
        return None
    try:
        path = folder / Path(record["path"]).name
        if file_digest(path) != record["digest"]:
            log.warning("stored tile %s is damaged or gone and is made anew", path)
            return None
        tile = MasterTile(
            **{
                **record["tile"],
                **{k: tuple(record["tile"][k]) for k in TUPLES},
                # Frames and groups are numbered anew in every run.
                "tile_id": group.group_id,
                "frames": tuple(frame.solved.frame.index for frame in frames),
                "path": str(path),
            }
        )
        return tile if TileStore({0: path}).shape_hw(0) == tile.shape_hw else None
    except (KeyError, TypeError, OSError, SkipItem) as error:
        log.warning("stored tile %s cannot be used: %r", key, error)
        return None


def store_tile(manifest: Manifest, key: str, tile: MasterTile) -> None:
    """Note that a tile was made, with the digest of its file."""
    name = Path(tile.path).name
    manifest.put(key, {"path": name, "digest": file_digest(tile.path), "tile": asdict(tile) | {"path": name}})
    manifest.save()
