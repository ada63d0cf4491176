"""Door to stacks: align the images of a group, stack them with rejection, normalisation and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from zemosaic_core.axes import to_chw, to_hwc
from zemosaic_core.block_rows import MAX_REFINE_ROWS
from zemosaic_core.chunks import Buffer, equal_chunks, iter_row_chunks
from zemosaic_core.coadd import CancelToken
from zemosaic_core.errors import Cancelled, SkipItem
from zemosaic_core.gpu.parity import compare_blocks
from zemosaic_core.gpu.refine import GpuRefine, compare_gathered
from zemosaic_core.gpu.stack import GpuStack
from zemosaic_core.gpu.terms import Audit
from zemosaic_core.image_stack import align_to, common_stack, find_stars, measure_weights, normalise_stack
from zemosaic_core.refine import RefineSource, SampleSource, gather_block, largest_source_px
from zemosaic_core.refine_rows import CoaddStore, RowsBeside, RowsInTurn, refine_buffers
from zemosaic_core.refine_structure import HALO_ROWS, Gathered
from zemosaic_core.rejection import combine_stack
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel, PixelSource, SampleNoise
from zemosaic_core.statistics import nan_percentile
from zemosaic_gpu_policy import GpuPolicy, default_policy
from zemosaic_utils import (
    AUDIT_ROWS,
    coadd_on_grid,
    gpu_memory_sufficient,
    make_radial_weight_map,
)

__all__ = [
    "align_images_in_group",
    "equalize_rgb_medians_inplace",
    "gpu_stack_kappa",
    "gpu_stack_linear",
    "gpu_stack_winsorized",
    "refine_on_grid",
    "stack_aligned_images",
    "stack_group",
    "stack_kappa_sigma_clip",
    "stack_linear_fit_clip",
    "stack_winsorized_sigma_clip",
]

Progress = Callable[..., object]

# Older callers steered the memory of the old stacker with these; the engine plans its own.
_OBSOLETE = {
    "apply_rewinsor", "winsor_auto_fallback_on_memory_error", "winsor_min_frames_per_pass", "winsor_memmap_fallback",
    "winsor_split_strategy", "progress_callback",
}  # fmt: skip
_BOUNDS = {"threads", "winsor_max_workers", "winsor_max_frames_per_pass"}


# ------------------------------------------------------------------------------------------------------- groups


def stack_group(
    pixels: PixelSource,
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    kernel: Kernel = "lanczos3",
    *,
    budget_bytes: int,
    policy: GpuPolicy | None = None,
    threads: int = 2,
    on_rows: Callable[[int, int], object] | None = None,
    cancel: CancelToken | None = None,
) -> CoaddBlock:
    """Stack a group of frames onto one grid and return the whole result; see `zemosaic_utils.coadd_on_grid`.

    For results that do not fit into memory give `coadd_on_grid` a sink that writes them away.

    Returns
    -------
    CoaddBlock
        All rows of the grid.
    """
    whole = CoaddBlock.blank((n_channels, *shape_hw))
    coadd_on_grid(
        pixels, sources, shape_hw, n_channels, rule, kernel, sink=whole.put, budget_bytes=budget_bytes, policy=policy,
        threads=threads, on_rows=on_rows, cancel=cancel, restart=lambda: None,
    )  # fmt: skip
    return whole


def refine_on_grid(
    pixels: SampleSource,
    sources: Sequence[RefineSource],
    shape_hw: tuple[int, int],
    store: CoaddStore,
    noise: SampleNoise,
    *,
    budget_bytes: int,
    scale: float = 1.0,
    policy: GpuPolicy | None = None,
    threads: int = 2,
    on_rows: Callable[[int, int], object] | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Add to a finished co-add what the untouched samples of its frames differ from it; see `zemosaic_core.refine`.

    Parameters
    ----------
    pixels : SampleSource
    sources : sequence of RefineSource
    shape_hw : tuple of int
        Height and width of the co-add.
    store : CoaddStore
        Where it lies; its rows are replaced in place, from the top.
    noise : SampleNoise
        What is known of the samples.
    budget_bytes : int
        Memory the blocks may take. The result does not depend on it.
    scale : float
        Output pixels per source pixel.
    policy, threads, on_rows, cancel
        As for `coadd_on_grid`.

    Raises
    ------
    Cancelled
        When `cancel` is set.
    """
    height, width = shape_hw
    n_channels = len(noise.variance)
    buffers = refine_buffers(n_channels, width, 4 * largest_source_px(sources), threads)
    blocks = list(iter_row_chunks(buffers, height, budget_bytes, halo=HALO_ROWS))
    tallest = min(MAX_REFINE_ROWS, max((y1 - y0 for y0, y1 in blocks), default=1))
    following: dict[tuple[int, int], tuple[int, int]] = {}
    scratch = Scratch()

    def cut(y0: int, y1: int) -> list[tuple[int, int]]:
        parts = list(equal_chunks(y0, y1, tallest))
        following.update(pairwise(parts))
        return parts

    with RowsBeside(RowsInTurn(store, sources, height, noise, scale)) as rows:

        def on_cpu(y0: int, y1: int) -> Gathered:
            block = rows.block(y0, y1)
            if (y0, y1) in following:
                rows.prepare(*following[y0, y1])
            return gather_block(
                pixels, sources, block.image, block.image_y0, block.mask, y0,
                scale=scale, threads=threads, cancel=cancel, scratch=scratch,
            )  # fmt: skip

        def emit(y0: int, y1: int, gathered: Gathered) -> None:
            rows.replace(y0, y1, gathered)
            if on_rows is not None:
                on_rows(y1, height)

        if policy is None:
            for y0, y1 in cut(0, height):
                if cancel is not None and cancel.is_set():
                    raise Cancelled()
                emit(y0, y1, on_cpu(y0, y1))
            return
        body = GpuRefine(
            pixels, sources, rows, width, n_channels, scale=scale, threads=threads, cancel=cancel
        )
        with closing(body):
            policy.run(
                body.workload("refine", height, policy.status.device), body, on_cpu, emit=emit,
                cpu_rows=cut, cancel=cancel, audit=Audit(AUDIT_ROWS, compare_gathered),
            )  # fmt: skip


def align_images_in_group(
    image_data_list: Sequence[np.ndarray],
    reference_image_index: int = 0,
    detection_sigma: float = 3.0,
    min_area: int = 5,
    propagate_mask: bool = True,
    progress_callback: Progress | None = None,
) -> tuple[list[np.ndarray | None], list[int]]:
    """Resample the images of a group onto the pixels of one of them by their common stars.

    Parameters
    ----------
    image_data_list : sequence of ndarray, shape (h, w) or (h, w, C)
    reference_image_index : int
    detection_sigma : float
        Detection limit of stars.
    min_area : int
        Accepted for the call form; what is a star is judged by its shape.
    propagate_mask : bool
        True: pixels an image does not cover are NaN. False: they are 0, which a later mean will see.
    progress_callback : callable, optional
        Called with ``("align_images", done, total)``, and with ``("align_image_failed", None, "WARN", ...)``.

    Returns
    -------
    tuple
        Aligned images in the order given, None for those that failed, and the numbers of those.

    Raises
    ------
    ValueError
        When there is no image or the reference does not exist.
    """
    if not -len(image_data_list) <= reference_image_index < len(image_data_list):
        raise ValueError(f"no reference {reference_image_index} among {len(image_data_list)} images")
    reference_index = reference_image_index % len(image_data_list)
    reference = to_chw(image_data_list[reference_index])
    reference_stars = find_stars(reference, detection_sigma)
    aligned: list[np.ndarray | None] = []
    failed: list[int] = []
    for index, image in enumerate(image_data_list):
        try:
            planes = to_chw(image)
            if index != reference_index:
                stars = find_stars(planes, detection_sigma)
                planes = align_to(reference_stars, planes, reference.shape[1:], stars)
        except SkipItem as skip:
            aligned.append(None)
            failed.append(index)
            if progress_callback is not None:
                progress_callback("align_image_failed", None, "WARN", index=index, reason=str(skip))
            continue
        if not propagate_mask:
            planes = np.nan_to_num(planes, nan=0.0)
        aligned.append(to_hwc(planes, flat=np.ndim(image) == 2))
        if progress_callback is not None:
            progress_callback("align_images", index + 1, len(image_data_list))
    return aligned, failed


# ------------------------------------------------------------------------------------------------------- stacks


def _split_weights(weights: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Sort given weights into numbers (N,) or (N, C) and maps (N, h, w)."""
    if weights is None:
        return None, None
    n, n_channels, height, width = shape
    array = np.asarray(weights, dtype=np.float32)
    if array.shape in ((n, 1, 1, 1), (n, 1, 1, n_channels)):
        array = array[:, 0, 0, :]
    if array.shape == (n, 1):
        array = array[:, 0]
    if array.shape in ((n,), (n, n_channels)):
        return array, None
    if array.shape == (n, height, width, 1):
        array = array[..., 0]
    if array.shape == (n, height, width):
        return None, array
    raise ValueError(
        f"weights of shape {array.shape} do not belong to {n} images of {height} x {width} with {n_channels} "
        f"channels; give ({n},), ({n}, {n_channels}) or ({n}, {height}, {width})"
    )


def _stack_with(
    frames: Sequence[np.ndarray], rule: CombineRule, weights: Any, weight_method: str, options: dict[str, Any]
) -> tuple[np.ndarray, float]:
    unknown = set(options) - _OBSOLETE - _BOUNDS - {"policy"}
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}")
    stack, flat = common_stack(frames)
    numbers, maps = _split_weights(weights, stack.shape)
    if weights is None and weight_method != "none":
        numbers = measure_weights(stack, np.ones(stack.shape[:2]), weight_method)
    threads = int(options.get("threads") or options.get("winsor_max_workers") or 2)
    frames_per_pass = int(options.get("winsor_max_frames_per_pass") or 0)
    combined = _combine(stack, rule, numbers, maps, threads, options.get("policy"), frames_per_pass)
    rejected = int(combined.rejected_low.sum(dtype=np.int64) + combined.rejected_high.sum(dtype=np.int64))
    valid = int(np.isfinite(stack).sum())
    return to_hwc(combined.image, flat=flat), 100.0 * rejected / valid if valid else 0.0


def _combine(
    stack: np.ndarray,
    rule: CombineRule,
    weights: np.ndarray | None,
    maps: np.ndarray | None,
    threads: int,
    policy: GpuPolicy | None,
    frames_per_pass: int = 0,
) -> CoaddBlock:
    """Combine a stack on the CPU, or where a policy says, in passes over rows with the samples of so many images."""
    n, _, height, _ = stack.shape
    rows = max(1, height * frames_per_pass // n) if frames_per_pass else height

    def on_cpu(y0: int, y1: int) -> CoaddBlock:
        part = None if maps is None else maps[:, y0:y1]
        return combine_stack(stack[:, :, y0:y1], rule, weights=weights, weight_maps=part, threads=threads)

    if policy is None:
        return CoaddBlock.joined([on_cpu(y0, y1) for y0, y1 in equal_chunks(0, height, rows)])
    body = GpuStack(stack, rule, weights=weights, weight_maps=maps, threads=threads)
    blocks: list[CoaddBlock] = []
    policy.run(
        replace(body.workload("stack", policy.status.device), host_rows=rows), body, on_cpu, cpu_rows=rows,
        emit=lambda y0, y1, block: blocks.append(block), audit=Audit(1, compare_blocks), staging=body,
        restart=blocks.clear,
    )  # fmt: skip
    return CoaddBlock.joined(blocks)


def stack_winsorized_sigma_clip(
    frames: Sequence[np.ndarray],
    weights: Any = None,
    weight_method: str = "none",
    zconfig: Any = None,
    stack_metadata: Any = None,
    *,
    kappa: float = 3.0,
    winsor_limits: tuple[float, float] = (0.05, 0.05),
    **options: Any,
) -> tuple[np.ndarray, float]:
    """Stack registered images with winsorized sigma clipping; see `zemosaic_core.rejection`.

    Parameters
    ----------
    frames : sequence of ndarray, all (h, w) or all (h, w, C)
        NaN: missing.
    weights : array, optional
        (N,), (N, C), (N, 1, 1, C) or (N, h, w).
    weight_method : {'none', 'noise_variance', 'noise_fwhm'}
        Used when no weights are given.
    zconfig, stack_metadata
        Accepted for the call form.
    kappa : float
        Bounds below and above in sigma.
    winsor_limits : tuple of float
        Fractions pulled in for the first estimate of the scale.
    **options
        ``threads`` (or ``winsor_max_workers``); ``winsor_max_frames_per_pass``: work on so few rows at a time that
        they hold no more samples than so many images; the result depends on neither. Other memory options of older
        callers are accepted and not needed.

    Returns
    -------
    tuple
        Mean of the kept samples, float32, NaN where none; and the percentage of samples rejected.

    Raises
    ------
    SettingsError
        For numbers out of range.
    ValueError
        When shapes disagree.
    """
    rule = CombineRule(
        "winsorized_sigma_clip", kappa, kappa, (float(winsor_limits[0]), float(winsor_limits[1]))
    )
    return _stack_with(frames, rule, weights, weight_method, options)


def stack_kappa_sigma_clip(
    frames: Sequence[np.ndarray],
    weights: Any = None,
    weight_method: str = "none",
    zconfig: Any = None,
    stack_metadata: Any = None,
    *,
    sigma_low: float = 3.0,
    sigma_high: float = 3.0,
    **options: Any,
) -> tuple[np.ndarray, float]:
    """Stack registered images with kappa-sigma clipping; parameters as in `stack_winsorized_sigma_clip`."""
    return _stack_with(
        frames, CombineRule("kappa_sigma", sigma_low, sigma_high), weights, weight_method, options
    )


def stack_linear_fit_clip(
    frames: Sequence[np.ndarray],
    weights: Any = None,
    weight_method: str = "none",
    zconfig: Any = None,
    stack_metadata: Any = None,
    *,
    sigma: float = 3.0,
    **options: Any,
) -> tuple[np.ndarray, float]:
    """Stack registered images with linear fit clipping; parameters as in `stack_winsorized_sigma_clip`."""
    return _stack_with(frames, CombineRule("linear_fit_clip", sigma, sigma), weights, weight_method, options)


def gpu_stack_winsorized(
    frames: Sequence[np.ndarray], weights: Any = None, weight_method: str = "none", **options: Any
) -> tuple[np.ndarray, float]:
    """Do `stack_winsorized_sigma_clip` on the GPU when that is possible; further option: ``policy``."""
    options["policy"] = options.get("policy") or default_policy()
    return stack_winsorized_sigma_clip(frames, weights, weight_method, **options)


def gpu_stack_kappa(
    frames: Sequence[np.ndarray], weights: Any = None, weight_method: str = "none", **options: Any
) -> tuple[np.ndarray, float]:
    """Do `stack_kappa_sigma_clip` on the GPU when that is possible; further option: ``policy``."""
    options["policy"] = options.get("policy") or default_policy()
    return stack_kappa_sigma_clip(frames, weights, weight_method, **options)


def gpu_stack_linear(
    frames: Sequence[np.ndarray], weights: Any = None, weight_method: str = "none", **options: Any
) -> tuple[np.ndarray, float]:
    """Do `stack_linear_fit_clip` on the GPU when that is possible; further option: ``policy``."""
    options["policy"] = options.get("policy") or default_policy()
    return stack_linear_fit_clip(frames, weights, weight_method, **options)


def _gpu_nanpercentile(
    values: np.ndarray, percentiles: Any, *, policy: GpuPolicy | None = None
) -> np.ndarray:
    """Return percentiles of the finite values of an array, as `numpy.nanpercentile` has them; NaN without any."""
    return np.array(nan_percentile(values, tuple(map(float, np.atleast_1d(percentiles)))))


def _has_gpu_budget(estimated_bytes: int) -> bool:
    """Return whether the card has room for this many bytes; False without a card."""
    return gpu_memory_sufficient(estimated_bytes, 0.9)


def stack_aligned_images(
    aligned: Sequence[np.ndarray | None],
    normalize_method: str = "none",
    weighting_method: str = "none",
    rejection_algorithm: str = "kappa_sigma",
    final_combine_method: str = "mean",
    sigma_clip_low: float = 3.0,
    sigma_clip_high: float = 3.0,
    winsor_limits: tuple[float, float] = (0.05, 0.05),
    minimum_signal_adu_target: float = 0.0,
    apply_radial_weight: bool = False,
    radial_feather_fraction: float = 0.8,
    radial_shape_power: float = 2.0,
    winsor_max_workers: int = 2,
    progress_callback: Progress | None = None,
    zconfig: Any = None,
    stack_metadata: Any = None,
    *,
    winsor_max_frames_per_pass: int = 0,
    use_gpu: bool = False,
    policy: GpuPolicy | None = None,
) -> np.ndarray:
    """Normalise, weigh, reject and combine registered images.

    Parameters
    ----------
    aligned : sequence of ndarray, all (h, w) or all (h, w, C), or None
        None entries (images that could not be aligned) are left out; NaN: missing.
    normalize_method : {'none', 'linear_fit', 'sky_mean'}
        Brings all images to the first one.
    weighting_method : {'none', 'noise_variance', 'noise_fwhm'}
    rejection_algorithm : {'none', 'kappa_sigma', 'winsorized_sigma_clip', 'linear_fit_clip'}
    final_combine_method : {'mean', 'median'}
    sigma_clip_low, sigma_clip_high : float
    winsor_limits : tuple of float
    minimum_signal_adu_target : float
        When positive, a constant is added that lifts the smallest value to it.
    apply_radial_weight : bool
        Let the corners of every image count less, see `make_radial_weight_map`.
    radial_feather_fraction, radial_shape_power : float
    winsor_max_workers : int
        Threads.
    winsor_max_frames_per_pass : int
        Work on so few rows at a time that they hold no more samples than so many images; 0: no such limit.
    use_gpu : bool
        Combine on the GPU when that is possible.
    policy : GpuPolicy, optional
        Decides about that; with ``use_gpu`` the process's own when none is given.
    progress_callback : callable, optional
        Called with ``("stack_images", done, total)``.
    zconfig, stack_metadata
        Accepted for the call form.

    Returns
    -------
    ndarray, shape (h, w) or (h, w, C), float32
        NaN where no image has a sample.

    Raises
    ------
    SettingsError
        For an unknown method or numbers out of range.
    ValueError
        When there is no image or shapes differ.
    """
    images = [image for image in aligned if image is not None]
    if not images:
        raise ValueError("there is no image to stack; all of them are None or the list is empty")
    rule = CombineRule(
        rejection_algorithm, sigma_clip_low, sigma_clip_high,
        (float(winsor_limits[0]), float(winsor_limits[1])), final_combine_method,
    )  # fmt: skip
    stack, flat = common_stack(images)
    terms = normalise_stack(stack, normalize_method)
    weights = measure_weights(stack, terms[..., 0], weighting_method)
    if normalize_method != "none":
        stack *= terms[..., 0, None, None].astype(np.float32)
        stack += terms[..., 1, None, None].astype(np.float32)
    maps = None
    if apply_radial_weight:
        radial = make_radial_weight_map(*stack.shape[2:], radial_feather_fraction, radial_shape_power)
        maps = np.repeat(radial[None], len(stack), axis=0)
    # Asked for by the caller alone; to override, ZEMOSAIC_GPU=off or a policy.
    decider = policy or (default_policy() if use_gpu else None)
    threads = max(1, winsor_max_workers)
    combined = _combine(stack, rule, weights, maps, threads, decider, winsor_max_frames_per_pass)
    image = combined.image
    if minimum_signal_adu_target > 0 and np.isfinite(image).any():
        image = image + np.float32(max(0.0, minimum_signal_adu_target - float(np.nanmin(image))))
    if progress_callback is not None:
        progress_callback("stack_images", len(images), len(images))
    return to_hwc(image, flat=flat)


def equalize_rgb_medians_inplace(
    img: np.ndarray, *, gain_clip: tuple[float, float] | None = None
) -> tuple[float, float, float, float]:
    """Scale the channels of an image so that their medians agree.

    Parameters
    ----------
    img : ndarray, shape (h, w, 3), float32
        Changed in place; NaN: missing.
    gain_clip : tuple of float, optional
        Limits of the gains.

    Returns
    -------
    tuple of float
        Gains of red, green and blue, and the common median (the median of the three).

    Raises
    ------
    ValueError
        When the image has not three channels. A channel whose median is not positive keeps gain 1.
    """
    if img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(f"an image with three channels is needed, got shape {img.shape}")
    medians = np.array(
        [
            np.median(plane[np.isfinite(plane)]) if np.isfinite(plane).any() else np.nan
            for plane in np.moveaxis(img, -1, 0)
        ]
    )
    good = np.isfinite(medians) & (medians > 0)
    target = float(np.median(medians[good])) if good.any() else float("nan")
    gains = np.ones(3)
    gains[good] = target / medians[good]
    if gain_clip is not None:
        gains = np.clip(gains, *gain_clip)
    img *= gains.astype(img.dtype)
    return float(gains[0]), float(gains[1]), float(gains[2]), target


def _iter_row_chunks(
    total_rows: int, frames: int, width: int, itemsize: int, max_chunk_bytes: int = 256 << 20
) -> Iterator[slice]:
    """Cut rows into slices of equal size whose stack of ``frames`` images fits ``max_chunk_bytes``."""
    buffers = (Buffer("stack", per_row=frames * width * itemsize),)
    for y0, y1 in iter_row_chunks(buffers, total_rows, max_chunk_bytes):
        yield slice(y0, y1)
