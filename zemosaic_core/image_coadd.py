"""Co-add images that are already in memory, placed by their WCS: the bridge from arrays to the block engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox, wcs_transform
from zemosaic_core.rejection import check_rule
from zemosaic_core.resample import sample_window
from zemosaic_core.sources import CoaddSource, CombineRule
from zemosaic_core.tile_photometry import OverlapSamples, TileOptions, solve_tiles

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "ArrayPixels",
    "assembly_terms",
    "block_means",
    "overlap_samples",
    "place_images",
    "rule_by_name",
    "to_chw",
]

_COMBINE = {
    "mean": CombineRule(rejection="none"),
    "median": CombineRule(rejection="none", combine="median"),
    "kappa_sigma": CombineRule(rejection="kappa_sigma"),
    "winsorized": CombineRule(rejection="winsorized_sigma_clip"),
    "winsorized_sigma_clip": CombineRule(rejection="winsorized_sigma_clip"),
    "linear_fit_clip": CombineRule(rejection="linear_fit_clip"),
}


def to_chw(image: np.ndarray) -> np.ndarray:
    """Return an (h, w) or (h, w, C) image as (C, h, w) float32, C-contiguous.

    Raises
    ------
    ValueError
        When the image has another number of dimensions.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        return np.ascontiguousarray(image[None], dtype=np.float32)
    if image.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float32)
    raise ValueError(f"an image must be (h, w) or (h, w, C), got shape {image.shape}")


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


def rule_by_name(
    combine: str | None, reject: str | None, *, kappa: float, winsor_limits: Sequence[float]
) -> CombineRule:
    """Make a rule from the names used for whole assemblies.

    Parameters
    ----------
    combine, reject : str or None
        ``mean``, ``median``, ``kappa_sigma``, ``winsorized``, ``linear_fit_clip``; `reject` wins unless it is
        None or ``none``, and `combine` ``median`` then says how the rest is combined.
    kappa : float
        Bounds below and above in sigma.
    winsor_limits : sequence of two floats

    Raises
    ------
    SettingsError
        When a name is unknown or a number out of range.
    """
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


def assembly_terms(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    *,
    corrections: Mapping[int, tuple[float, float]] | Sequence[tuple[float, float] | None] | None = None,
    match_background: bool = False,
    preview_size: int = 512,
) -> np.ndarray:
    """Return the photometric terms (N, C, 4) of images: given ones, offsets solved over all overlaps, or none.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
    corrections : mapping or sequence, optional
        ``(gain, offset)`` per image; win over `match_background`.
    match_background : bool
        Bring the offsets of overlapping images together.
    preview_size : int
        See `overlap_samples`.
    """
    terms = np.zeros((len(images), images[0].shape[0], 4), np.float32)
    terms[..., 0] = 1
    if corrections is not None:
        for index, pair in (
            corrections.items() if isinstance(corrections, Mapping) else enumerate(corrections)
        ):
            if pair is not None:
                terms[index, :, 0], terms[index, :, 1] = pair[0], pair[1]
    elif match_background:
        pairs = overlap_samples(
            images, wcs_list, out_wcs, out_shape_hw, preview_size=preview_size, min_overlap_fraction=0.0
        )
        wanted = TileOptions(fit_gain=False, fit_plane=False)
        terms[...] = solve_tiles(len(images), pairs, images[0].shape[0], options=wanted).terms
    return terms


def block_means(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor x factor`` px; an incomplete or partly missing block is missing.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
    factor : int

    Returns
    -------
    ndarray, shape (C, h // factor, w // factor), float32
        Block (y, x) is centred at ``factor * y + (factor - 1) / 2``.
    """
    n_channels, height, width = image.shape
    rows, columns = height // factor, width // factor
    blocks = image[:, : rows * factor, : columns * factor].reshape(n_channels, rows, factor, columns, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float64).astype(np.float32)


def overlap_samples(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    *,
    preview_size: int = 512,
    min_overlap_fraction: float = 0.05,
    min_samples: int = 16,
) -> list[OverlapSamples]:
    """Measure all pairs of images on a common coarse lattice of the output grid.

    Every image is averaged in blocks so that its longer side has at most `preview_size` of them, and each output
    lattice point takes the value of the blocks around it: one read per image, however many overlaps it has.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
    wcs_list, out_wcs, out_shape_hw
        Where the images and the output grid lie.
    preview_size : int
        Blocks along the longer side of the largest image, >= 8.
    min_overlap_fraction : float
        Smallest overlap as a fraction of the smaller image's area.
    min_samples : int
        Smallest number of common lattice points.

    Returns
    -------
    list of OverlapSamples
    """
    if preview_size < 8:
        raise ValueError(f"preview_size must be at least 8, got {preview_size}")
    if not images:
        return []
    factor = max(1, max(-(-max(image.shape[1:]) // preview_size) for image in images))
    lattice_hw = (-(-out_shape_hw[0] // factor), -(-out_shape_hw[1] // factor))
    views = [
        _view(image, wcs, out_wcs, factor, lattice_hw) for image, wcs in zip(images, wcs_list, strict=True)
    ]
    pairs = []
    for i in range(len(views)):
        for j in range(i + 1, len(views)):
            pair = _compare(i, j, views, min_overlap_fraction, min_samples)
            if pair is not None:
                pairs.append(pair)
    return pairs


class _View:
    """An image on the coarse lattice: values inside a box and the image's own coordinates there."""

    def __init__(self, box, values, u, t) -> None:
        self.box, self.values, self.u, self.t = box, values, u, t
        self.valid = np.isfinite(values).all(axis=0)


def _view(image, wcs, out_wcs, factor, lattice_hw) -> _View | None:
    half = (factor - 1) / 2
    to_image = wcs_transform(out_wcs, wcs)
    to_out = wcs_transform(wcs, out_wcs)

    def to_blocks(x, y):
        sx, sy = to_image(x * factor + half, y * factor + half)
        return (sx - half) / factor, (sy - half) / factor

    def from_image(x, y):
        ox, oy = to_out(x, y)
        return (ox - half) / factor, (oy - half) / factor

    box = footprint_bbox(from_image, image.shape[1:], lattice_hw)
    if box[1] <= box[0]:
        return None
    blocks = block_means(image, factor)
    if min(blocks.shape[1:]) < 2:
        return None
    try:
        pixel_map = build_pixel_map(to_blocks, box, max_error_px=0.05)
    except RunFailed as error:
        if error.key == "pixel_map_undefined":
            return None
        raise
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (blocks.shape[0], 1))
    values, _ = sample_window(blocks, (0, 0), blocks.shape[1:], pixel_map, box, "bilinear", terms)
    y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
    sx, sy = to_image(x * factor + half, y * factor + half)
    height, width = image.shape[1:]
    return _View(box, values, 2 * sx / max(1, width - 1) - 1, 2 * sy / max(1, height - 1) - 1)


def _compare(i, j, views, min_overlap_fraction, min_samples) -> OverlapSamples | None:
    a, b = views[i], views[j]
    if a is None or b is None:
        return None
    y0, y1 = max(a.box[0], b.box[0]), min(a.box[1], b.box[1])
    x0, x1 = max(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    if y1 <= y0 or x1 <= x0:
        return None
    cut_a = (slice(y0 - a.box[0], y1 - a.box[0]), slice(x0 - a.box[2], x1 - a.box[2]))
    cut_b = (slice(y0 - b.box[0], y1 - b.box[0]), slice(x0 - b.box[2], x1 - b.box[2]))
    both = a.valid[cut_a] & b.valid[cut_b]
    count = int(both.sum())
    smaller = min(int(a.valid.sum()), int(b.valid.sum()))
    if count < min_samples or count < min_overlap_fraction * smaller:
        return None
    return OverlapSamples(
        i, j,
        np.stack([a.u[cut_a][both], a.t[cut_a][both]], axis=1),
        np.stack([b.u[cut_b][both], b.t[cut_b][both]], axis=1),
        a.values[:, *cut_a][:, both].astype(np.float64),
        b.values[:, *cut_b][:, both].astype(np.float64),
        np.ones(count),
    )  # fmt: skip
