"""Door to images: files in and out, single-image tools, co-adding on a grid and assembling by WCS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core import background, cfa, hot_pixels, stretch
from zemosaic_core import weights as weight_maps
from zemosaic_core.axes import to_chw, to_hwc
from zemosaic_core.block_rows import LATTICE_ROWS, MAX_BLOCK_ROWS, processor_blocks
from zemosaic_core.coadd import (
    CancelToken,
    check_streaming,
    coadd_block,
    rows_per_pass,
)
from zemosaic_core.coverage import crop_sides
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu.coadd import GpuCoadd
from zemosaic_core.gpu.parity import compare_blocks
from zemosaic_core.gpu.terms import Audit
from zemosaic_core.handing_on import HandingOn
from zemosaic_core.image_coadd import AssemblyOptions, check_names, prepare_assembly
from zemosaic_core.image_overlaps import solve_overlaps
from zemosaic_core.rejection import check_rule
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel, PixelSource
from zemosaic_core.statistics import nan_percentile
from zemosaic_core.tile_photometry import TileOptions
from zemosaic_gpu_policy import (
    GpuPolicy,
    default_policy,
    gpu_is_available,
    gpu_memory_sufficient,
    release_defaults,
)
from zemosaic_io import image_files

__all__ = [
    "GPU_AVAILABLE",  # noqa: F822 - answered by __getattr__
    "coadd_incremental",
    "coadd_on_grid",
    "compute_intertile_affine_calibration",
    "crop_image_and_wcs",
    "debayer_image",
    "detect_and_correct_hot_pixels",
    "detect_and_correct_hot_pixels_gpu",
    "ensure_cupy_pool_initialized",
    "estimate_background_map",
    "estimate_background_map_gpu",
    "free_cupy_memory_pools",
    "gpu_assemble_final_mosaic_incremental",
    "gpu_assemble_final_mosaic_reproject_coadd",
    "gpu_is_available",
    "gpu_memory_sufficient",
    "gpu_reproject_and_coadd",
    "load_and_validate_fits",
    "make_radial_weight_map",
    "reproject_and_coadd_wrapper",
    "save_fits_image",
    "stretch_auto_asifits_like",
    "stretch_auto_asifits_like_gpu",
    "validate_wcs_header",
]

# Rows of a block of the card that are done again on the CPU now and then.
AUDIT_ROWS = 1

Progress = Callable[..., object]
Sink = Callable[[int, int, CoaddBlock], object]


# ------------------------------------------------------------------------------------------- the card, in short


def __getattr__(name: str) -> bool:
    if name == "GPU_AVAILABLE":  # asked for when it is used, not when this module is imported
        return gpu_is_available()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def ensure_cupy_pool_initialized(device_id: int | None = None) -> None:
    """Open the card of this process, if there is one, and make it current in this thread; may be repeated."""
    default_policy("" if device_id is None else str(device_id)).bind()


def free_cupy_memory_pools() -> None:
    """Give memory of the card that this process holds without using it back to everybody."""
    release_defaults("free_cupy_memory_pools")


# ---------------------------------------------------------------------------------------------- co-add on a grid


def coadd_on_grid(
    pixels: PixelSource,
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    kernel: Kernel,
    *,
    sink: Sink,
    budget_bytes: int,
    policy: GpuPolicy | None = None,
    op: str = "stack",
    threads: int = 2,
    max_frames_per_pass: int = 0,
    on_rows: Callable[[int, int], object] | None = None,
    cancel: CancelToken | None = None,
    first_row: int = 0,
    lattice_row: int = 0,
    restart: Callable[[], object] | None = None,
) -> None:
    """Co-add sources on an output grid, block of rows by block of rows.

    Parameters
    ----------
    pixels : PixelSource
    sources : sequence of CoaddSource
    shape_hw : tuple of int
        Height and width of the output grid.
    n_channels : int
    rule : CombineRule
    kernel : {'bilinear', 'lanczos3'}
    sink : callable
        ``sink(y0, y1, block)``, called once per block in order of rows, from a thread of its own while the next
        block is computed; the block is not used afterwards.
    budget_bytes : int
        Memory the blocks may take. A budget too small for one row is exceeded, not refused.
    policy : GpuPolicy, optional
        Decides where blocks are computed, and checks some of them; None: on the CPU.
    op : {'stack', 'assemble'}
        Name of the work in the policy's records.
    threads : int
        CPU threads; the result does not depend on it, nor on the budget.
    max_frames_per_pass : int
        A block holds at most the samples of so many whole sources; 0: no such limit. The result does not depend on
        it.
    on_rows : callable, optional
        ``on_rows(done, total)`` after every block, which `sink` may still be at work on.
    cancel : CancelToken, optional
        Asked before every block and source.
    first_row : int
        Rows above it are there already and are not computed.
    lattice_row : int
        Blocks begin at multiples of `LATTICE_ROWS` from this row where memory allows; it may lie outside the grid.
    restart : callable, optional
        Called when the card turns out to compute wrongly: what `sink` got does not count, and it gets all blocks
        once more from the first row on. Without it, blocks that were handed on stay, and the rest comes from the
        CPU.

    Raises
    ------
    Cancelled
        When `cancel` is set.
    SettingsError
        When the rule or the kernel is invalid.
    """
    check_rule(rule)
    height, width = shape_hw
    lattice: dict[str, Any] = {"start": first_row, "lattice_rows": LATTICE_ROWS, "origin": lattice_row}
    most_rows = min(MAX_BLOCK_ROWS, rows_per_pass(sources, max_frames_per_pass))
    cpu_blocks = processor_blocks(
        sources, shape_hw, n_channels, rule, budget_bytes,
        threads=threads, most_rows=most_rows, lattice_row=lattice_row,
    )  # fmt: skip
    scratch = Scratch()

    def on_cpu(y0: int, y1: int) -> CoaddBlock:
        return coadd_block(
            pixels, sources, y0, y1, width, n_channels, rule, kernel,
            threads=threads, cancel=cancel, scratch=scratch,
        )  # fmt: skip

    with HandingOn(sink) as hand_on:

        def emit(y0: int, y1: int, block: CoaddBlock) -> None:
            hand_on(y0, y1, block)
            if on_rows is not None:
                on_rows(y1, height)

        def begin_again() -> None:
            hand_on.wait()
            if restart is not None:
                restart()

        if policy is None:
            for y0, y1 in cpu_blocks(first_row, height):
                if cancel is not None and cancel.is_set():
                    raise Cancelled()
                emit(y0, y1, on_cpu(y0, y1))
            return
        body = GpuCoadd(
            pixels, sources, width, n_channels, rule, kernel,
            threads=threads, host_bytes=max(1, budget_bytes // 2), cancel=cancel,
            most_rows=most_rows if max_frames_per_pass else 0,
        )  # fmt: skip
        with closing(body):
            policy.run(
                body.workload(op, height, policy.status.device, **lattice), body, on_cpu, emit=emit,
                cpu_rows=cpu_blocks, cancel=cancel, audit=Audit(AUDIT_ROWS, compare_blocks), ahead=body,
                staging=body, restart=None if restart is None else begin_again,
            )  # fmt: skip


def coadd_incremental(
    pixels: PixelSource,
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    kernel: Kernel,
    **options: Any,
) -> None:
    """Co-add by adding source after source to running sums: no stack, the least memory, a weighted mean only.

    Parameters and options are those of `coadd_on_grid`.

    Raises
    ------
    SettingsError
        When the rule rejects samples or takes a median: sums cannot do that.
    """
    check_streaming(rule)
    coadd_on_grid(pixels, sources, shape_hw, n_channels, rule, kernel, **options)


# ------------------------------------------------------------------------------------------- assembling by WCS


def reproject_and_coadd_wrapper(
    data_list: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    shape_out: tuple[int, int],
    use_gpu: bool = False,
    cpu_func: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None,
    allow_cpu_fallback: bool = True,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Reproject images onto one grid and combine them.

    Parameters
    ----------
    data_list : sequence of ndarray, shape (h, w) or (h, w, C)
        NaN: missing.
    wcs_list : sequence of WCS
    shape_out : tuple of int
        Height and width of the result.
    use_gpu, allow_cpu_fallback : bool
        Whether a GPU is wanted, and whether the CPU may do the work when there is none.
    cpu_func : callable, optional
        Used on the CPU instead of the engine, called like ``reproject.mosaicking.reproject_and_coadd`` with the
        options it knows.
    **options
        ``output_projection`` (WCS or header, required); ``combine_function`` or ``stack_reject_algo``: mean,
        median, kappa_sigma, winsorized, linear_fit_clip; ``coadd_k`` (or ``kappa_sigma_k``, 2.0);
        ``winsor_limits``; ``match_background``: bring offsets together over all overlaps;
        ``tile_affine_corrections``: ``(gain, offset)`` per image; ``tile_weights``: number per image;
        ``input_weights`` or ``tile_weight_maps``: (h, w) per image or None; ``kernel`` (bilinear);
        ``budget_bytes`` (or ``max_chunk_bytes``); ``threads``; ``policy``; ``cancel``; ``progress_callback``,
        called with ``("phase5_rows", done, total)``.

    Returns
    -------
    tuple of ndarray
        Mosaic (h, w) or (h, w, C) float32, NaN where nothing is, and coverage (h, w) float32, the sum of the
        weights (the number of images where all weigh 1).

    Raises
    ------
    SettingsError
        For an unknown combination.
    TypeError
        For an unknown option.
    ValueError
        When lists do not match.
    """
    check_names(options)
    if len(data_list) != len(wcs_list) or "output_projection" not in options:
        raise ValueError(
            f"{len(data_list)} images, {len(wcs_list)} WCS; output_projection "
            f"{'given' if 'output_projection' in options else 'missing'}: all three are needed"
        )
    if cpu_func is not None and not use_gpu:
        known = ("output_projection", "combine_function", "match_background", "input_weights")
        passed = {name: options[name] for name in known if options.get(name) is not None}
        return cpu_func(list(zip(data_list, wcs_list, strict=True)), shape_out=shape_out, **passed)
    policy = options.get("policy")
    if policy is None and use_gpu:
        policy = default_policy(mode="auto" if allow_cpu_fallback else "require")
    return _assemble(data_list, wcs_list, shape_out, {**options, "policy": policy})


def gpu_reproject_and_coadd(
    data_list: Sequence[np.ndarray], wcs_list: Sequence[WCS], shape_out: tuple[int, int], **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Do `reproject_and_coadd_wrapper` on the GPU when that is possible."""
    return reproject_and_coadd_wrapper(data_list, wcs_list, shape_out, use_gpu=True, **options)


def gpu_assemble_final_mosaic_reproject_coadd(
    data_list: Sequence[np.ndarray], wcs_list: Sequence[WCS], shape_out: tuple[int, int], **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Assemble tiles with any combination rule: `reproject_and_coadd_wrapper`, on the GPU when possible."""
    return reproject_and_coadd_wrapper(data_list, wcs_list, shape_out, use_gpu=True, **options)


def gpu_assemble_final_mosaic_incremental(
    data_list: Sequence[np.ndarray], wcs_list: Sequence[WCS], shape_out: tuple[int, int], **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Assemble tiles by running sums, a weighted mean: `reproject_and_coadd_wrapper`, on the GPU when possible.

    Raises
    ------
    SettingsError
        When the options ask for rejection or a median.
    """
    check_streaming(AssemblyOptions.from_names(options).rule)
    return reproject_and_coadd_wrapper(data_list, wcs_list, shape_out, use_gpu=True, **options)


def _assemble(
    data_list: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    shape_out: tuple[int, int],
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    wanted = AssemblyOptions.from_names(options)
    shape_hw = (int(shape_out[0]), int(shape_out[1]))
    images = [to_chw(image) for image in data_list]
    if not images:
        return np.full(shape_hw, np.nan, np.float32), np.zeros(shape_hw, np.float32)
    projection = options["output_projection"]
    out_wcs = projection if isinstance(projection, WCS) else WCS(projection, naxis=2)
    pixels, sources = prepare_assembly(images, wcs_list, out_wcs, shape_hw, wanted)
    n_channels = len(images[0])
    mosaic = np.empty((*shape_hw, n_channels), np.float32)
    coverage = np.empty(shape_hw, np.float32)

    def sink(y0: int, y1: int, block: CoaddBlock) -> None:
        mosaic[y0:y1] = np.moveaxis(block.image, 0, -1)
        coverage[y0:y1] = block.weight.max(axis=0)

    progress = options.get("progress_callback")
    coadd_on_grid(
        pixels, sources, shape_hw, n_channels, wanted.rule, wanted.kernel,
        sink=sink, budget_bytes=wanted.budget_bytes, threads=wanted.threads,
        policy=options.get("policy"), op="assemble", cancel=options.get("cancel"), restart=lambda: None,
        on_rows=None if progress is None else lambda done, total: progress("phase5_rows", done, total),
    )  # fmt: skip
    return (mosaic[..., 0] if np.ndim(data_list[0]) == 2 else mosaic), coverage


def compute_intertile_affine_calibration(
    tile_data_with_wcs: Sequence[tuple[np.ndarray, WCS]],
    final_wcs: WCS,
    final_shape_hw: tuple[int, int],
    preview_size: int = 512,
    min_overlap_fraction: float = 0.05,
    sky_percentile: tuple[float, float] = (30.0, 70.0),
    robust_clip_sigma: float = 2.5,
    use_auto_intertile: bool = False,
    logger: Any = None,
    progress_callback: Progress | None = None,
) -> dict[int, tuple[float, float]]:
    """Solve one gain and offset per tile that make all tiles agree where they overlap.

    All overlaps are solved together on coarse luminance pictures (`zemosaic_core.tile_photometry`).

    Parameters
    ----------
    tile_data_with_wcs : sequence of (ndarray (h, w) or (h, w, C), WCS)
        Not changed.
    final_wcs, final_shape_hw
        The mosaic's grid.
    preview_size : int
        Blocks along the longer side of the largest tile.
    min_overlap_fraction : float
        Smallest overlap that counts, as a fraction of the smaller tile.
    sky_percentile, use_auto_intertile, logger
        Accepted for the call form: the solution weighs bright and dark blocks robustly and needs both.
    robust_clip_sigma : float
        Differences beyond this many robust sigmas count less.
    progress_callback : callable, optional
        Called with ``("phase5_intertile", done, total)``.

    Returns
    -------
    dict
        Tile number -> ``(gain, offset)``; the corrected tile is ``gain * v + offset``. One tile of each connected
        part is the anchor with (1, 0), and so is a tile without overlap.
    """
    images = [np.nanmean(to_chw(image), axis=0, keepdims=True) for image, _ in tile_data_with_wcs]
    if not images:
        return {}
    if progress_callback is not None:
        progress_callback("phase5_intertile", 0, len(images))
    terms = solve_overlaps(
        images, [wcs for _, wcs in tile_data_with_wcs], final_wcs, final_shape_hw,
        TileOptions(fit_plane=False, huber_sigma=robust_clip_sigma),
        preview_size=preview_size, min_overlap_fraction=min_overlap_fraction,
    )  # fmt: skip
    if progress_callback is not None:
        progress_callback("phase5_intertile", len(images), len(images))
    return {index: (float(gain), float(offset)) for index, (gain, offset) in enumerate(terms[:, 0, :2])}


# ----------------------------------------------------------------------------------------------- single images


def detect_and_correct_hot_pixels(
    image: np.ndarray,
    threshold: float = 3.0,
    neighborhood_size: int = 5,
    progress_callback: Progress | None = None,
    save_mask_path: str | Path | None = None,
) -> np.ndarray:
    """Replace outliers of an image by the local median; see `zemosaic_core.hot_pixels.detect_and_correct`.

    `progress_callback` is called with ``("hot_pixels_corrected", None, "DEBUG", count=...)``; the mask of replaced
    pixels is saved as uint8 ``.npy`` under `save_mask_path`, and `SaveFailed` says when that is not possible.
    """
    corrected, mask = hot_pixels.detect_and_correct(image, threshold, neighborhood_size)
    if progress_callback is not None:
        progress_callback("hot_pixels_corrected", None, "DEBUG", count=int(mask.sum()))
    if save_mask_path is not None:
        image_files.write_mask(save_mask_path, mask)
    return corrected


def detect_and_correct_hot_pixels_gpu(
    image: np.ndarray,
    threshold: float = 3.0,
    neighborhood_size: int = 5,
    progress_callback: Progress | None = None,
    save_mask_path: str | Path | None = None,
    *,
    policy: GpuPolicy | None = None,
) -> np.ndarray:
    """Do `detect_and_correct_hot_pixels`: a single image that lies in memory is done before a card has it.

    In a run, bad pixels of raw frames are mended on the card, while it decodes them for the co-add.
    """
    return detect_and_correct_hot_pixels(
        image, threshold, neighborhood_size, progress_callback, save_mask_path
    )


def estimate_background_map(
    image: np.ndarray,
    method: str = "gaussian",
    sigma: float = 32.0,
    progress_callback: Progress | None = None,
) -> np.ndarray:
    """Estimate the smooth light of an image; see `zemosaic_core.background.estimate_background_map`."""
    return background.estimate_background_map(image, method=method, sigma=sigma)


def estimate_background_map_gpu(
    image: np.ndarray,
    method: str = "gaussian",
    sigma: float = 32.0,
    progress_callback: Progress | None = None,
    *,
    policy: GpuPolicy | None = None,
) -> np.ndarray:
    """Do `estimate_background_map`, which no run does on a card: the sky is measured where frames are."""
    return estimate_background_map(image, method, sigma, progress_callback)


def debayer_image(
    img01_2d: np.ndarray, bayer_pattern: str = "GRBG", progress_callback: Progress | None = None
) -> np.ndarray:
    """Interpolate the colours of a mosaicked image (h, w) of any scale; see `zemosaic_core.cfa.debayer`.

    Returns
    -------
    ndarray, shape (h, w, 3), float32
        Red, green, blue.
    """
    if not isinstance(img01_2d, np.ndarray):
        raise TypeError(f"the image must be a NumPy array, got {type(img01_2d).__name__}")
    plane = np.ascontiguousarray(img01_2d, dtype=np.float32)
    return to_hwc(cfa.debayer(plane, bayer_pattern), flat=False)


def stretch_auto_asifits_like(
    img_hwc: np.ndarray,
    p_low: float = 0.5,
    p_high: float = 99.8,
    asinh_a: float = 0.01,
    apply_wb: bool = True,
) -> np.ndarray:
    """Stretch an image for display; see `zemosaic_core.stretch.stretch_auto_asifits_like`."""
    return stretch.stretch_auto_asifits_like(img_hwc, p_low, p_high, asinh_a, apply_wb)


def stretch_auto_asifits_like_gpu(
    img_hwc: np.ndarray,
    p_low: float = 0.5,
    p_high: float = 99.8,
    asinh_a: float = 0.01,
    apply_wb: bool = True,
    *,
    policy: GpuPolicy | None = None,
) -> np.ndarray:
    """Do `stretch_auto_asifits_like`, on the processor as pictures of a run are."""
    return stretch_auto_asifits_like(img_hwc, p_low, p_high, asinh_a, apply_wb)


def _percentiles_gpu(
    arr2d: np.ndarray, p_low: float, p_high: float, *, policy: GpuPolicy | None = None
) -> tuple[float, float]:
    """Return two percentiles of the finite values (linear between ranks); NaN when there is none."""
    low, high = nan_percentile(arr2d, (p_low, p_high))
    return low, high


def make_radial_weight_map(
    height: int,
    width: int,
    feather_fraction: float = 0.8,
    shape_power: float = 2.0,
    min_weight_floor: float = 0.05,
    progress_callback: Progress | None = None,
) -> np.ndarray:
    """Make a weight map that falls off from the centre; see `zemosaic_core.weights.make_radial_weight_map`."""
    return weight_maps.make_radial_weight_map(height, width, feather_fraction, shape_power, min_weight_floor)


# ------------------------------------------------------------------------------------------------ WCS and files


def validate_wcs_header(
    header: fits.Header, *, require_footprint: bool = True
) -> tuple[bool, WCS | None, str | None]:
    """Return ``(True, wcs, None)``, or ``(False, None, reason)`` when a header describes no usable celestial WCS.

    See `zemosaic_io.image_files.read_header_wcs`.
    """
    try:
        return True, image_files.read_header_wcs(header, require_footprint=require_footprint), None
    except image_files.UnusableWcs as fault:
        return False, None, str(fault)


def crop_image_and_wcs(
    img: np.ndarray, wcs: WCS, fraction_per_side: float, progress_callback: Progress | None = None
) -> tuple[np.ndarray, WCS]:
    """Cut the same fraction off every side; see `zemosaic_core.coverage.crop_sides`."""
    return crop_sides(img, wcs, fraction_per_side)


def load_and_validate_fits(
    filepath: str | Path,
    normalize_to_float32: bool = True,
    attempt_fix_nonfinite: bool = True,
    progress_callback: Progress | None = None,
) -> tuple[np.ndarray, fits.Header, dict[str, Any]]:
    """Read the first image of a FITS file.

    Parameters
    ----------
    filepath : str or Path
    normalize_to_float32 : bool
        Bring the finite values to [0, 1] (the meaning this name has always had); False keeps them.
    attempt_fix_nonfinite : bool
        Replace missing values by 0; ``info['alpha_mask']`` says which. False keeps NaN.

    Returns
    -------
    tuple
        Image (h, w) or (h, w, C) float32 in native byte order, its header, and ``info`` with ``hdu``,
        ``axis_order_original`` (HW, HWC or CHW) and ``alpha_mask`` (h, w) uint8, 255 where there is a value.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` when the file cannot be read or holds no image.
    """
    loaded = image_files.read_image_file(Path(filepath))
    image = image_files.scale_to_unit(loaded.image) if normalize_to_float32 else loaded.image
    if attempt_fix_nonfinite:
        image = np.where(np.isfinite(loaded.image), image, np.float32(0))
    info = {
        "hdu": loaded.hdu,
        "axis_order_original": loaded.axis_order,
        "alpha_mask": np.where(loaded.valid, 255, 0).astype(np.uint8),
    }
    return image, loaded.header, info


def save_fits_image(
    image: np.ndarray,
    output_path: str | Path,
    header: fits.Header | dict[str, Any] | None = None,
    overwrite: bool = True,
    save_as_float: bool = False,
    legacy_rgb_cube: bool = False,
    progress_callback: Progress | None = None,
    axis_order: str = "HWC",
    alpha_mask: np.ndarray | None = None,
) -> None:
    """Write an image to a FITS file, complete or not at all; see `zemosaic_io.image_files.write_image_file`."""
    image_files.write_image_file(
        image, output_path, header,
        overwrite=overwrite, save_as_float=save_as_float, legacy_rgb_cube=legacy_rgb_cube, axis_order=axis_order,
        alpha_mask=alpha_mask,
    )  # fmt: skip
