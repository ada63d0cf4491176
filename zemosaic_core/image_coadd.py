"""Co-add images that are already in memory, placed by their WCS: the bridge from arrays to the block engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_core.errors import SettingsError
from zemosaic_core.image_overlaps import solve_overlaps
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox, wcs_transform
from zemosaic_core.rejection import check_rule
from zemosaic_core.sources import CoaddSource, CombineRule, Kernel
from zemosaic_core.tile_photometry import TileOptions

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["ArrayPixels", "AssemblyOptions", "check_names", "place_images", "prepare_assembly"]

_BUDGET_BYTES = 1 << 30
# Keywords of a whole assembly; the last line is the caller's own business.
_NAMES = {
    "combine_function", "stack_reject_algo", "coadd_k", "kappa_sigma_k", "winsor_limits", "kernel",
    "match_background", "match_bg", "bg_preview_size", "tile_affine_corrections",
    "tile_weights", "tile_weight_maps", "input_weights", "budget_bytes", "max_chunk_bytes", "threads",
    "output_projection", "policy", "progress_callback", "cancel",
}  # fmt: skip
# Accepted from older callers; the engine plans its own rows and the photometric solution is robust by itself.
_UNUSED_NAMES = {"rows_per_chunk", "intertile_sky_percentile", "intertile_robust_clip_sigma"}
_Corrections = Mapping[int, tuple[float, float]] | Sequence[tuple[float, float] | None]

_COMBINE = {
    "mean": CombineRule(rejection="none"),
    "median": CombineRule(rejection="none", combine="median"),
    "kappa_sigma": CombineRule(rejection="kappa_sigma"),
    "winsorized": CombineRule(rejection="winsorized_sigma_clip"),
    "winsorized_sigma_clip": CombineRule(rejection="winsorized_sigma_clip"),
    "linear_fit_clip": CombineRule(rejection="linear_fit_clip"),
}


class ArrayPixels:
    """A `PixelSource` over arrays; the key of a source is its position in the list.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
    weight_maps : sequence of (ndarray (h, w) or None), optional
        Weight of every pixel, >= 0.
    """

    def __init__(
        self, images: Sequence[np.ndarray], weight_maps: Sequence[np.ndarray | None] | None = None
    ) -> None:
        self._images = list(images)
        self._maps = [None] * len(self._images) if weight_maps is None else list(weight_maps)
        if len(self._maps) != len(self._images):
            raise ValueError(f"{len(self._images)} images but {len(self._maps)} weight maps")
        for image, weights in zip(self._images, self._maps, strict=True):
            if weights is not None and weights.shape != image.shape[1:]:
                raise ValueError(f"weight map {weights.shape} does not match image {image.shape}")

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window, (C, h, w) float32."""
        return np.ascontiguousarray(self._images[key][:, y0:y1, x0:x1], dtype=np.float32)

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return a window of the weight map, or None."""
        weights = self._maps[key]
        return None if weights is None else np.ascontiguousarray(weights[y0:y1, x0:x1], dtype=np.float32)

    def read_raw(self, key: int, y0: int, y1: int) -> None:
        """Arrays have no undecoded form."""
        return


def place_images(
    shapes_hw: Sequence[tuple[int, int]],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    photometry: np.ndarray,
    weights: np.ndarray,
    *,
    feather_px: float = 0.0,
    has_weight_maps: Sequence[bool] | None = None,
    max_error_px: float = 0.005,
) -> list[CoaddSource]:
    """Place images on an output grid by their WCS.

    Parameters
    ----------
    shapes_hw, wcs_list : sequence
        Height, width and WCS of every image.
    out_wcs, out_shape_hw
        The output grid.
    photometry : ndarray, shape (N, C, 4), float32
    weights : ndarray, shape (N, C), float32
    feather_px, has_weight_maps
        See `CoaddSource`.
    max_error_px : float
        Allowed error of the pixel maps.

    Returns
    -------
    list of CoaddSource
        In the order given; images that do not touch the grid are left out.
    """
    sources = []
    for key, (shape, wcs) in enumerate(zip(shapes_hw, wcs_list, strict=True)):
        bbox = footprint_bbox(wcs_transform(wcs, out_wcs), shape, out_shape_hw)
        if bbox[1] <= bbox[0]:
            continue
        sources.append(
            CoaddSource(
                key=key,
                shape_hw=(int(shape[0]), int(shape[1])),
                pixel_map=build_pixel_map(wcs_transform(out_wcs, wcs), bbox, max_error_px=max_error_px),
                bbox=bbox,
                photometry=np.asarray(photometry[key], np.float32),
                weight=np.asarray(weights[key], np.float32),
                feather_px=feather_px,
                has_weight_map=bool(has_weight_maps[key]) if has_weight_maps is not None else False,
            )
        )
    return sources


@dataclass(frozen=True, kw_only=True)
class AssemblyOptions:
    """How images are assembled by their WCS.

    Attributes
    ----------
    rule : CombineRule
    kernel : {'bilinear', 'lanczos3'}
    corrections : mapping or sequence, optional
        ``(gain, offset)`` per image; win over `match_background`.
    match_background : bool
        Bring the offsets of overlapping images together.
    preview_size : int
        Blocks along the longer side of the largest image when overlaps are measured.
    weights : sequence of float, optional
        Weight of every image; None: 1.
    weight_maps : sequence of (ndarray (h, w) or None), optional
        Weight of every pixel of every image.
    budget_bytes : int
        Memory the blocks may take.
    threads : int
    """

    rule: CombineRule
    kernel: Kernel = "bilinear"
    corrections: _Corrections | None = None
    match_background: bool = False
    preview_size: int = 512
    weights: Sequence[float] | None = None
    weight_maps: Sequence[np.ndarray | None] | None = None
    budget_bytes: int = _BUDGET_BYTES
    threads: int = 2

    @staticmethod
    def from_names(names: Mapping[str, Any]) -> AssemblyOptions:
        """Read the options from the keywords of whole assemblies, of which several mean the same.

        ``combine_function`` and ``stack_reject_algo`` are ``mean``, ``median``, ``kappa_sigma``, ``winsorized`` or
        ``linear_fit_clip``; the latter wins unless it is None or ``none``, and a ``combine_function`` of ``median``
        then says how the rest is combined.

        Raises
        ------
        SettingsError
            When the name of a rule is unknown or a number out of range.
        """
        return AssemblyOptions(
            rule=_rule_by_name(
                names.get("combine_function"),
                names.get("stack_reject_algo"),
                kappa=float(names.get("coadd_k", names.get("kappa_sigma_k", 2.0))),
                winsor_limits=names.get("winsor_limits", (0.05, 0.05)),
            ),
            kernel=names.get("kernel", "bilinear"),
            corrections=names.get("tile_affine_corrections"),
            match_background=bool(names.get("match_background", names.get("match_bg", False))),
            preview_size=int(names.get("bg_preview_size", 512)),
            weights=names.get("tile_weights"),
            weight_maps=names.get("tile_weight_maps") or names.get("input_weights") or None,
            budget_bytes=int(names.get("budget_bytes") or names.get("max_chunk_bytes") or _BUDGET_BYTES),
            threads=int(names.get("threads", 2)),
        )


def check_names(names: Collection[str]) -> None:
    """Refuse keywords that no whole assembly has.

    Raises
    ------
    TypeError
    """
    unknown = set(names) - _NAMES - _UNUSED_NAMES
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; known are {sorted(_NAMES)}")


def _rule_by_name(
    combine: str | None, reject: str | None, *, kappa: float, winsor_limits: Sequence[float]
) -> CombineRule:
    name = reject if reject not in (None, "none") else combine or "mean"
    if name not in _COMBINE:
        raise SettingsError(
            "combine_rule_invalid",
            f"combine_function is {name!r}; allowed: {sorted(_COMBINE)}",
            field="combine_function",
            value=str(name),
            allowed=", ".join(sorted(_COMBINE)),
        )
    limits = (float(winsor_limits[0]), float(winsor_limits[1]))
    rule = replace(_COMBINE[name], kappa_low=kappa, kappa_high=kappa, winsor_limits=limits)
    if combine == "median":
        rule = replace(rule, combine="median")
    check_rule(rule)
    return rule


def prepare_assembly(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    options: AssemblyOptions,
) -> tuple[ArrayPixels, list[CoaddSource]]:
    """Place images on an output grid with the corrections and weights asked for: what a co-add needs.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
        At least one.
    wcs_list, out_wcs, out_shape_hw
        Where the images and the output grid lie.
    options : AssemblyOptions

    Returns
    -------
    tuple
        The pixels and the sources.

    Raises
    ------
    ValueError
        When images have different numbers of channels, or a weight map another shape than its image.
    """
    n_channels = images[0].shape[0]
    if any(image.shape[0] != n_channels for image in images):
        raise ValueError(f"images have different numbers of channels: {[len(image) for image in images]}")
    maps = [
        None if weights is None else np.asarray(weights, np.float32)
        for weights in options.weight_maps or [None] * len(images)
    ]
    weights = np.ones(len(images)) if options.weights is None else np.asarray(options.weights, np.float64)
    sources = place_images(
        [image.shape[1:] for image in images],
        wcs_list,
        out_wcs,
        out_shape_hw,
        _assembly_terms(images, wcs_list, out_wcs, out_shape_hw, options),
        np.repeat(weights[:, None], n_channels, axis=1),
        has_weight_maps=[weights is not None for weights in maps],
    )
    return ArrayPixels(images, maps), sources


def _assembly_terms(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    options: AssemblyOptions,
) -> np.ndarray:
    """Return the photometric terms (N, C, 4): given ones, offsets solved over all overlaps, or none."""
    given = options.corrections
    if given is None and options.match_background:
        wanted = TileOptions(fit_gain=False, fit_plane=False)
        return solve_overlaps(
            images, wcs_list, out_wcs, out_shape_hw, wanted,
            preview_size=options.preview_size, min_overlap_fraction=0.0,
        ).astype(np.float32)  # fmt: skip
    terms = np.zeros((len(images), images[0].shape[0], 4), np.float32)
    terms[..., 0] = 1
    if given is not None:
        for index, pair in given.items() if isinstance(given, Mapping) else enumerate(given):
            if pair is not None:
                terms[index, :, 0], terms[index, :, 1] = pair
    return terms
