"""What is made on request beside the pictures: the annotation, copies of the science file, the list of exposures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.annotation import Annotation, annotate
from zemosaic_core.night_sky import CATALOGUE_EPOCH
from zemosaic_core.sphere import image_geometry
from zemosaic_io.acquisition_list import Exposure, write_acquisitions
from zemosaic_io.annotation_files import (
    draw_annotation,
    layout_for,
    write_annotation_svg,
    write_object_list,
)
from zemosaic_io.fits_compress import write_compressed_copy
from zemosaic_io.hips_files import write_hips
from zemosaic_io.picture_files import write_picture
from zemosaic_io.preview import write_png
from zemosaic_io.sky_objects import built_in_objects
from zemosaic_io.xisf_write import write_xisf_copy
from zemosaic_io.zoom_page import write_zoom_page
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.finished_picture import EveryPixel, FinishedPicture
from zemosaic_pipeline.output_formats import COPIES
from zemosaic_pipeline.records import Mosaic, RegisteredFrame

__all__ = [
    "SPHERE",
    "ZOOM",
    "annotation_of",
    "write_annotation",
    "write_copies",
    "write_exposures",
    "write_sphere",
    "write_zoom",
]

ZOOM, SPHERE = "_zoom", "_hips"
"""Endings of the folders of tiles."""
_WRITERS = {"fits.fz": write_compressed_copy, "xisf": write_xisf_copy}


def annotation_of(
    shown: np.ndarray, picture: FinishedPicture, mosaic: Mosaic, frames: Sequence[RegisteredFrame]
) -> Annotation:
    """Return what there is to name in a picture, (h, w, 4), as its stars stood when the frames were taken."""
    shape_hw = (shown.shape[0], shown.shape[1])
    return _annotation(picture.wcs(mosaic.grid.wcs_cards), shape_hw, shown, frames)


def _annotation(
    wcs: WCS, shape_hw: tuple[int, int], shown: np.ndarray, frames: Sequence[RegisteredFrame]
) -> Annotation:
    epochs = [frame.solved.frame.info.epoch for frame in frames]
    return annotate(
        wcs,
        shape_hw,
        built_in_objects(),
        epoch=float(np.mean(epochs)) if epochs else CATALOGUE_EPOCH,
        seen=shown[..., 3] > 0,
    )


def write_annotation(
    base: Path, shown: np.ndarray, note: Annotation, picture: FinishedPicture, texts: dict[str, str]
) -> dict[str, Path]:
    """Write the picture with its annotation, the annotation alone and the list of objects.

    Parameters
    ----------
    shown : ndarray, shape (h, w, 4), uint8
        The picture, rows as in FITS.
    """
    layout = layout_for(note)
    annotated = draw_annotation(shown, layout)
    y0, _, x0, _ = picture.box
    return {
        "annotated": write_picture(
            Path(f"{base}_annotated.png"), annotated, "png", texts=texts, durable=False
        ),
        "annotation": write_annotation_svg(
            Path(f"{base}_annotation.svg"), layout, note.shape_hw, durable=False
        ),
        "objects": write_object_list(
            Path(f"{base}_objects.csv"), note.marks, picture.step, (x0, y0), durable=False
        ),
    }


def write_zoom(
    base: Path,
    shown: np.ndarray,
    picture: EveryPixel,
    mosaic: Mosaic,
    frames: Sequence[RegisteredFrame],
    check: Callable[[], None],
) -> dict[str, Path]:
    """Write every pixel of the picture as tiles with a page; ``shown`` is the picture of any size."""
    note = _annotation(picture.wcs(mosaic.grid.wcs_cards), picture.shape_hw, shown, frames)

    def bands() -> Iterator[np.ndarray]:
        for _, band in picture.bands(last_first=True):
            check()
            yield band

    folder = Path(f"{base}{ZOOM}")
    return {"zoom": write_zoom_page(folder, bands(), picture.shape_hw, base.name, note.marks)}


def write_sphere(base: Path, picture: EveryPixel, mosaic: Mosaic, context: RunContext) -> dict[str, Path]:
    """Write every pixel of the picture as tiles on the sphere."""
    wcs = picture.wcs(mosaic.grid.wcs_cards)
    wcs.array_shape = picture.shape_hw
    rgba = np.empty((*picture.shape_hw, 4), np.uint8)
    for y0, band in picture.bands():
        context.cancel.check()
        rgba[y0 : y0 + len(band)] = band
    whole = context.work_dir / f"{base.name}{SPHERE}_whole.png"
    try:
        write_png(whole, rgba, compress_level=1, durable=False)
        del rgba
        folder = Path(f"{base}{SPHERE}")
        return {"hips": write_hips(folder, whole, wcs, base.name, context.work_dir, context.cancel.check)}
    finally:
        whole.unlink(missing_ok=True)


def write_copies(
    base: Path, science_path: str, formats: Sequence[str], context: RunContext
) -> dict[str, Path]:
    """Write the science file in the other forms among ``formats``."""
    written = {}
    for form in formats:
        if form in COPIES:
            context.cancel.check()
            written[f"science_{form}"] = _WRITERS[form](Path(f"{base}.{form}"), science_path, durable=False)
    return written


def write_exposures(
    base: Path,
    frames: Sequence[RegisteredFrame],
    brightness: Mapping[int, tuple[float, float]],
    filter_numbers: Mapping[str, str],
    context: RunContext,
) -> dict[str, Path]:
    """Write what AstroBin wants to know of the frames; a warning says where no exposure time is known.

    ``brightness`` is that of `sky_brightness.sky_brightness`.
    """
    exposures = []
    for frame in frames:
        solved = frame.solved
        info = solved.frame.info
        scale = 3600.0 * image_geometry(WCS(solved.solution.wcs_cards), info.shape_hw).scale_deg
        sky_mag = brightness.get(solved.frame.index, (float("nan"), 0.0))[0]
        exposures.append(Exposure(info, scale * solved.measure.fwhm_px, sky_mag))
    path = write_acquisitions(Path(f"{base}_astrobin.csv"), exposures, filter_numbers, durable=False)
    if path is None:
        context.say("run_warn_no_exposures", "WARN")
        return {}
    return {"astrobin": path}
