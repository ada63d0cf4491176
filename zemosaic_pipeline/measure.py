"""One look at the pixels of one frame: background, stars, defects. Runs in worker processes.

Imports only what it needs: a process that measures starts in well under a second and stays small.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_core import background, stars
from zemosaic_core.calibration import level_saturated
from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.hot_pixels import repair_cfa
from zemosaic_core.light_digits import rounded_light
from zemosaic_core.measure_pass import (
    RawMeasure,
    RawSweeps,
    measure_raw,
    measure_swept,
    phases_of_colours,
    sweep_raw,
)
from zemosaic_core.raw_counts import Counts, as_counts
from zemosaic_core.raw_defects import ceilings, joined_ceiling, saturation_levels
from zemosaic_core.streaks import STREAK_COLUMNS
from zemosaic_io.calibration_sets import CalibrationSet, load_set
from zemosaic_io.fits_read import frame_changed, read_identified
from zemosaic_io.frame_identity import header_holds, is_as_surveyed
from zemosaic_io.headers import FrameInfo
from zemosaic_io.sealed_arrays import load_sealed, save_sealed
from zemosaic_pipeline.elsewhere import Elsewhere, frame_there, unfit_of_disk
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.missing_pixels import without_missing
from zemosaic_pipeline.patient_reads import reads_of_process
from zemosaic_pipeline.records import FrameMeasure

if TYPE_CHECKING:
    from zemosaic_settings.executor import PathMap

__all__ = [
    "ARRAY_NAMES",
    "MEASURE_ELSEWHERE",
    "MIN_STARS",
    "STAR_COLUMNS",
    "BegunLook",
    "Look",
    "MeasureOptions",
    "RawToMeasure",
    "begin_look",
    "end_look",
    "known_content",
    "measure_arrays",
    "measure_frame",
    "store_look",
    "stored_measure",
]

APERTURE_FWHM = 1.5
# A frame with fewer stars can neither be matched nor judged.
MIN_STARS = 8
STAR_COLUMNS = ("x", "y", "flux", "peak", "fwhm_px", "elongation", "snr", "saturated")
ARRAY_NAMES = {
    *STAR_COLUMNS,
    "channel_flux",
    "sky",
    "noise",
    "mesh",
    "mesh_noise",
    "hot",
    "hot_sigma",
    "streaks",
    "ceiling",
    "zero_share",
    "row_sums",
}
_PICTURE_SIGMA = 5.0
_LEAST_SIDE_PX = 16
# Fields of a measure that are not stored: they belong to a run.
_OF_THIS_RUN = ("arrays_path", "was_stored")

log = logging.getLogger(__name__)
# A frame without stars is a flat when its level is so high; a dark when its cells differ by no more than so many of
# their errors.
_FLAT_LEVEL = 8000.0
_EVEN = 2.0
# Pixels whose smoothed noise is so much larger than that of pixels on their own were resampled.
_ALIKE = 1.2


@dataclass(frozen=True)
class MeasureOptions:
    """How frames are measured and judged."""

    quality_sigma: float
    exclude_flagged: bool
    find_hot_pixels: bool
    detect_sigma: float = 5.75
    max_stars: int = 600
    mesh_cell_px: int = 64


def measure_arrays(
    info: FrameInfo, data: np.ndarray, options: MeasureOptions, used: CalibrationSet | None = None
) -> dict[str, np.ndarray]:
    """Return everything that is measured on one frame as named arrays.

    Raw frames, with one plane, are measured in whole numbers (`measure_pass`), floats after rounding. Pictures of
    three planes, whose neighbouring pixels are alike, are searched as pictures (`stars.detect_stars`).

    With ``used`` a raw frame is measured as it will be stacked, calibrated; only saturation is looked for in the raw
    samples.

    Returns
    -------
    dict
        ``x y flux peak fwhm_px elongation snr saturated`` per star (frame px, brightest first).
        ``channel_flux`` (C, n): light per channel, NaN where it cannot be told.
        ``sky noise`` (C,): level, and noise of one pixel, ADU.
        ``mesh`` (C, ny, nx) float32: sky of cells of ``mesh_cell_px`` frame px, ADU; NaN where unusable.
        ``mesh_noise`` (C, ny, nx) float32: formal 1-sigma uncertainty of each cell's level, ADU; NaN where that is.
        ``hot hot_sigma`` (k,): flat indices of pixels that stick out alone, and by how many sigma (negative: too dark).
        ``streaks`` (k, 5) float32: trails, `streaks.STREAK_COLUMNS`.
        ``zero_share`` (1,): share of the pixels of a raw frame that are 0.
        ``ceiling`` (C, 4) float64: evidence of saturation, see `RawMeasure.ceiling`; ADU first.

    Raises
    ------
    SkipItem
        The frame is empty, or shows too few stars.
    """
    _refuse(info, data)
    if data.ndim == 3:
        return _with_stars(info, data, _measure_picture(info, data, options))
    raw = _raw_to_measure(info, data, used)
    return _with_stars(info, data, _raw_arrays(info, raw, options, _sweep(raw, options)))


def _with_stars(info: FrameInfo, data: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what was measured, if there are stars; else say what the frame may be instead."""
    n_stars = len(arrays["x"])
    if n_stars < MIN_STARS:
        if (key := _other_than_light(data, arrays)) is not None:
            level = rounded_light(float(np.mean(arrays["sky"])), 0, 3)
            raise SkipItem(key, f"{info.path}: {n_stars} stars on an even level of {level} ADU", level=level)
        raise SkipItem(
            "frame_too_few_stars",
            f"{info.path}: {n_stars} stars, {MIN_STARS} needed",
            stars=n_stars,
            needed=MIN_STARS,
        )
    return arrays


def _other_than_light(data: np.ndarray, arrays: dict[str, np.ndarray]) -> str | None:
    """Return why a frame without stars shows no sky either, as a text key; None when it might."""
    if data.ndim == 3 or data.dtype.kind != "u":
        return None
    mesh, error = arrays["mesh"], arrays["mesh_noise"]
    if not np.isfinite(mesh).any():
        return None
    middle = np.nanmedian(mesh, axis=(1, 2))
    if float(middle.mean()) > _FLAT_LEVEL:
        return "frame_flat_content"
    # No sky is as even, nor as grey, as the shutter.
    spread = np.nanmedian(np.abs(mesh - middle[:, None, None]), axis=(1, 2))
    even = (spread <= _EVEN * np.maximum(np.nanmedian(error, axis=(1, 2)), 0.25)).all()
    grey = np.ptp(middle) <= 0.25 * float(np.mean(arrays["noise"])) + 1.0
    return "frame_dark_content" if even and grey else None


def frame_stars(info: FrameInfo, data: np.ndarray, max_stars: int = 600) -> stars.StarList:
    """Return the stars of a frame alone, as `measure_arrays` finds them; the scale of their fluxes may be another.

    Raises
    ------
    SkipItem
        The frame is empty, or full of structure.
    """
    _refuse_empty(info, data)
    if data.ndim == 3:
        return _find_in_picture(info, np.asarray(data, dtype=np.float32), max_stars)
    pattern = info.cfa_pattern if info.kind == "cfa" else None
    counts = as_counts(data)
    return measure_raw(counts.plane, pattern, max_stars=max_stars, missing=counts.missing).stars


def _refuse(info: FrameInfo, data: np.ndarray) -> None:
    """No sky can be told from less than a cell of the raw sky, nor from pixels that are all alike."""
    if min(info.shape_hw) < _LEAST_SIDE_PX:
        shape = f"{info.shape_hw[1]} x {info.shape_hw[0]}"
        raise SkipItem(
            "frame_too_small", f"{info.path}: {shape} px is too small", path=str(info.path), shape=shape
        )
    _refuse_empty(info, data)


def _refuse_empty(info: FrameInfo, data: np.ndarray) -> None:
    finite = data if data.dtype.kind == "u" else data[np.isfinite(data)]
    low, high = (finite.min(), finite.max()) if finite.size else (math.nan, math.nan)
    if not low < high:
        raise SkipItem("frame_empty", f"{info.path}: every pixel is {low}", value=float(low))


@dataclass(frozen=True)
class RawToMeasure:
    """A frame of one plane in whole numbers, before its sweeps.

    Attributes
    ----------
    counts : Counts
    pattern : str or None
        Colours of its filter array.
    zero_share : float
        Share of the samples that are 0.
    ceiling : ndarray, shape (C, 4), float64, or None
        Evidence of saturation where it was looked for already, in the samples before calibration; ADU first.
    """

    counts: Counts
    pattern: str | None
    zero_share: float
    ceiling: np.ndarray | None

    @property
    def noise_factor(self) -> float:
        """See `sweep_raw`: a colour filter array is still as the sensor gave it."""
        return self.counts.noise_factor if self.pattern is None else 1.0


def _raw_to_measure(info: FrameInfo, data: np.ndarray, used: CalibrationSet | None) -> RawToMeasure:
    pattern = info.cfa_pattern if info.kind == "cfa" else None
    ceiling = None
    if used is not None:
        stored = as_counts(data)
        evidence = ceilings(stored.plane)
        ceiling = _ceiling_in_adu(evidence, stored, pattern)
        data = level_saturated(used.apply(data, 0, 0), stored.plane, saturation_levels(evidence))
        # What the masters say of bad pixels counts for every frame; they must not be taken for stars of this one.
        data = repair_cfa(data, used.bad)
    zero_share = np.count_nonzero(data == 0) / data.size if data.dtype.kind == "u" else 0.0
    return RawToMeasure(as_counts(data), pattern, zero_share, ceiling)


def _ceiling_in_adu(evidence: np.ndarray, counts: Counts, pattern: str | None) -> np.ndarray:
    tops = np.stack([joined_ceiling(evidence[k]) for k in phases_of_colours(pattern)]).astype(np.float64)
    tops[:, 0] = counts.zero + counts.step * tops[:, 0]
    return tops


def _sweep(raw: RawToMeasure, options: MeasureOptions) -> RawSweeps:
    """Do the sweeps on the processor."""
    return sweep_raw(
        raw.counts.plane,
        raw.pattern is not None,
        detect_sigma=options.detect_sigma,
        cell_px=options.mesh_cell_px,
        missing=raw.counts.missing,
        noise_factor=raw.noise_factor,
    )


def _raw_arrays(
    info: FrameInfo, raw: RawToMeasure, options: MeasureOptions, sweeps: RawSweeps
) -> dict[str, np.ndarray]:
    measured = measure_swept(sweeps, raw.pattern, max_stars=options.max_stars)
    # Neighbouring pixels of what was resampled are alike: none sticks out alone, or a star does.
    find_hot = options.find_hot_pixels and (info.kind == "cfa" or _is_from_the_sensor(info, raw.counts))
    arrays = _in_adu(measured, raw.counts) | {
        "hot": measured.defects if find_hot else np.empty(0, np.int64),
        "hot_sigma": measured.defect_sigma if find_hot else np.empty(0, np.float32),
        "zero_share": np.array([raw.zero_share], np.float32),
    }
    return arrays if raw.ceiling is None else arrays | {"ceiling": raw.ceiling}


def _in_adu(measured: RawMeasure, counts: Counts) -> dict[str, np.ndarray]:
    found, step = measured.stars, np.float32(counts.step)
    columns = {name: getattr(found, name) for name in STAR_COLUMNS}
    ceiling = measured.ceiling.astype(np.float64)
    ceiling[:, 0] = counts.zero + counts.step * ceiling[:, 0]
    return {
        **columns,
        "flux": step * found.flux,
        "peak": step * found.peak,
        "channel_flux": step * measured.channel_flux,
        "sky": np.float32(counts.zero) + step * measured.sky,
        "noise": step * measured.noise,
        "mesh": np.float32(counts.zero) + step * measured.mesh,
        "mesh_noise": step * measured.mesh_noise,
        "streaks": measured.streaks,
        "ceiling": ceiling,
    }


def _is_from_the_sensor(info: FrameInfo, counts: Counts) -> bool:
    """Whether the pixels of a single plane are still those of a sensor, each with a noise of its own."""
    return info.kind == "mono" and not info.is_stack and counts.noise_factor < _ALIKE


def _find_in_picture(info: FrameInfo, planes: np.ndarray, max_stars: int) -> stars.StarList:
    # What was stacked has no hot pixels left; stars of a coarse stack would be taken for them.
    return stars.detect_stars(
        planes.mean(axis=0),
        threshold_sigma=_PICTURE_SIGMA,
        max_stars=max_stars,
        hot_pixels=not info.is_stack,
    )


def _picture_ceiling(plane: np.ndarray) -> tuple[np.ndarray, float]:
    """Evidence of saturation in one plane of a picture, and the value from which it is cut off."""
    if not np.isfinite(plane).any():
        return np.full(4, np.nan), math.inf
    counts = as_counts(plane)
    evidence = joined_ceiling(ceilings(counts.plane))
    values = evidence.astype(np.float64)
    values[0] = counts.zero + counts.step * values[0]
    return values, counts.zero + counts.step * float(saturation_levels(evidence[None])[0])


def _is_cut(planes: np.ndarray, levels: np.ndarray, found: stars.StarList) -> np.ndarray:
    """Mask of stars with a pixel next to their centre that reached the level of its plane."""
    height, width = planes.shape[1:]
    y, x = np.rint(found.y).astype(int), np.rint(found.x).astype(int)
    cut = np.zeros(len(found), bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near = planes[:, np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
            cut |= (near >= levels[:, None]).any(axis=0)
    return cut


def _measure_picture(info: FrameInfo, data: np.ndarray, options: MeasureOptions) -> dict[str, np.ndarray]:
    """Measure a picture of three planes; NaN means missing."""
    planes = np.asarray(data, dtype=np.float32)
    found = _find_in_picture(info, planes, options.max_stars)
    radius = max(2.0, APERTURE_FWHM * float(np.median(found.fwhm_px))) if len(found) else 2.0
    statistics = [background.sky_statistics(plane) for plane in planes]
    mesh, mesh_noise = background.sky_mesh_and_error(planes, options.mesh_cell_px)
    tops = [_picture_ceiling(plane) for plane in planes]
    return {
        **{column: getattr(found, column) for column in STAR_COLUMNS},
        "saturated": _is_cut(planes, np.array([level for _, level in tops]), found),
        "channel_flux": stars.aperture_fluxes(planes, found.x, found.y, radius),
        "sky": np.array([s for s, _ in statistics], dtype=np.float32),
        "noise": np.array([s for _, s in statistics], dtype=np.float32),
        "mesh": mesh,
        "mesh_noise": mesh_noise,
        "ceiling": np.stack([evidence for evidence, _ in tops]),
        "hot": np.empty(0, np.int64),
        "hot_sigma": np.empty(0, np.float32),
        "streaks": np.empty((0, len(STREAK_COLUMNS)), np.float32),
        "zero_share": np.zeros(1, np.float32),
    }


def measure_frame(
    task: tuple[FrameInfo, MeasureOptions, str] | tuple[FrameInfo, MeasureOptions, str, str],
) -> FrameMeasure | SkipItem:
    """Measure one frame and store its arrays in the file given; runs in a worker process.

    What that file holds is kept when it was measured on the same pixels. The last item of a task of four is the file
    of what the frame is calibrated with (`Frame.calibration`).

    Returns
    -------
    FrameMeasure or SkipItem
        ``frame_changed``: the file is not the one whose header was read; its header has to be read again.

    Raises
    ------
    SaveFailed
        The arrays cannot be written.
    """
    info, options, arrays_path, *rest = task
    return result_or_skip(info.path, _measure_and_store, info, options, arrays_path, "".join(rest))


@dataclass(frozen=True)
class Look:
    """One look at the pixels of a frame, before it is stored.

    ``arrays`` is None when the pixels are those whose measurements are known already.
    """

    content_key: str
    zero_is_missing: bool
    arrays: dict[str, np.ndarray] | None
    row_sums: np.ndarray


@dataclass(frozen=True)
class BegunLook:
    """A look at a frame that was read and whose pixels wait for the sweeps; ``data`` as they were read."""

    content_key: str
    zero_is_missing: bool
    data: np.ndarray
    raw: RawToMeasure
    row_sums: np.ndarray


def begin_look(
    info: FrameInfo, options: MeasureOptions, calibration: str, known_content: str
) -> Look | BegunLook:
    """Read a frame as far as the sweeps need it; a picture, or a frame that is known, has its whole look.

    Raises
    ------
    SkipItem
        The frame cannot be used, or has changed since its header was read.
    """
    read = read_identified(info)
    if not is_as_surveyed(info) and not header_holds(info):
        raise frame_changed(info.path)
    if read.content_key == known_content:
        return Look(known_content, False, None, read.row_sums)
    data, zero_is_missing = without_missing(info, read.data)
    used = load_set(calibration) if calibration else None
    if data.ndim == 3:
        arrays = measure_arrays(info, data, options, used)
        return Look(read.content_key, zero_is_missing, arrays, read.row_sums)
    _refuse(info, data)
    raw = _raw_to_measure(info, data, used)
    return BegunLook(read.content_key, zero_is_missing, data, raw, read.row_sums)


def end_look(info: FrameInfo, options: MeasureOptions, begun: BegunLook, sweeps: RawSweeps | None) -> Look:
    """Measure the places that sweeps have listed; without any, they are done here.

    Raises
    ------
    SkipItem
        The frame shows too few stars.
    """
    sweeps = _sweep(begun.raw, options) if sweeps is None else sweeps
    arrays = _with_stars(info, begun.data, _raw_arrays(info, begun.raw, options, sweeps))
    return Look(begun.content_key, begun.zero_is_missing, arrays, begun.row_sums)


def _look(info: FrameInfo, options: MeasureOptions, calibration: str, known_content: str) -> Look:
    begun = begin_look(info, options, calibration, known_content)
    return begun if isinstance(begun, Look) else end_look(info, options, begun, None)


def _measure_and_store(
    info: FrameInfo, options: MeasureOptions, arrays_path: str, calibration: str
) -> FrameMeasure:
    return store_look(info, arrays_path, _look(info, options, calibration, known_content(arrays_path)))


def known_content(arrays_path: str) -> str:
    """Return the key of the pixels whose measurements are stored in the file given; '' when there are none."""
    before = _stored(arrays_path)
    return "" if before is None else before[0].content_key


def store_look(info: FrameInfo, arrays_path: str, look: Look) -> FrameMeasure:
    """Store what a look gave in the file given, or note that what is there is still true.

    Raises
    ------
    SaveFailed
        The arrays cannot be written.
    """
    if look.arrays is None:
        before = _stored(arrays_path)
        if before is None:
            raise RunFailed(
                "run_error_state_lost",
                f"{arrays_path} was damaged or removed while the run used it; start the run again",
                path=arrays_path,
            )
        zero_is_missing, arrays = before[0].zero_is_missing, before[1]
    else:
        zero_is_missing, arrays = look.zero_is_missing, look.arrays
    measure = FrameMeasure(
        content_key=look.content_key,
        sky_adu=tuple(map(float, arrays["sky"])),
        noise_adu=tuple(map(float, arrays["noise"])),
        n_stars=len(arrays["x"]),
        fwhm_px=float(np.nanmedian(arrays["fwhm_px"])),
        elongation=float(np.nanmedian(arrays["elongation"])),
        arrays_path=arrays_path,
        zero_is_missing=zero_is_missing,
        was_stored=look.arrays is None,
    )
    record = {name: value for name, value in asdict(measure).items() if name not in _OF_THIS_RUN}
    state = [info.ctime_ns, info.inode]
    key = Path(arrays_path).stem
    save_sealed(arrays_path, key, record | {"file_state": state}, {**arrays, "row_sums": look.row_sums})
    return measure


def _send(task: Sequence[Any], paths: PathMap) -> tuple[FrameInfo, MeasureOptions, str, str]:
    info, options, arrays_path, *rest = task
    return frame_there(info, paths), options, "".join(rest), known_content(arrays_path)


def _look_elsewhere(task: tuple[FrameInfo, MeasureOptions, str, str]) -> Look | SkipItem:
    """Look at one frame on another machine; runs there."""
    info = task[0]
    # A thread of the worker reads: nobody could end it.
    return result_or_skip(info.path, reads_of_process(), info.path, info.size_bytes, _look_with_room, *task)


def _look_with_room(info: FrameInfo, options: MeasureOptions, calibration: str, known_content: str) -> Look:
    try:
        return _look(info, options, calibration, known_content)
    except OSError as error:
        if (unfit := unfit_of_disk(error)) is not None:
            raise unfit from error
        raise


def _receive(task: Sequence[Any], answer: Look | SkipItem) -> FrameMeasure | SkipItem:
    if isinstance(answer, SkipItem):
        return answer
    info, _, arrays_path, *_ = task
    return store_look(info, arrays_path, answer)


MEASURE_ELSEWHERE = Elsewhere(_look_elsewhere, _send, _receive)
"""`measure_frame` where the frame is read by one machine and its arrays are stored by another."""


def stored_measure(info: FrameInfo, arrays_path: str) -> FrameMeasure | None:
    """Return what `measure_frame` stored for this very file; None when it has to look at the file itself."""
    stored = _stored(arrays_path)
    # The name stands for path, size and time. They stay the same when a backup is restored over the file.
    if stored is None or stored[2] != [info.ctime_ns, info.inode]:
        return None
    return stored[0]


def _stored(arrays_path: str) -> tuple[FrameMeasure, dict[str, np.ndarray], list[Any]] | None:
    """Return measure, arrays and file state as they were stored; None when they are not what is stored today."""
    sealed = load_sealed(arrays_path, Path(arrays_path).stem)
    if sealed is None:
        return None
    record, arrays = sealed
    try:
        measure = FrameMeasure(
            content_key=str(record["content_key"]),
            sky_adu=tuple(map(float, record["sky_adu"])),
            noise_adu=tuple(map(float, record["noise_adu"])),
            n_stars=int(record["n_stars"]),
            fwhm_px=float(record["fwhm_px"]),
            elongation=float(record["elongation"]),
            arrays_path=arrays_path,
            transparency=float(record["transparency"]),
            zero_is_missing=bool(record["zero_is_missing"]),
            was_stored=True,
        )
        file_state = list(record["file_state"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("%s is not what is stored today and is made anew: %r", arrays_path, error)
        return None
    if not ARRAY_NAMES.issubset(arrays) or not _fit_together(measure, arrays):
        log.warning("%s is not what is stored today and is made anew", arrays_path)
        return None
    return measure, arrays, file_state


def _fit_together(measure: FrameMeasure, arrays: Mapping[str, np.ndarray]) -> bool:
    """Tell whether all arrays are numbers, and have the shapes that `measure_arrays` gives them."""
    n_stars, n_channels = measure.n_stars, len(measure.sky_adu)
    shapes = {
        **dict.fromkeys(STAR_COLUMNS, (n_stars,)),
        "channel_flux": (n_channels, n_stars),
        **dict.fromkeys(("sky", "noise"), (n_channels,)),
        "mesh": (n_channels, *arrays["mesh"].shape[-2:]),
        "mesh_noise": arrays["mesh"].shape,
        "hot_sigma": (arrays["hot"].size,),
        "ceiling": (n_channels, 4),
    }
    return (
        len(measure.noise_adu) == n_channels
        and n_stars >= MIN_STARS
        and all(arrays[name].dtype.kind in "fiub" for name in ARRAY_NAMES)
        and all(arrays[name].shape == shape for name, shape in shapes.items())
        and arrays["row_sums"].ndim == 2
    )
