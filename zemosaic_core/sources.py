"""The nouns of the co-add: what a source is, how it lands on the output grid, how samples are combined.

Shared by the CPU engine, the GPU engine and the doors. Data only; no arithmetic beyond bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from zemosaic_core.cfa import CfaColour
from zemosaic_core.scratch import Scratch

__all__ = [
    "CoaddBlock",
    "CoaddSource",
    "CombineRule",
    "Kernel",
    "LendingSource",
    "PixelMap",
    "PixelSource",
    "RawRows",
    "SampleNoise",
]

Kernel = Literal["bilinear", "lanczos3"]


@dataclass(frozen=True)
class PixelMap:
    """Output pixel -> source pixel, known exactly on a coarse lattice and bilinear in between.

    Node ``(j, i)`` stands at output pixel ``(y0 + j * step, x0 + i * step)``. Coordinates are evaluated without
    rounding from these nodes everywhere; only the fraction inside a source pixel is rounded to float32.

    Attributes
    ----------
    x0, y0 : int
        Output pixel of node (0, 0).
    step : int
        Lattice spacing in output pixels, a power of two.
    src_x, src_y : ndarray, shape (ny, nx), float64
        Source pixel coordinates at the nodes, multiples of 2^-24; origin 0 at the centre of the first pixel. NaN
        where the map is undefined.
    max_error_px : float
        Largest error of the bilinear interpolation measured at cell centres and edge midpoints, source px.
    """

    x0: int
    y0: int
    step: int
    src_x: np.ndarray
    src_y: np.ndarray
    max_error_px: float

    @cached_property
    def row_slopes(self) -> tuple[float, float]:
        """Largest change of the source row per output pixel along a row and down a column; NaN where it is unknown."""
        changes = (np.abs(np.diff(self.src_y, axis=axis)) / self.step for axis in (1, 0))
        along, down = (float(np.nanmax(c)) if np.isfinite(c).any() else math.nan for c in changes)
        return along, down


@dataclass(frozen=True)
class CoaddSource:
    """One image of a co-add, without its pixels.

    Attributes
    ----------
    key : int
        What the `PixelSource` knows this image by.
    shape_hw : tuple of int
        Height and width of the source image, px.
    pixel_map : PixelMap
        Where each output pixel falls in the source.
    bbox : tuple of int
        ``(y0, y1, x0, x1)`` in output pixels, end exclusive: outside it the source has no samples.
    photometry : ndarray, shape (C, 4), float32
        ``(gain, c0, cx, cy)`` per channel: the sample ``v`` at source position ``(x, y)`` becomes
        ``gain * v + c0 + cx * u + cy * t`` with ``u = 2 x / (W - 1) - 1`` and ``t = 2 y / (H - 1) - 1``.
    weight : ndarray, shape (C,), float32
        Weight of every sample of this source; 0 leaves the source out.
    feather_px : float
        Width of the smoothstep ramp ``r*r*(3 - 2r)`` with ``r = s + (1 - s) (d + 1) / feather_px`` clipped to [0, 1],
        where ``d`` is the distance in px of the sample from the nearest border of the source image and ``s`` is
        ``feather_start``. 0: no ramp.
    has_weight_map : bool
        The `PixelSource` also offers `read_weight` for this source.
    radial : ndarray, shape (C, 4), float32, optional
        ``(f1, f2, d1, d2)`` per channel, a pattern around the centre of the detector: the sample becomes
        ``gain * v * (1 + f1 q + f2 q^2) + (c0 + cx * u + cy * t + d1 q + d2 q^2)``. ``q`` is the squared distance
        from the image centre, 1 in the corners:
        ``(u^2 (W - 1)^2 + t^2 (H - 1)^2) / ((W - 1)^2 + (H - 1)^2)``, 0 where the image is one pixel. The first
        factor is the inverse of a radial flat. None: all zero, at no cost.
    surface : ndarray, shape (C, 21), float32, optional
        Added to the result: coefficients of ``u^i t^j`` in the order of `detector_surface.EXPONENTS`. None: nothing.
    feather_start : float
        Where the ramp begins at the border, from 0 (no weight) to below 1.
    """

    key: int
    shape_hw: tuple[int, int]
    pixel_map: PixelMap
    bbox: tuple[int, int, int, int]
    photometry: np.ndarray
    weight: np.ndarray
    feather_px: float = 0.0
    has_weight_map: bool = False
    radial: np.ndarray | None = None
    surface: np.ndarray | None = None
    feather_start: float = 0.0

    @cached_property
    def takes_part(self) -> bool:
        """Whether a channel has any weight."""
        return bool(np.any(np.asarray(self.weight) > 0))


@dataclass(frozen=True)
class RawRows:
    """Undecoded rows of a CFA frame, for a device that decodes them itself.

    Attributes
    ----------
    data : ndarray, shape (h, W), uint16 or float32
        Bit patterns exactly as in the file: big-endian two's complement when ``big_endian_signed`` (FITS int16 with
        BZERO 32768), else native uint16. Of a calibrated frame its samples, native float32, none of them missing.
    y0 : int
        First row.
    big_endian_signed : bool
        See `data`.
    pattern : str
        CFA pattern at source pixel (0, 0): one of GRBG, RGGB, GBRG, BGGR.
    hot_pixels : ndarray, shape (k,), int64
        Flat indices ``y * W + x`` (whole image) to be replaced before debayering.
    colour : CfaColour or None
        What is known of the frame's light; see `zemosaic_core.cfa.debayer`.
    clip : tuple of float
        Values of red, green and blue from which on light was cut off; see `clipped_light.mark_clipped_cfa`.
    masked : ndarray, shape (k, 3), int32
        Pixels that are missing, as spans ``(y, x0, x1)`` of the whole image, end exclusive.
    """

    data: np.ndarray
    y0: int
    big_endian_signed: bool
    pattern: str
    hot_pixels: np.ndarray
    colour: CfaColour | None = None
    clip: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    masked: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int32))


class PixelSource(Protocol):
    """Where the pixels of the sources come from. Calls may come from several threads at once."""

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (C, y1-y0, x1-x0) float32, ready to sample; missing pixels are NaN.

        Pixels whose light was cut off are NaN that hold a lower bound (`zemosaic_core.clipped_light`).
        """

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map as (h, w) float32 >= 0, or None when there is none."""

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return undecoded rows, or None when this source has no such form (RGB, float, compressed)."""


@runtime_checkable
class LendingSource(PixelSource, Protocol):
    """A source of pixels that can decode into memory that is used again."""

    def lend(
        self,
        scratch: Scratch,
        key: int,
        y0: int,
        y1: int,
        x0: int,
        x1: int,
        columns: np.ndarray | None = None,
    ) -> AbstractContextManager[tuple[np.ndarray, tuple[int, int]]]:
        """Lend the window of `read`, or a larger one that holds it, and the row and column of its first pixel.

        `columns`, from `pixel_map.source_columns`, says which are wanted of each row of the window; other pixels may
        hold anything.
        """


@dataclass(frozen=True)
class SampleNoise:
    """What is known about the noise of the samples before they are compared; all tuples hold one number per channel.

    Attributes
    ----------
    variance : tuple of float
        Variance (ADU^2) of a sample of weight 1: a sample of weight ``w`` is expected to have ``variance / w``.
        Feathers and weight maps do not count.
    background : tuple of float
        Level of the empty sky in the co-add, ADU. Where there is light above it, frames differ by more than noise.
    mismatch : float
        Relative difference of the frames where there is light: seeing, registration, saturation. Of Moffat stars
        whose width varies from 2.3 to 2.9 px and whose place by 0.1 px rms, 0.2 rejects up to 0.7 % of the wings at
        three to twelve samples, 0.3 0.2 % and 0.4 0.1 %, which is what it takes of the sky, and none of the cores;
        winsorized clipping as it is takes 0.5 to 2 % of both at four to twenty.
    """

    variance: tuple[float, ...]
    background: tuple[float, ...]
    mismatch: float = 0.4


@dataclass(frozen=True)
class CombineRule:
    """How the samples of one output pixel become one value.

    Attributes
    ----------
    rejection : {'none', 'kappa_sigma', 'winsorized_sigma_clip', 'linear_fit_clip'}
        Outlier rejection; definitions in `zemosaic_core.rejection`.
    kappa_low, kappa_high : float
        Bounds below and above the centre in sigma.
    winsor_limits : tuple of float
        Fractions pulled in at the low and high end for the first scale estimate (winsorized only).
    combine : {'mean', 'median'}
        Weighted mean or plain median of the kept samples.
    noise : SampleNoise, optional
        With it samples are also rejected where there are too few for their scatter to tell; see
        `zemosaic_core.rejection`. Nothing is where `rejection` is 'none'.
    """

    rejection: str = "winsorized_sigma_clip"
    kappa_low: float = 3.0
    kappa_high: float = 3.0
    winsor_limits: tuple[float, float] = (0.05, 0.05)
    combine: str = "mean"
    noise: SampleNoise | None = None

    @property
    def uses_noise(self) -> bool:
        """Whether what is known about the noise takes part in the rejection."""
        return self.noise is not None and self.rejection != "none"


@dataclass(frozen=True)
class CoaddBlock:
    """One block of output rows.

    Attributes
    ----------
    image : ndarray, shape (C, h, w), float32
        Combined value; NaN where no sample was kept. Where only clipped light is left, the highest lower bound of it.
    weight : ndarray, shape (C, h, w), float32
        Sum of the weights of the kept samples; 0 where none: also of pixels that hold a lower bound.
    coverage : ndarray, shape (h, w), uint16
        Number of sources that have a sample here, before rejection; clipped ones only where there are no others.
        65,535 means so many or more.
    variance : ndarray, shape (C, h, w), float32
        Variance of the combined value estimated from the scatter of the kept samples; NaN with fewer than 2.
    rejected_low, rejected_high : ndarray, shape (C, h, w), uint16
        Samples rejected below and above; 65,535 means so many or more.
    """

    image: np.ndarray
    weight: np.ndarray
    coverage: np.ndarray
    variance: np.ndarray
    rejected_low: np.ndarray
    rejected_high: np.ndarray

    @property
    def clipped(self) -> np.ndarray:
        """Mask (C, h, w) of pixels that hold a lower bound of their light only."""
        return _only_bounds(self.image, self.weight)

    def clipped_bits(self) -> np.ndarray:
        """Return `clipped` as one number per pixel (h, w), uint8: 1 for the first channel, 2 and 4 for the others."""
        bits = np.zeros(self.coverage.shape, np.uint8)
        for channel, (image, weight) in enumerate(zip(self.image, self.weight, strict=True)):
            bits |= _only_bounds(image, weight).view(np.uint8) << channel
        return bits

    @staticmethod
    def unfilled(shape: tuple[int, int, int]) -> CoaddBlock:
        """Return a block (C, h, w) that holds anything: for who fills all of it, in threads of his own."""
        return CoaddBlock(
            image=np.empty(shape, np.float32),
            weight=np.empty(shape, np.float32),
            coverage=np.empty(shape[1:], np.uint16),
            variance=np.empty(shape, np.float32),
            rejected_low=np.empty(shape, np.uint16),
            rejected_high=np.empty(shape, np.uint16),
        )

    @staticmethod
    def blank(shape: tuple[int, int, int]) -> CoaddBlock:
        """Return a block (C, h, w) that no source touches."""
        return CoaddBlock(
            image=np.full(shape, np.nan, np.float32),
            weight=np.zeros(shape, np.float32),
            coverage=np.zeros(shape[1:], np.uint16),
            variance=np.full(shape, np.nan, np.float32),
            rejected_low=np.zeros(shape, np.uint16),
            rejected_high=np.zeros(shape, np.uint16),
        )

    @staticmethod
    def joined(blocks: Sequence[CoaddBlock]) -> CoaddBlock:
        """Return the rows of blocks that follow each other as one block."""
        if len(blocks) == 1:
            return blocks[0]
        names = [part.name for part in fields(CoaddBlock)]
        return CoaddBlock(*(np.concatenate([getattr(b, name) for b in blocks], axis=-2) for name in names))

    def put(self, y0: int, y1: int, rows: CoaddBlock) -> None:
        """Write another block over the rows ``y0 <= y < y1`` of this one."""
        for part in fields(CoaddBlock):
            getattr(self, part.name)[..., y0:y1, :] = getattr(rows, part.name)


def _only_bounds(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return which pixels have a value without a sample: a lower bound of clipped light."""
    return np.isfinite(image) & (weight == 0)
