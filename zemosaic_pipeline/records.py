"""The things a run hands from phase to phase: frozen, small, without pixels; those of each frame without a `dict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.colour_calibration import SUN_B_V, ColourSolution
from zemosaic_core.errors import RunFailed
from zemosaic_core.transforms import Transform
from zemosaic_core.wcs_cards import WcsCards
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
    "MosaicColour",
    "MosaicGrid",
    "PixelMasks",
    "RegisteredFrame",
    "Solution",
    "SolvedFrame",
    "StarLight",
]


CHANNEL_LETTERS = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class Frame:
    """A file that can be used, with its number: in the order of names at first, by time once it was measured.

    Attributes
    ----------
    index : int
    info : FrameInfo
    calibration : str
        File of what its raw samples are calibrated with (`zemosaic_io.calibration_sets`); '' for nothing.
    is_tile : bool
        It was given as a master tile, in the form of one (`tile_intake`).
    wanted_weight : float
        Factor of the weight that its noise gives it, from a list of frames (`zemosaic_io.stack_plan`).
    """

    index: int
    info: FrameInfo
    calibration: str = ""
    is_tile: bool = False
    wanted_weight: float = 1.0

    @property
    def name(self) -> str:
        """File name without its folder."""
        return Path(self.info.path).name

    @property
    def calibration_key(self) -> str:
        """What its calibration follows from; '' for nothing."""
        return Path(self.calibration).stem


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used, and why."""

    path: str
    phase: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
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
    was_stored : bool
        An earlier run did the work.
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
    was_stored: bool = field(default=False, compare=False, repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the arrays of this frame.

        Raises
        ------
        RunFailed
            ``run_error_state_lost``: they are not there any more.
        """
        return self._read(None)

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Read some of the arrays of this frame; as `arrays`, only faster."""
        return self._read(names)

    def _read(self, names: Sequence[str] | None) -> dict[str, np.ndarray]:
        stored = load_sealed(self.arrays_path, self.key, names)
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


@dataclass(frozen=True, slots=True)
class Solution:
    """How a frame got its place in the sky.

    Attributes
    ----------
    wcs_cards : WcsCards
        FITS cards of a celestial WCS for the full frame; any mapping may be given.
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

    wcs_cards: Mapping[str, Any]
    method: str
    rms_px: float
    n_matched: int
    approximate: bool = False
    seconds: float = 0.0
    confirmed: bool = False
    attempts: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "wcs_cards", WcsCards.of(self.wcs_cards))


@dataclass(frozen=True, slots=True)
class SolvedFrame:
    """A frame with its measurements and its place in the sky."""

    frame: Frame
    measure: FrameMeasure
    solution: Solution


@dataclass(frozen=True)
class FrameGroup:
    """Frames that become one master tile; ``members`` are frame indices.

    ``field_share`` is the share of the field that a batch covers; None where groups are not made by it.
    """

    group_id: int
    members: tuple[int, ...]
    ra_deg: float
    dec_deg: float
    field_share: float | None = None


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

    @property
    def first_pixel_yx(self) -> tuple[int, int]:
        """Row and column of the first pixel in the endless grid whose pixel (0, 0) lies on the tangent point."""
        return round(1 - self.wcs_cards["CRPIX2"]), round(1 - self.wcs_cards["CRPIX1"])


@dataclass(frozen=True, slots=True)
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
    covered : ndarray of bool, shape (ny, nx), optional
        Cells of the sky mesh where something stands before the sky; None: nowhere.
    """

    solved: SolvedFrame
    to_plane: Transform
    to_frame: Transform
    rms_px: float
    n_matched: int
    gain: tuple[float, ...]
    kind: str
    covered: np.ndarray | None = None

    def open_mesh(self) -> np.ndarray:
        """Return the mesh of the sky (C, ny, nx), ADU; NaN where it is covered too."""
        mesh = self.solved.measure.columns("mesh")["mesh"]
        return mesh if self.covered is None else np.where(self.covered, np.float32(np.nan), mesh)


@dataclass(frozen=True)
class PixelMasks:
    """What of the pixels of frames is no light of the sky, by the index of the frame.

    Attributes
    ----------
    clip_levels : dict of int to ndarray (C,), float32
        Values from which on light was cut off, ADU; +inf or no entry: never.
    spans : dict of int to ndarray (k, 3), int32
        Missing pixels as ``(y, x0, x1)``, end exclusive, in the order of y.
    """

    clip_levels: dict[int, np.ndarray] = field(default_factory=dict)
    spans: dict[int, np.ndarray] = field(default_factory=dict)

    def key_of(self, index: int) -> tuple[object, ...]:
        """Return what a stack with this frame follows from."""
        levels, spans = self.clip_levels.get(index), self.spans.get(index)
        return (None if levels is None else levels.tolist(), spans)


@dataclass(frozen=True, slots=True)
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
    saturate_adu : float
        Lowest level at which light of a frame was cut off, in the unit of the tile; NaN: nowhere.
    calibrated : str
        Letters of CALSTAT (bias, dark, flat) that hold for all frames.
    refine : str
        Text key that says whether the second pass was made, or why not; with `refine_values`.
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
    saturate_adu: float = float("nan")
    calibrated: str = ""
    refine: str = "refine_off"
    refine_values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StarLight:
    """What the frames tell about the stars of the mosaic.

    Attributes
    ----------
    epoch : float
        Julian year of the mosaic.
    exposure_s : float
        Exposure of a frame on the common flux scale; NaN when headers do not tell.
    fwhm_px : float
        Width of stars, mosaic px.
    seen_xy : numpy.ndarray, shape (n, 2)
        Places on the grid of the bright stars of all frames.
    cut : numpy.ndarray of bool, shape (n,)
        Which of them reached the ceiling of the sensor.
    """

    epoch: float
    exposure_s: float
    fwhm_px: float
    seen_xy: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class MosaicColour:
    """Colour calibration of a mosaic, or why there is none.

    Attributes
    ----------
    key : str
        Text key of what to say: 'colour_calibrated', 'colour_zero_point', 'colour_too_few_stars' or 'colour_off'.
    n_stars : int
        Stars of known colour that could be measured.
    solution : ColourSolution or None
    zero_mag, limit_mag : tuple of float
        Per channel: V of a star of the white colour that gives 1 ADU/s, and of one at five times the noise;
        NaN when unknown. Empty without a solution.
    stars : numpy.ndarray, shape (n, 2 + C)
        V, B-V and instrumental magnitudes ``-2.5 log10(ADU)`` of the stars.
    white : str
        What is white, see `ColourOptions`.
    white_b_v : float
        Its colour B-V.
    """

    key: str
    n_stars: int
    solution: ColourSolution | None = None
    zero_mag: tuple[float, ...] = ()
    limit_mag: tuple[float, ...] = ()
    stars: np.ndarray | None = None
    white: str = "none"
    white_b_v: float = SUN_B_V

    @property
    def gains(self) -> tuple[float, ...] | None:
        """White balance for pictures, or None when the picture has to find its own."""
        balanced = self.solution is not None and self.white != "none" and len(self.solution.gains) > 1
        return self.solution.gains if balanced and self.solution is not None else None

    def cards(self) -> dict[str, tuple[object, str]]:
        """FITS cards of the mosaic."""
        if self.solution is None:
            return {}
        letters = CHANNEL_LETTERS[len(self.solution.zero_points)]
        cards: dict[str, tuple[object, str]] = {
            "COLNSTAR": (self.solution.n_stars, "stars of the calibration")
        }
        if self.gains is not None:
            cards["COLWHITE"] = (self.white, "what is white")
            for letter, gain in zip(letters, self.gains, strict=True):
                cards[f"WBAL_{letter}"] = (round(gain, 5), "white balance, factor; not applied here")
            cards["WBALERR"] = (round(100.0 * self.solution.gain_error, 2), "[%] error of the white point")
        for letter, zero, point in zip(letters, self.zero_mag, self.solution.zero_points, strict=True):
            cards[f"ZMAG_{letter}"] = (round(zero, 4), f"[mag] V of 1 adu/s, error {point.sigma:.3f}")
        for letter, limit in zip(letters, self.limit_mag, strict=True):
            cards[f"MLIM_{letter}"] = (round(limit, 2), "[mag] V of a star at 5 sigma")
        return cards

    def facts(self) -> dict[str, Any]:
        """Everything the report says about colours."""
        data: dict[str, Any] = {"key": self.key, "n_stars": self.n_stars, "white": self.white}
        if self.solution is None or self.stars is None:
            return data
        lines = [*self.solution.ratios, *self.solution.zero_points]
        names = ("slope", "at_white", "sigma", "scatter")
        return {
            **data,
            "used": self.solution.n_stars,
            "white_b_v": self.white_b_v,
            "gains": self.gains,
            "gain_error": self.solution.gain_error,
            "zero_mag": self.zero_mag,
            "limit_mag": self.limit_mag,
            "lines": [{name: round(getattr(line, name), 4) for name in names} for line in lines],
            "stars": np.round(self.stars, 3),
            "counted": self.solution.counted,
        }


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
    colour: MosaicColour
    outputs: dict[str, str] = field(default_factory=dict)
