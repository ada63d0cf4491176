"""Whether a stack gets a second pass over its untouched samples, and that pass over a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_align_stack import refine_on_grid
from zemosaic_core.coadd import CancelToken
from zemosaic_core.pixel_map import build_pixel_map, map_coordinates_at
from zemosaic_core.refine import LIMIT_SIGMA, RefineSource
from zemosaic_core.refine_rows import CoaddRows
from zemosaic_core.sources import CoaddSource, CombineRule, PixelMap, SampleNoise
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.mapped_arrays import mapped_maps
from zemosaic_pipeline.records import FrameTerms, RegisteredFrame

__all__ = [
    "MIN_FRAMES",
    "RefineDecision",
    "TwoPasses",
    "blurs_px2",
    "choose_refine",
    "overlap",
    "refine_sources",
    "refine_tile",
    "refinement_of",
]

# Below this number of frames the noise of the few own samples eats what is won.
MIN_FRAMES = 8
# Share of the frames that may sample the sky at the same places of the colour filter array: of n frames that are
# moved at random it is about 1 / sqrt(n), of frames that are not moved at all it is 1.
MAX_ALIKE = 0.7
# Rows and columns of places at which the overlap of the frames is looked at.
PLACES = 7
# Share of the second pass in the time of both, for the progress that is shown.
SECOND_PERCENT = 30


@dataclass(frozen=True)
class RefineDecision:
    """Whether the second pass is made, and why: ``reason_key`` is a text key with ``values``."""

    on: bool
    reason_key: str
    values: dict[str, Any] = field(default_factory=dict)


def choose_refine(
    wanted: str,
    *,
    kind: str,
    n_frames: int,
    combine: str,
    kernel: str,
    noise_known: bool = True,
    alike: float = 0.0,
    scale: float = 1.0,
) -> RefineDecision:
    """Decide about the second pass of a stack.

    Parameters
    ----------
    wanted : {'auto', 'off'}
        What the settings ask for.
    kind : {'cfa', 'mono', 'rgb'}
        What the frames are. Frames of one colour have nothing to win on a grid of their own pixels.
    n_frames : int
        Frames where most of them overlap.
    combine : {'mean', 'median'}
        Rule of the co-add; a median is no sum that samples could be added to.
    kernel : {'bilinear', 'lanczos3'}
        A user who asks for bilinear sampling wants it fast.
    noise_known : bool
        Whether the noise of the frames is known: without it nothing tells light from noise.
    alike : float
        How alike the frames sample the sky, from `overlap`; 0 before it is known.
    scale : float
        Output pixels per pixel of a frame.
    """
    if wanted == "off":
        return RefineDecision(False, "refine_off")
    if kind == "rgb" or (kind == "mono" and scale <= 1):
        return RefineDecision(False, "refine_no_filters")
    if combine != "mean" or kernel != "lanczos3":
        return RefineDecision(False, "refine_rule")
    if n_frames < MIN_FRAMES:
        return RefineDecision(False, "refine_few", {"n": n_frames, "least": MIN_FRAMES})
    if not noise_known:
        return RefineDecision(False, "refine_noise")
    if alike > MAX_ALIKE:
        return RefineDecision(False, "refine_not_dithered", {"alike": round(alike, 2)})
    return RefineDecision(True, "refine_on", {"n": n_frames})


def overlap(sources: Sequence[CoaddSource]) -> tuple[int, float]:
    """Return how many frames lie over each other where most do, and how alike they sample the sky.

    Of the latter, 1 says that all frames put the same colour on the same place. It is the length of the mean of
    ``exp(i pi x)`` over the frames, x their pixel there, as the colours repeat every two pixels; of x and y the larger,
    of the places where frames are enough for a second pass the median.
    """
    boxes = np.array([source.bbox for source in sources])
    y0, y1, x0, x1 = boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()
    most, found = 0, []
    for y in np.linspace(y0, y1 - 1, PLACES + 2)[1:-1].round():
        for x in np.linspace(x0, x1 - 1, PLACES + 2)[1:-1].round():
            here = [s for s in sources if s.bbox[0] <= y < s.bbox[1] and s.bbox[2] <= x < s.bbox[3]]
            places = [(*map_coordinates_at(s.pixel_map, x, y), *s.shape_hw) for s in here]
            at = np.array(places, float).reshape(-1, 4)
            inside = (at[:, :2] >= 0).all(axis=1) & (at[:, 0] <= at[:, 3] - 1) & (at[:, 1] <= at[:, 2] - 1)
            most = max(most, int(inside.sum()))
            if inside.sum() >= MIN_FRAMES:
                found.append(float(np.abs(np.exp(1j * np.pi * at[inside, :2]).mean(axis=0)).max()))
    return most, float(np.median(found)) if found else 0.0


def refinement_of(
    sources: Sequence[CoaddSource], rule: CombineRule, kernel: str, *, wanted: str, kind: str, scale: float
) -> RefineDecision:
    """Decide about the second pass of a stack, now that it is known where its frames lie; see `choose_refine`."""
    most, alike = overlap(sources)
    return choose_refine(
        wanted,
        kind=kind,
        n_frames=most,
        combine=rule.combine,
        kernel=kernel,
        noise_known=rule.noise is not None,
        alike=alike,
        scale=scale,
    )


class TwoPasses:
    """Joins the progress of the co-add and of the second pass over its rows.

    Parameters
    ----------
    on_rows : callable or None
        ``on_rows(done, total)`` of both together.
    both : bool
        There will be a second pass.
    """

    def __init__(self, on_rows: Callable[[int, int], object] | None, both: bool) -> None:
        self._on_rows = on_rows
        self._first = 100 - SECOND_PERCENT if both else 100

    def first(self, done: int, total: int) -> None:
        """Tell of rows of the co-add."""
        if self._on_rows is not None:
            self._on_rows(self._first * done, 100 * total)

    def second(self, done: int, total: int) -> None:
        """Tell of rows of the second pass."""
        if self._on_rows is not None:
            self._on_rows(self._first * total + (100 - self._first) * done, 100 * total)


def blurs_px2(fwhm_px: np.ndarray, weights: np.ndarray, scale: float) -> np.ndarray:
    """Return `RefineSource.blur_px2` of frames (N,) from the widths of their stars; 0 where a width is not known.

    A Gaussian of this FWHM stands for the profile: only differences of frames count.
    """
    variance = (scale * fwhm_px) ** 2 / (8 * np.log(2))
    known = np.isfinite(variance) & (weights > 0)
    if not known.any():
        return np.zeros(len(fwhm_px))
    return np.where(known, 0.5 * (variance - np.average(variance[known], weights=weights[known])), 0.0)


def refine_sources(
    frames: Sequence[RegisteredFrame],
    sources: Sequence[CoaddSource],
    terms: Sequence[FrameTerms],
    origin_yx: tuple[int, int],
    noise: SampleNoise,
    max_error_px: float,
    folder: Path,
    *,
    weights: np.ndarray,
    scale: float,
) -> list[RefineSource]:
    """Return the sources of a stack as the second pass takes them.

    Parameters
    ----------
    frames, terms : sequence
        All frames of the group; those that miss the tile have no source.
    origin_yx : tuple of int
        Pixel of the mosaic that is the first one of the tile.
    noise : SampleNoise
    max_error_px : float
        Of the maps from the frames to the tile.
    folder : Path
        Where their nodes lie in a temporary file.
    weights : ndarray, shape (N, C)
        Of the frames.
    scale : float
        Output pixels per pixel of a frame.
    """
    blurs = blurs_px2(
        np.array([frame.solved.measure.fwhm_px for frame in frames], float),
        np.array([np.mean(source_weight) for source_weight in weights], float),
        scale,
    )
    by_key = {
        frame.solved.frame.index: (frame, term, blur)
        for frame, term, blur in zip(frames, terms, blurs.tolist(), strict=True)
    }
    background = np.array(noise.background, np.float32)
    maps = mapped_maps(
        (_to_tile(by_key[source.key][0], origin_yx, max_error_px) for source in sources), folder
    )
    made = []
    for source, to_output in zip(sources, maps, strict=True):
        frame, term, blur = by_key[source.key]
        info = frame.solved.frame.info
        of_frame = np.asarray(frame.solved.measure.noise_adu, float)
        limit = LIMIT_SIGMA * np.abs(term.photometry[:, 0]) * of_frame
        pattern = info.cfa_pattern if info.kind == "cfa" else ""
        made.append(RefineSource(source, to_output, pattern, limit.astype(np.float32), background, blur))
    return made


def _to_tile(frame: RegisteredFrame, origin_yx: tuple[int, int], max_error_px: float) -> PixelMap:
    """Return the map from the pixels of a frame to those of the tile."""
    height, width = frame.solved.frame.info.shape_hw

    def to_tile(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        px, py = frame.to_plane.apply(x, y)
        return px - origin_yx[1], py - origin_yx[0]

    return build_pixel_map(to_tile, (0, height, 0, width), max_error_px=max_error_px)


class _TileRows:
    """The rows of a co-add, as the second pass reads them, and the tile that it writes."""

    def __init__(
        self, out: StreamingFits, final: StreamingFits, n_channels: int, with_variance: bool
    ) -> None:
        self._out = out
        self._n_channels = n_channels
        self._final = final
        self._with_variance = with_variance

    def read(self, y0: int, y1: int) -> CoaddRows:
        variance = np.asarray(self._out.read_rows(y0, y1, ext="VARIANCE")) if self._with_variance else None
        image = np.array(self._out.read_rows(y0, y1))
        # Lower bounds are no model of the light around them.
        image[self._clipped(y0, y1)] = np.nan
        return CoaddRows(
            image,
            np.asarray(self._out.read_rows(y0, y1, ext="WEIGHT")),
            np.asarray(self._out.read_rows(y0, y1, ext="COVERAGE")),
            variance,
        )

    def _clipped(self, y0: int, y1: int) -> np.ndarray:
        """Where a channel holds a lower bound only, (C, h, w) bool."""
        bits = np.asarray(self._out.read_rows(y0, y1, ext="CLIPPED"))
        return np.stack([bits >> channel & 1 for channel in range(self._n_channels)]).astype(bool)

    def write(self, y0: int, image: np.ndarray, variance: np.ndarray | None) -> None:
        y1 = y0 + image.shape[-2]
        bits = np.asarray(self._out.read_rows(y0, y1, ext="CLIPPED"))
        known = np.where(self._clipped(y0, y1), np.asarray(self._out.read_rows(y0, y1)), image)
        self._final.write_rows(y0, known)
        self._final.write_rows(y0, bits, ext="CLIPPED")
        self._final.write_rows(y0, np.asarray(self._out.read_rows(y0, y1, ext="COVERAGE")), ext="COVERAGE")
        if variance is not None:
            self._final.write_rows(y0, variance, ext="VARIANCE")


def refine_tile(
    out: StreamingFits,
    final: StreamingFits,
    store: FrameStore,
    sources: Sequence[RefineSource],
    shape_hw: tuple[int, int],
    noise: SampleNoise,
    *,
    scale: float,
    with_variance: bool,
    budget_bytes: int,
    policy: GpuPolicy | None,
    threads: int,
    on_rows: Callable[[int, int], object] | None,
    cancel: CancelToken | None,
    refine: Callable[..., None] = refine_on_grid,
) -> None:
    """Make the second pass over a co-add whose rows are all in ``out``, weights too, into the file ``final``.

    All but the weights is written there. ``refine`` is what does it.

    Raises
    ------
    Cancelled, SkipItem, SaveFailed
        As the co-add.
    """
    refine(
        store, sources, shape_hw, _TileRows(out, final, len(noise.variance), with_variance), noise,
        scale=scale, budget_bytes=budget_bytes, policy=policy, threads=threads, on_rows=on_rows, cancel=cancel,
    )  # fmt: skip
