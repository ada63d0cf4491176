"""Phase 3: stack each group of frames into a master tile on a window of the mosaic's grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core import __version__
from zemosaic_core.coverage import edge_ramp, enlarge_rows
from zemosaic_core.detector_surface import mean_of_surface
from zemosaic_core.errors import SkipItem
from zemosaic_core.normalize import normalise_group
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sky_lattice import cell_centres
from zemosaic_core.sources import CoaddBlock, CoaddSource, SampleNoise
from zemosaic_core.weights import frame_weights
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.frame_identity import is_as_surveyed, locate_again
from zemosaic_io.frame_store import FrameStore, TileStore
from zemosaic_io.manifest import Manifest, file_digest, make_folder
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.frame_colour import frame_colours
from zemosaic_pipeline.phase4_grid import header_cards
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameGroup, FrameTerms, MasterTile, MosaicGrid, RegisteredFrame
from zemosaic_utils import coadd_on_grid

__all__ = ["PHASE", "create_tile", "run"]

PHASE = "phase3_master_tiles"
TILE_VERSION = 8
# Stars of each frame, the brightest, on whose centres the rejection is watched.
WATCHED_STARS = 200
MAP_ERROR_PX = 0.005
# Variance of a sample of white noise, relative to that of a pixel, at all fractions of a pixel alike.
SAMPLE_VARIANCE = {"lanczos3": 0.80, "bilinear": 0.44}
# The edge ramp is wide and smooth: a distance map on every fourth pixel is exact to a fraction of a percent.
RAMP_DECIMATION = 4
# Fields of a tile that JSON gives back as lists.
TUPLES = ("origin_yx", "shape_hw", "noise_adu", "covered_bbox", "flux_gain")

log = logging.getLogger(__name__)


def _corners(shape_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the border of a frame; corners alone miss the bulge of a distorted edge."""
    height, width = shape_hw
    along = np.linspace(-0.5, 0.5, 9)
    x = np.concatenate([along, along, np.full(9, -0.5), np.full(9, 0.5)]) * width + (width - 1) / 2
    y = np.concatenate([np.full(9, -0.5), np.full(9, 0.5), along, along]) * height + (height - 1) / 2
    return x, y


def tile_window(
    frames: Sequence[RegisteredFrame], grid_shape_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return ``(y0, y1, x0, x1)`` on the grid that holds all frames; None when they miss the grid."""
    xs, ys = [], []
    for frame in frames:
        x, y = frame.to_plane.apply(*_corners(frame.solved.frame.info.shape_hw))
        xs.append(x)
        ys.append(y)
    x, y = np.concatenate(xs), np.concatenate(ys)
    y0, y1 = max(0, math.floor(y.min())), min(grid_shape_hw[0], math.ceil(y.max()) + 1)
    x0, x1 = max(0, math.floor(x.min())), min(grid_shape_hw[1], math.ceil(x.max()) + 1)
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def _source(
    frame: RegisteredFrame,
    window: tuple[int, int, int, int],
    terms: FrameTerms,
    weight: np.ndarray,
    feather_px: float,
    has_weight_map: bool,
) -> CoaddSource | None:
    y0, y1, x0, x1 = window
    shape = frame.solved.frame.info.shape_hw
    px, py = frame.to_plane.apply(*_corners(shape))
    bbox = (
        max(0, math.floor(py.min()) - y0),
        min(y1 - y0, math.ceil(py.max()) + 1 - y0),
        max(0, math.floor(px.min()) - x0),
        min(x1 - x0, math.ceil(px.max()) + 1 - x0),
    )
    if bbox[0] >= bbox[1] or bbox[2] >= bbox[3]:
        return None

    def to_source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return frame.to_frame.apply(x + x0, y + y0)

    return CoaddSource(
        key=frame.solved.frame.index,
        shape_hw=shape,
        pixel_map=build_pixel_map(to_source, bbox, max_error_px=MAP_ERROR_PX),
        bbox=bbox,
        photometry=terms.photometry,
        weight=weight,
        feather_px=feather_px,
        has_weight_map=has_weight_map,
        radial=terms.radial if terms.radial.any() else None,
        surface=terms.surface,
    )


def frame_terms(
    frames: Sequence[RegisteredFrame], sky: Mapping[int, FrameTerms], plan: RunPlan
) -> list[FrameTerms]:
    """Return the terms of each frame: those of the model of the whole sky, or what brings this group onto one sky."""
    if sky:
        return [sky[frame.solved.frame.index] for frame in frames]
    method = plan.stack.normalise
    if method == "linear_fit" and plan.sky.model == "none":
        method = "levels"
    of_group = normalisation(frames, method, plan.measure.mesh_cell_px).astype(np.float32)
    return [FrameTerms(terms, np.zeros_like(terms)) for terms in of_group]


def normalisation(frames: Sequence[RegisteredFrame], method: str, cell_px: int) -> np.ndarray:
    """Return the photometric terms (N, C, 4) that bring the frames of a group onto one sky."""
    meshes = np.stack([frame.solved.measure.arrays()["mesh"] for frame in frames])
    height, width = frames[0].solved.frame.info.shape_hw
    x, y = cell_centres((height, width), meshes.shape[2:], cell_px)
    return normalise_group(
        np.array([frame.gain for frame in frames]),
        np.array([frame.solved.measure.sky_adu for frame in frames]),
        meshes,
        np.stack([np.stack(frame.to_plane.apply(x, y), axis=-1) for frame in frames]),
        np.array([frame.solved.measure.noise_adu for frame in frames]),
        method,
        uv=np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1),
    )


def sample_noise(
    frames: Sequence[RegisteredFrame], weights: np.ndarray, terms: Sequence[FrameTerms], kernel: str
) -> SampleNoise | None:
    """Return what is known beforehand about the samples of a co-add; None where a channel's noise is not known.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
    terms : sequence of FrameTerms
    """
    photometry = np.array([term.photometry for term in terms], float)
    f1, f2, d1, d2 = np.moveaxis(np.array([term.radial for term in terms], float), -1, 0)
    # Means of q and q^2 over the detector.
    gain = photometry[..., 0] * (1 + f1 / 3 + f2 / 6)
    offset = photometry[..., 1] + d1 / 3 + d2 / 6
    for own, term in zip(offset, terms, strict=True):
        if term.surface is not None:
            own += mean_of_surface(term.surface)
    noise = np.array([frame.solved.measure.noise_adu for frame in frames], float)
    sky = np.array([frame.solved.measure.sky_adu for frame in frames], float)
    known = (noise > 0) & (weights > 0)
    variance = np.where(known, SAMPLE_VARIANCE[kernel] * (gain * noise) ** 2 * weights, np.nan)
    level = gain * sky + offset
    if not (np.isfinite(variance).any(axis=0) & np.isfinite(level).any(axis=0)).all():
        return None
    return SampleNoise(
        tuple(map(float, np.nanmedian(variance, axis=0))), tuple(map(float, np.nanmedian(level, axis=0)))
    )


class _TileFacts:
    """Collects what the report wants to know while blocks go by."""

    def __init__(self, n_channels: int, cores_yx: np.ndarray) -> None:
        self._cores_yx = cores_yx
        self.samples = 0
        self.rejected = 0
        self.core_samples = 0
        self.core_rejected = 0
        self.variance: list[list[np.ndarray]] = [[] for _ in range(n_channels)]
        self.coverage: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []
        self.columns: np.ndarray | None = None

    def add(self, row0: int, block: CoaddBlock) -> None:
        n_channels = len(block.image)
        touched = block.coverage > 0
        self.rows.append(touched.any(axis=1))
        columns = touched.any(axis=0)
        self.columns = columns if self.columns is None else self.columns | columns
        self.samples += int(block.coverage.sum(dtype=np.int64)) * n_channels
        self.rejected += int(block.rejected_low.sum(dtype=np.int64) + block.rejected_high.sum(dtype=np.int64))
        first, last = np.searchsorted(self._cores_yx[:, 0], [row0, row0 + len(touched)])
        y, x = self._cores_yx[first:last, 0] - row0, self._cores_yx[first:last, 1]
        self.core_samples += int(block.coverage[y, x].sum(dtype=np.int64)) * n_channels
        for rejected in (block.rejected_low, block.rejected_high):
            self.core_rejected += int(rejected[:, y, x].sum(dtype=np.int64))
        # Every seventh row of the tile, not of the block: what is found must not depend on the size of the blocks.
        sample = slice(-row0 % 7, None, 7), slice(None, None, 7)
        covered = block.coverage[sample]
        self.coverage.append(covered[covered > 0])
        for channel in range(n_channels):
            values = block.variance[channel][sample]
            self.variance[channel].append(values[np.isfinite(values)])

    def noise(self) -> tuple[float, ...]:
        joined = [np.concatenate(parts) if parts else np.empty(0) for parts in self.variance]
        return tuple(float(np.sqrt(np.median(v))) if len(v) else float("nan") for v in joined)

    def covered_bbox(self) -> tuple[int, int, int, int]:
        """Return rows and columns, end exclusive, around all covered pixels; empty at 0 when there are none."""
        rows, columns = np.flatnonzero(np.concatenate(self.rows)), np.flatnonzero(self.columns)
        if not len(rows):
            return 0, 0, 0, 0
        return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1

    def median_coverage(self) -> float:
        joined = np.concatenate(self.coverage) if self.coverage else np.empty(0)
        return float(np.median(joined)) if len(joined) else 0.0


def star_cores(frames: Sequence[RegisteredFrame], window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the pixels (K, 2), y and x within a window of the grid, on which stars have their centres; row by row."""
    y0, y1, x0, x1 = window
    places = []
    for frame in frames:
        stars = frame.solved.measure.columns("x", "y")
        x, y = frame.to_plane.apply(stars["x"][:WATCHED_STARS], stars["y"][:WATCHED_STARS])
        places.append(np.column_stack([np.rint(y) - y0, np.rint(x) - x0]).astype(np.int64))
    yx = np.unique(np.concatenate(places), axis=0)
    return yx[((yx >= 0) & (yx < [y1 - y0, x1 - x0])).all(axis=1)]


def _flux_gain(frames: Sequence[RegisteredFrame], weights: np.ndarray, plan: RunPlan) -> tuple[float, ...]:
    """Return what brings the stack of frames to the flux scale of the clear ones; 1 when they were brought there."""
    gains = np.array([frame.gain for frame in frames], dtype=float)
    if plan.stack.normalise == "linear_fit":  # the model of the sky brings them there too
        return (1.0,) * plan.n_channels
    transparency = np.where(np.isfinite(gains) & (gains > 0), 1 / np.where(gains > 0, gains, 1.0), 1.0)
    if plan.stack.rule.combine == "median":
        return tuple(map(float, 1 / np.median(transparency, axis=0)))
    return tuple(map(float, 1 / np.average(transparency, axis=0, weights=np.maximum(weights, 1e-12))))


def _tile_cards(
    group: FrameGroup, frames: Sequence[RegisteredFrame], plan: RunPlan, wcs_cards: dict[str, Any]
) -> dict[str, Any]:
    stack = plan.stack
    cards: dict[str, Any] = {
        **wcs_cards,
        "ZMT_TYPE": ("Master Tile", "ZeMosaic product"),
        "ZMT_ID": (group.group_id, "tile number"),
        "ZMT_NRAW": (len(group.members), "frames in the group"),
        "HIERARCH ZMT_NALGN": (len(frames), "frames stacked"),
        "ZMT_NORM": (stack.normalise, "normalisation applied"),
        "ZMT_WGHT": (stack.weighting, "weights applied"),
        "ZMT_RADW": (stack.radial is not None, "radial weight applied"),
        "ZMT_REJ": (stack.rule.rejection, "rejection applied"),
        "HIERARCH ZMT_KAPLO": (stack.rule.kappa_low, "sigma below the centre"),
        "HIERARCH ZMT_KAPHI": (stack.rule.kappa_high, "sigma above the centre"),
        "HIERARCH ZMT_WINLO": (stack.rule.winsor_limits[0], "winsorised fraction, low"),
        "HIERARCH ZMT_WINHI": (stack.rule.winsor_limits[1], "winsorised fraction, high"),
        "ZMT_COMB": (stack.rule.combine, "combination"),
        "ZMT_KERN": (stack.kernel, "resampling kernel"),
        "NEXP_SUM": (len(frames), "number of exposures"),
        "BUNIT": ("adu", "counts of the reference frames"),
        "SOFTWARE": (f"ZeMosaic {__version__}", "made by"),
    }
    return cards | _frame_cards(frames)


def _frame_cards(frames: Sequence[RegisteredFrame]) -> dict[str, Any]:
    """Return what the headers of the frames say about the tile."""
    first = frames[0].solved.frame.info
    exposure = sum(frame.solved.frame.info.total_exposure_s or 0.0 for frame in frames)
    cards: dict[str, Any] = {"EXPTOTAL": (exposure, "[s] exposure of all frames")}
    for name, value in (
        ("OBJECT", first.object_name),
        ("FILTER", first.filter_name),
        ("INSTRUME", first.instrument),
        ("GAIN", first.gain),
    ):
        if value not in (None, ""):
            cards[name] = value
    return cards


def _write_ramp(out: StreamingFits, shape_hw: tuple[int, int], ramp_px: int, rows: int = 512) -> None:
    """Multiply the weight plane by a ramp that falls to zero at the border of the covered area."""
    if ramp_px <= 0:
        return
    step = RAMP_DECIMATION
    valid = np.asarray(out.read_rows(0, shape_hw[0], ext="COVERAGE")[::step, ::step]) > 0
    small = edge_ramp(valid, max(1, ramp_px // step))
    for y0 in range(0, shape_hw[0], rows):
        y1 = min(y0 + rows, shape_hw[0])
        # A covered pixel at the very edge keeps a trace of weight: where it is alone it must still show.
        ramp = np.maximum(enlarge_rows(small, step, y0, y1, shape_hw[1]), 1e-3)
        out.write_rows(y0, np.asarray(out.read_rows(y0, y1, ext="WEIGHT")) * ramp, ext="WEIGHT")


def create_tile(
    group: FrameGroup,
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    hot_pixels: dict[int, np.ndarray],
    sky: Mapping[int, FrameTerms],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    path: Path,
    on_rows: Callable[[int, int], object] | None = None,
) -> MasterTile:
    """Stack one group and write its tile.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
        Weight of each frame, comparable between groups.
    sky : mapping of int to FrameTerms
        Terms of every frame from the model of the sky; empty: the group finds a common sky of its own.
    on_rows : callable, optional
        ``on_rows(done, total)`` as rows of the tile are finished.

    Raises
    ------
    SkipItem
        No frame of the group touches the grid; or rows that were read are not those that were measured.
    SaveFailed
        The tile cannot be written.
    """
    window = tile_window(frames, grid.shape_hw)
    if window is None:
        raise SkipItem(
            "tile_outside_grid", f"group {group.group_id} does not touch the mosaic", group=group.group_id
        )
    terms = frame_terms(frames, sky, plan)
    candidates = [
        _source(
            frame,
            window,
            terms[i],
            weights[i].astype(np.float32),
            plan.stack.feather_px,
            plan.stack.radial is not None,
        )
        for i, frame in enumerate(frames)
    ]
    sources = [source for source in candidates if source is not None]
    y0, y1, x0, x1 = window
    shape = (y1 - y0, x1 - x0)
    wcs = WCS(grid.wcs_cards).deepcopy()
    wcs.wcs.crpix -= np.array([x0, y0], dtype=float)
    store = FrameStore(
        {frame.solved.frame.index: frame.solved.frame.info for frame in frames},
        hot_pixels,
        colours=frame_colours(frames),
        radial=plan.stack.radial,
        row_sums={frame.solved.frame.index: frame.solved.measure.arrays()["row_sums"] for frame in frames},
        zero_is_missing={f.solved.frame.index for f in frames if f.solved.measure.zero_is_missing},
    )
    facts = _TileFacts(plan.n_channels, star_cores(frames, window))
    extensions = [("COVERAGE", shape, np.uint16), ("WEIGHT", shape, np.float32)]
    if plan.output.variance:
        extensions.append(("VARIANCE", (plan.n_channels, *shape), np.float32))
    cards = _tile_cards(group, frames, plan, header_cards(wcs))
    with StreamingFits(path, (plan.n_channels, *shape), cards, extensions=extensions) as out:

        def sink(row0: int, row1: int, block: CoaddBlock) -> None:
            out.write_rows(row0, block.image)
            out.write_rows(row0, block.coverage, ext="COVERAGE")
            out.write_rows(row0, block.weight.mean(axis=0), ext="WEIGHT")
            if plan.output.variance:
                out.write_rows(row0, block.variance, ext="VARIANCE")
            facts.add(row0, block)

        coadd_on_grid(
            store,
            sources,
            shape,
            plan.n_channels,
            replace(plan.stack.rule, noise=sample_noise(frames, weights, terms, plan.stack.kernel)),
            plan.stack.kernel,
            sink=sink,
            budget_bytes=plan.block_budget_bytes,
            policy=context.policy,
            threads=plan.threads,
            on_rows=on_rows,
            cancel=context.cancel,
        )
        _write_ramp(out, shape, plan.stack.tile_ramp_px)
        out.commit()
    return MasterTile(
        tile_id=group.group_id,
        path=str(path),
        origin_yx=(y0, x0),
        shape_hw=shape,
        frames=tuple(frame.solved.frame.index for frame in frames),
        exposure_s=float(sum(frame.solved.frame.info.total_exposure_s or 0.0 for frame in frames)),
        n_exposures=sum(frame.solved.frame.info.stack_count for frame in frames),
        noise_adu=facts.noise(),
        rejected_fraction=facts.rejected / facts.samples if facts.samples else 0.0,
        core_rejected_fraction=facts.core_rejected / facts.core_samples if facts.core_samples else None,
        median_coverage=facts.median_coverage(),
        covered_bbox=facts.covered_bbox(),
        flux_gain=_flux_gain(frames, weights, plan),
        map_error_px=max((source.pixel_map.max_error_px for source in sources), default=0.0),
    )


def _tile_key(
    manifest: Manifest,
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    hot: dict[int, np.ndarray],
    sky: Mapping[int, FrameTerms],
    grid: MosaicGrid,
    plan: RunPlan,
) -> str:
    """Return the key of a tile: the same key gives the same tile."""
    inputs = [
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
            hot.get(frame.solved.frame.index),
            _plain_terms(sky.get(frame.solved.frame.index)),
        )
        for i, frame in enumerate(frames)
    ]
    facts = _frame_cards(frames)
    return manifest.key(
        "tile",
        TILE_VERSION,
        __version__,
        inputs,
        facts,
        grid.wcs_cards,
        grid.shape_hw,
        asdict(plan.stack),
        plan.sky.model,
        plan.output.variance,
    )


def _plain_terms(terms: FrameTerms | None) -> list[Any]:
    if terms is None:
        return []
    plain = [terms.photometry.tolist(), terms.radial.tolist()]
    return plain if terms.surface is None else [*plain, terms.surface.tolist()]


def _stored_tile(
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


def _as_measured(frame: RegisteredFrame) -> RegisteredFrame:
    """Return the frame as its file is now.

    Raises
    ------
    SkipItem
        The file holds other pixels than those measured, or cannot be read any more.
    """
    info = frame.solved.frame.info
    if is_as_surveyed(info):
        return frame
    now = locate_again(info, frame.solved.measure.content_key)
    return replace(frame, solved=replace(frame.solved, frame=replace(frame.solved.frame, info=now)))


def _still_there(
    frames: Sequence[RegisteredFrame],
    context: RunContext,
    lost: SkipItem | None = None,
    tried_again: Collection[str] = (),
) -> list[RegisteredFrame]:
    """Return the frames whose pixels are those measured; the others are left out with their reason.

    Parameters
    ----------
    lost : SkipItem, optional
        Why a frame, named in its values, could not be stacked. It is kept when its pixels are found in another
        place of the file, as after another program wrote into its header.
    tried_again : collection of str
        Paths of frames that were kept for that reason before.
    """
    kept = []
    for frame in frames:
        path = str(frame.solved.frame.info.path)
        now = result_or_skip(path, _as_measured, frame)
        if lost is not None and lost.values.get("path") == path and (now is frame or path in tried_again):
            now = lost
        if isinstance(now, SkipItem):
            context.leave_out(path, PHASE, now.key, **now.values)
        else:
            kept.append(now)
    return kept


@dataclass(frozen=True)
class _Maker:
    """Makes the tile of one group, or takes the one made before."""

    weights: Mapping[int, np.ndarray]
    hot_pixels: dict[int, np.ndarray]
    sky: Mapping[int, FrameTerms]
    grid: MosaicGrid
    plan: RunPlan
    context: RunContext
    manifest: Manifest
    folder: Path

    def tile(
        self, group: FrameGroup, frames: Sequence[RegisteredFrame], on_rows: Callable[[int, int], object]
    ) -> tuple[MasterTile | None, bool]:
        """Return the tile, or None when nothing of the group is left; and whether it was made before."""
        frames = _still_there(frames, self.context)
        tried_again: set[str] = set()
        while frames:
            weights = np.stack([self.weights[frame.solved.frame.index] for frame in frames])
            key = _tile_key(self.manifest, frames, weights, self.hot_pixels, self.sky, self.grid, self.plan)
            if self.plan.resume:
                tile = _stored_tile(self.manifest, key, group, frames, self.folder)
                if tile is not None:
                    return tile, True
            path = self.folder / f"master_tile_{group.group_id:03d}_{key[:12]}.fits"
            try:
                tile = create_tile(
                    group,
                    frames,
                    weights,
                    self.hot_pixels,
                    self.sky,
                    self.grid,
                    self.plan,
                    self.context,
                    path,
                    on_rows,
                )
            except SkipItem as skip:
                left = _still_there(frames, self.context, skip, tried_again)
                if len(left) == len(frames) and all(a is b for a, b in zip(left, frames, strict=True)):
                    self.context.say(skip.key, "WARN", **skip.values)
                    return None, False
                tried_again.add(str(skip.values.get("path")))
                frames = left
                continue
            record = {
                "path": path.name,
                "digest": file_digest(path),
                "tile": asdict(tile) | {"path": path.name},
            }
            self.manifest.put(key, record)
            self.manifest.save()
            return tile, False
        return None, False


def run(
    groups: Sequence[FrameGroup],
    placed: Sequence[RegisteredFrame],
    hot_pixels: dict[int, np.ndarray],
    sky: Mapping[int, FrameTerms],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    manifest: Manifest,
) -> list[MasterTile]:
    """Return the master tiles; a tile made before from the same frames and numbers is used again.

    A frame that can no longer be read, or whose pixels are not those that were measured, is left out, and its
    group stacked without it.
    """
    folder = context.state_dir / "tiles"
    make_folder(folder)
    by_index = {frame.solved.frame.index: i for i, frame in enumerate(placed)}
    weights = frame_weights(
        np.array([frame.solved.measure.noise_adu for frame in placed]),
        np.array([frame.solved.measure.fwhm_px for frame in placed]),
        np.array([frame.gain for frame in placed]),
        plan.stack.weighting,
    )
    by_frame = {index: weights[i] for index, i in by_index.items()}
    maker = _Maker(by_frame, hot_pixels, sky, grid, plan, context, manifest, folder)
    tiles: list[MasterTile] = []
    n_reused = 0
    for done, group in enumerate(groups):
        context.cancel.check()

        def on_rows(rows: int, of: int, done: int = done) -> None:
            context.progress(done, len(groups), within=rows / of)

        members = [placed[by_index[i]] for i in group.members if i in by_index]
        tile, reused = maker.tile(group, members, on_rows)
        if tile is None:
            continue
        n_reused += reused
        tiles.append(tile)
        context.tile_finished(tile)
        context.progress(done + 1, len(groups), Path(tile.path).name)
    if n_reused:
        context.say("run_info_tiles_reused", tiles=n_reused)
    return tiles
