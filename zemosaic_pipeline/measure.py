"""One look at the pixels of one frame: background, stars, hot pixels. Runs in worker processes.

Imports only what it needs: a process that measures starts in well under a second and stays small.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zemosaic_core import background, cfa, hot_pixels, stars
from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_read import frame_changed, read_identified
from zemosaic_io.frame_identity import header_holds, is_as_surveyed
from zemosaic_io.headers import FrameInfo
from zemosaic_io.sealed_arrays import load_sealed, save_sealed
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.records import FrameMeasure

__all__ = [
    "ARRAY_NAMES",
    "MIN_STARS",
    "STAR_COLUMNS",
    "MeasureOptions",
    "measure_arrays",
    "measure_frame",
    "stored_measure",
]

APERTURE_FWHM = 1.5
# A frame with fewer stars can neither be matched nor judged.
MIN_STARS = 8
STAR_COLUMNS = ("x", "y", "flux", "peak", "fwhm_px", "elongation", "snr")
ARRAY_NAMES = {*STAR_COLUMNS, "channel_flux", "sky", "noise", "mesh", "hot", "row_sums"}


@dataclass(frozen=True)
class MeasureOptions:
    """How frames are measured and judged."""

    quality_sigma: float
    exclude_flagged: bool
    find_hot_pixels: bool
    detect_sigma: float = 5.0
    max_stars: int = 600
    mesh_cell_px: int = 64


def measure_arrays(info: FrameInfo, data: np.ndarray, options: MeasureOptions) -> dict[str, np.ndarray]:
    """Return everything that is measured on one frame as named arrays.

    ``x y flux peak fwhm_px elongation snr`` per star (frame px, brightest first), ``channel_flux`` (C, n),
    ``sky noise`` (C,),
    ``mesh`` (C, ny, nx) with cells of ``mesh_cell_px`` frame pixels, ``hot`` flat indices.

    Raises
    ------
    SkipItem
        The frame is empty, or shows too few stars.
    """
    finite = data if data.dtype.kind == "u" else data[np.isfinite(data)]
    low, high = (finite.min(), finite.max()) if finite.size else (math.nan, math.nan)
    if not low < high:
        raise SkipItem("frame_empty", f"{info.path}: every pixel is {low}", value=float(low))
    found = _find_stars(info, data, options)
    if len(found.x) < MIN_STARS:
        raise SkipItem(
            "frame_too_few_stars",
            f"{info.path}: {len(found.x)} stars, {MIN_STARS} needed",
            stars=len(found.x),
            needed=MIN_STARS,
        )
    # Only now, so that it never lies in memory beside what the detector needs.
    planes, scale = _colour_planes(info, data)
    statistics = [background.sky_statistics(plane) for plane in planes]
    fwhm = float(np.nanmedian(found.fwhm_px))
    plane_offset = (scale - 1) / 2
    channel_flux = stars.aperture_fluxes(
        planes,
        (found.x - plane_offset) / scale,
        (found.y - plane_offset) / scale,
        max(2.0, APERTURE_FWHM * fwhm / scale),
    )
    find_hot = options.find_hot_pixels and info.kind == "cfa"
    return {
        **{column: getattr(found, column) for column in STAR_COLUMNS},
        "channel_flux": channel_flux,
        "sky": np.array([s for s, _ in statistics], dtype=np.float32),
        # A half-size green plane is the mean of two pixels; the noise of one pixel is what weights need.
        "noise": np.array([s for _, s in statistics], dtype=np.float32) * _noise_scale(info),
        "mesh": background.sky_mesh(planes, round(options.mesh_cell_px / scale)),
        "hot": hot_pixels.find_candidates(data) if find_hot else np.empty(0, np.int64),
    }


def _find_stars(info: FrameInfo, data: np.ndarray, options: MeasureOptions) -> stars.StarList:
    """Stars in frame px, found on the luminance, which is gone afterwards."""
    if info.kind == "cfa":
        luminance, offset = cfa.luminance(data), 0.5
    else:
        luminance, offset = _filled_planes(data).mean(axis=0), 0.0
    return stars.detect_stars(
        luminance,
        threshold_sigma=options.detect_sigma,
        max_stars=options.max_stars,
        saturation=65000.0 if data.dtype == np.uint16 else None,
        offset=(offset, offset),
    )


def _colour_planes(info: FrameInfo, data: np.ndarray) -> tuple[np.ndarray, float]:
    """Colour planes (C, h, w) float32, and how many frame pixels one of their pixels is wide."""
    if info.kind == "cfa":
        return cfa.superpixel(data, info.cfa_pattern), 2.0
    return _filled_planes(data), 1.0


def _filled_planes(data: np.ndarray) -> np.ndarray:
    planes = np.asarray(data, dtype=np.float32)
    planes = planes[None] if planes.ndim == 2 else planes
    finite = np.isfinite(planes)
    return planes if finite.all() else np.where(finite, planes, np.float32(np.median(planes[finite])))


def _noise_scale(info: FrameInfo) -> np.ndarray:
    if info.kind == "cfa":
        return np.array([1.0, math.sqrt(2.0), 1.0], dtype=np.float32)
    return np.float32(1.0)


def measure_frame(task: tuple[FrameInfo, MeasureOptions, str]) -> FrameMeasure | SkipItem:
    """Measure one frame and store its arrays in the file given; runs in a worker process.

    What that file holds is kept when it was measured on the same pixels.

    Returns
    -------
    FrameMeasure or SkipItem
        ``frame_changed``: the file is not the one whose header was read; its header has to be read again.

    Raises
    ------
    SaveFailed
        The arrays cannot be written.
    """
    info, options, arrays_path = task
    return result_or_skip(info.path, _measure_and_store, info, options, arrays_path)


def _measure_and_store(info: FrameInfo, options: MeasureOptions, arrays_path: str) -> FrameMeasure:
    read = read_identified(info)
    if not is_as_surveyed(info) and not header_holds(info):
        raise frame_changed(info.path)
    key = Path(arrays_path).stem
    before = load_sealed(arrays_path, key)
    if before is not None and before[0]["content_key"] == read.content_key:
        arrays = before[1]
    else:
        arrays = measure_arrays(info, read.data, options)
    measure = FrameMeasure(
        content_key=read.content_key,
        sky_adu=tuple(map(float, arrays["sky"])),
        noise_adu=tuple(map(float, arrays["noise"])),
        n_stars=len(arrays["x"]),
        fwhm_px=float(np.nanmedian(arrays["fwhm_px"])),
        elongation=float(np.nanmedian(arrays["elongation"])),
        arrays_path=arrays_path,
    )
    record = {name: value for name, value in asdict(measure).items() if name != "arrays_path"}
    state = [info.ctime_ns, info.inode]
    save_sealed(arrays_path, key, record | {"file_state": state}, {**arrays, "row_sums": read.row_sums})
    return measure


def stored_measure(info: FrameInfo, arrays_path: str) -> FrameMeasure | None:
    """Return what `measure_frame` stored for this very file; None when it has to look at the file itself."""
    stored = load_sealed(arrays_path, Path(arrays_path).stem)
    if stored is None:
        return None
    record, arrays = stored
    # The name stands for path, size and time. They stay the same when a backup is restored over the file.
    if record.pop("file_state") != [info.ctime_ns, info.inode] or not ARRAY_NAMES.issubset(arrays):
        return None
    lists = {name: tuple(record[name]) for name in ("sky_adu", "noise_adu")}
    return FrameMeasure(**{**record, **lists}, arrays_path=arrays_path)
