"""What the plan says to each phase: its numbers and choices, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zemosaic_core.colour_calibration import SPIRAL_B_V, SUN_B_V
from zemosaic_core.sources import CombineRule, Kernel
from zemosaic_io.solvers.chain import SolverOptions
from zemosaic_pipeline.batches import BatchOptions

__all__ = [
    "AssemblyOptions",
    "ColourOptions",
    "GridOptions",
    "GroupOptions",
    "OutputOptions",
    "SkyOptions",
    "SolveOptions",
    "StackOptions",
]


@dataclass(frozen=True)
class SolveOptions:
    """How frames get their place in the sky."""

    solver: SolverOptions
    ignore_header_wcs: bool
    tolerance_px: float


@dataclass(frozen=True)
class GroupOptions:
    """How frames are put together into tiles.

    Attributes
    ----------
    min_frames : int
        Smaller groups join others that overlap them; 0: none does.
    batches : BatchOptions or None
        Frames are cut in time instead of by where they point.
    batch_sizes : tuple of int
        Frames that each batch is expected to have, where batches become tiles.
    """

    threshold_deg: float
    orientation_split_deg: float
    target_groups: int
    max_per_group: int
    min_frames: int = 0
    split_by_filter: bool = False
    preplanned: tuple[tuple[str, ...], ...] = ()
    batches: BatchOptions | None = None
    batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class GridOptions:
    """How the pixels of the mosaic are laid out."""

    pixelscale_mode: str
    orientation: str
    max_megapixels: float
    exclude_outliers: bool
    drizzle_scale: float = 1.0


@dataclass(frozen=True)
class StackOptions:
    """How the frames of a group are combined.

    ``max_frames_per_pass`` and ``threads`` bound memory and processors; the result does not depend on them.
    """

    normalise: str
    weighting: str
    rule: CombineRule
    kernel: Kernel
    equalise_rgb: bool
    radial: tuple[float, float, float] | None
    feather_px: float
    tile_ramp_px: int
    max_frames_per_pass: int
    threads: int
    cfa_refine: str = "auto"


@dataclass(frozen=True)
class SkyOptions:
    """How the sky behind the frames is modelled.

    Attributes
    ----------
    model : {'full', 'planes', 'none'}
    site_deg : tuple of float or None
        Latitude and longitude the user gave; None: those of the headers.
    remove_gradient : bool
        The glow of the mosaic as a whole is taken out of the science file.
    """

    model: str
    site_deg: tuple[float, float] | None
    remove_gradient: bool


@dataclass(frozen=True)
class AssemblyOptions:
    """How the tiles become the mosaic."""

    method: str
    photometric_match: bool
    match_background: bool
    gradient: bool
    gradient_order: int
    crop: str = "signal"
    crop_science: bool = False


@dataclass(frozen=True)
class ColourOptions:
    """Whether colours are calibrated, and what shall be white: 'g2v', 'average_spiral' or 'none'."""

    calibrate: bool
    white: str
    save_calibrated: bool

    @property
    def white_b_v(self) -> float:
        """Colour B-V of what is to be white; zero points are always those of a G2V star's colour or of this."""
        return SPIRAL_B_V if self.white == "average_spiral" else SUN_B_V


@dataclass(frozen=True)
class OutputOptions:
    """Which files are written and how pictures look.

    Attributes
    ----------
    crop : {'', 'coverage', 'rectangle'}
        How pictures are cut that the science file is not.
    formats : tuple of str
        Further forms, see `output_formats.FORMATS`.
    annotation : bool
        Also a picture with the names of what it shows.
    zoom, hips : bool
        Also tiles with a page for a browser; tiles on the sphere.
    filter_numbers : dict of str to str
        AstroBin's numbers of filters by their names in lower case.
    """

    viewer_fits: bool
    viewer_tiff: bool
    variance: bool
    alpha: bool
    keep_state: bool
    colour: ColourOptions
    preview: dict[str, Any]
    flatten: bool = False
    crop: str = ""
    formats: tuple[str, ...] = ()
    annotation: bool = False
    zoom: bool = False
    hips: bool = False
    filter_numbers: dict[str, str] = field(default_factory=dict)
