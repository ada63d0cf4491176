"""The things a run hands from phase to phase: frozen, small, without pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import RunFailed
from zemosaic_core.transforms import Transform
from zemosaic_io.headers import FrameInfo
from zemosaic_io.sealed_arrays import load_sealed

__all__ = [
    "Frame",
    "FrameGroup",
    "FrameMeasure",
    "FrameTerms",
    "LeftOut",
    "MasterTile",
    "Mosaic",
    "MosaicGrid",
    "RegisteredFrame",
    "Solution",
    "SolvedFrame",
]


@dataclass(frozen=True)
class Frame:
    """A file that can be used, with its number: in the order of names at first, by time once it was measured."""

    index: int
    info: FrameInfo

    @property
    def name(self) -> str:
        """File name without its folder."""
        return Path(self.info.path).name


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used, and why."""

    path: str
    phase: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FrameMeasure:
    """What one look at the pixels of a frame tells; the arrays are in the file ``arrays_path``.

    Attributes
    ----------
    content_key : str
        Hash of the pixels; names everything derived from them.
    sky_adu, noise_adu : tuple of float
        Background level and its scatter per channel, ADU.
    n_stars : int
        Stars found; once the session is known, those of them that every frame of it could show.
    fwhm_px, elongation : float
        Medians over the stars: full width at half maximum (px) and major over minor axis. NaN without stars.
    transparency : float
        Flux of the stars of this frame relative to the same stars in clear frames taken in the same way (camera,
        exposure, gain, filter); NaN until known.
    zero_is_missing : bool
        Pixels that are 0 in all planes hold no light: they surround the picture.
    arrays_path : str
        ``.npz`` with ``x y flux channel_flux mesh mesh_noise hot row_sums`` and more (see `measure.measure_arrays`).
    """

    content_key: str
    sky_adu: tuple[float, ...]
    noise_adu: tuple[float, ...]
    n_stars: int
    fwhm_px: float
    elongation: float
    arrays_path: str
    transparency: float = float("nan")
    zero_is_missing: bool = False

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the arrays of this frame.

        Raises
        ------
        RunFailed
            ``run_error_state_lost``: they are not there any more.
        """
        stored = load_sealed(self.arrays_path, self.key)
        if stored is None:
            raise RunFailed(
                "run_error_state_lost",
                f"{self.arrays_path} was damaged or removed while the run used it; start the run again",
                path=self.arrays_path,
            )
        return stored[1]

    @property
    def key(self) -> str:
        """What the measurements follow from: the file, the pixels' layout and the options."""
        return Path(self.arrays_path).stem

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Read some of the arrays of this frame."""
        arrays = self.arrays()
        return {name: arrays[name] for name in names}


@dataclass(frozen=True)
class Solution:
    """How a frame got its place in the sky.

    Attributes
    ----------
    wcs_cards : dict
        FITS cards of a celestial WCS for the full frame.
    method : str
        ``header``, a solver's name, ``star_match`` or ``hint``.
    rms_px : float
        Residual of the fit; NaN when the solver does not tell.
    n_matched : int
        Stars behind it.
    approximate : bool
        True when the absolute position rests on the mount's word alone.
    seconds : float
        Time it took.
    confirmed : bool
        The star catalogue agrees with it.
    attempts : tuple of dict
        Every solver asked, the successful one last: solver, ok, seconds, key, values.
    """

    wcs_cards: dict[str, Any]
    method: str
    rms_px: float
    n_matched: int
    approximate: bool = False
    seconds: float = 0.0
    confirmed: bool = False
    attempts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class SolvedFrame:
    """A frame with its measurements and its place in the sky."""

    frame: Frame
    measure: FrameMeasure
    solution: Solution


@dataclass(frozen=True)
class FrameGroup:
    """Frames that become one master tile; ``members`` are frame indices."""

    group_id: int
    members: tuple[int, ...]
    ra_deg: float
    dec_deg: float


@dataclass(frozen=True)
class MosaicGrid:
    """The pixels of the mosaic: a TAN projection.

    Attributes
    ----------
    wcs_cards : dict
        FITS cards of the WCS.
    shape_hw : tuple of int
        Height and width, px.
    scale_arcsec : float
        Pixel scale at the centre, arcsec/px.
    """

    wcs_cards: dict[str, Any]
    shape_hw: tuple[int, int]
    scale_arcsec: float


@dataclass(frozen=True)
class RegisteredFrame:
    """A frame on the mosaic plane.

    Attributes
    ----------
    to_plane, to_frame : Transform
        Frame px -> mosaic px and back.
    rms_px : float
        Residual of this frame's stars against the common star list, mosaic px.
    gain : tuple of float
        Factor per channel that brings the frame to the common flux scale.
    kind : str
        Kind of the correction to the frame's own solution; empty when there was none.
    """

    solved: SolvedFrame
    to_plane: Transform
    to_frame: Transform
    rms_px: float
    n_matched: int
    gain: tuple[float, ...]
    kind: str


@dataclass(frozen=True)
class FrameTerms:
    """What the pixels of a frame get where they are read, in the form of `sources.CoaddSource`.

    Attributes
    ----------
    photometry, radial : ndarray, shape (C, 4), float32
    surface : ndarray, shape (C, 21), float32, or None
    """

    photometry: np.ndarray
    radial: np.ndarray
    surface: np.ndarray | None = None


@dataclass(frozen=True)
class MasterTile:
    """The stack of one group, on a window of the mosaic grid.

    Attributes
    ----------
    origin_yx : tuple of int
        Mosaic pixel of the tile's first pixel.
    shape_hw : tuple of int
        Height and width, px.
    exposure_s, n_exposures : float and int
        Seconds and number of exposures, those inside stacked frames counted.
    noise_adu : tuple of float
        Typical noise of a pixel per channel, ADU.
    rejected_fraction : float
        Share of the samples that were rejected.
    core_rejected_fraction : float or None
        The same of the samples on the centres of stars; None where there are none.
    covered_bbox : tuple of int
        Rows y0, y1 and columns x0, x1 of the tile, end exclusive, that hold all covered pixels.
    flux_gain : tuple of float
        Factor per channel that brings the tile to the common flux scale, by the stars of its frames.
    """

    tile_id: int
    path: str
    origin_yx: tuple[int, int]
    shape_hw: tuple[int, int]
    frames: tuple[int, ...]
    exposure_s: float
    n_exposures: int
    noise_adu: tuple[float, ...]
    rejected_fraction: float
    core_rejected_fraction: float | None
    median_coverage: float
    map_error_px: float
    covered_bbox: tuple[int, int, int, int]
    flux_gain: tuple[float, ...]


@dataclass(frozen=True)
class Mosaic:
    """The finished mosaic on disk.

    Attributes
    ----------
    grid : MosaicGrid
        The pixels that were written: the grid of the tiles, cropped.
    origin_yx : tuple of int
        Pixel of the tiles' grid that is the mosaic's first.
    """

    science_path: str
    coverage_path: str
    grid: MosaicGrid
    origin_yx: tuple[int, int]
    photometry: dict[str, Any]
    outputs: dict[str, str] = field(default_factory=dict)
