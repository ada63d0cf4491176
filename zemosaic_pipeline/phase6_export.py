"""Phase 6: preview, coverage picture and the extra forms of the mosaic that were asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from zemosaic_core import __version__
from zemosaic_core.colour_maps import coverage_rgba
from zemosaic_io.picture_files import ENDINGS, write_picture
from zemosaic_io.preview import (
    FitsRows,
    display_range,
    downscale,
    write_calibrated_fits,
    write_png,
    write_tiff16,
    write_viewer_fits_uint16,
)
from zemosaic_io.result_set import is_own_folder
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.extra_files import (
    SPHERE,
    ZOOM,
    annotation_of,
    write_annotation,
    write_copies,
    write_exposures,
    write_sphere,
    write_zoom,
)
from zemosaic_pipeline.finished_picture import EveryPixel, FinishedPicture, make_picture
from zemosaic_pipeline.output_formats import COPIES, PICTURES
from zemosaic_pipeline.phase5_assemble import BASE_PATTERN
from zemosaic_pipeline.phase_options import OutputOptions
from zemosaic_pipeline.records import Mosaic, RegisteredFrame

__all__ = ["PHASE", "refuse_what_is_in_the_way", "run"]

PHASE = "phase6_export"
# V of the star that counts 1 in the calibrated copy.
UNIT_MAG = 22.5
COVERAGE_PICTURE_PX = 1600
# Planes of a picture that are finished at once: each takes memory (`cost.FINISHING_BYTES_PER_PX`).
PICTURE_THREADS = 2
# Name of the run in pictures, as in the headers of FITS files.
RUN_ID = "ZMRUNID"
LISTED_HOLES = 20
OPTIONAL_ENDINGS = (
    "_calibrated.fits",
    "_viewer.fits",
    "_viewer.tif",
    "_variance.fits",
    *(f"_picture{ending}" for ending in ENDINGS.values()),
    *("_annotated.png", "_annotation.svg", "_objects.csv", "_astrobin.csv"),
    *(f".{form}" for form in COPIES),
)
OPTIONAL_FOLDERS = (ZOOM, SPHERE)
# Of files that are always made.
ENDINGS_OF_ALL = (".fits", "_preview.png", "_coverage.png")


def refuse_what_is_in_the_way(n_found: int, options: OutputOptions, context: RunContext) -> None:
    """Refuse before the work what would keep results from their place: a folder by the name of a file, or another's.

    How many tiles and frames there will be is not known yet; all names that a run of ``n_found`` frames may use count.

    Raises
    ------
    SaveFailed
        ``save_failed``
    """
    folders = (ZOOM,) * options.zoom + (SPHERE,) * options.hips
    for there in sorted(context.output_dir.iterdir()):
        name = re.match(BASE_PATTERN, there.name)
        if name is None or int(name["frames"]) > n_found:
            continue
        if there.name.endswith((*ENDINGS_OF_ALL, *OPTIONAL_ENDINGS, *folders)):
            context.results.refuse_what_is_in_the_way(there.name, is_folder=there.name.endswith(folders))


def run(
    mosaic: Mosaic,
    frames: Sequence[RegisteredFrame],
    brightness: Mapping[int, tuple[float, float]],
    options: OutputOptions,
    context: RunContext,
) -> dict[str, str]:
    """Write the files beside those of phase 5 and return what they are called.

    Parameters
    ----------
    frames : sequence of RegisteredFrame
        Those of the mosaic.
    brightness : mapping of int to tuple of float
        How bright the sky of each was, see `sky_brightness.sky_brightness`.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    base = Path(mosaic.science_path.removesuffix(".fits"))
    outputs = {"science": mosaic.science_path, "coverage": mosaic.coverage_path, **mosaic.outputs}
    steps = 2 + options.viewer_fits + options.viewer_tiff
    rows = FitsRows(mosaic.science_path)
    picture = make_picture(mosaic, options, min(PICTURE_THREADS, context.threads))
    texts = {"Software": f"ZeMosaic {__version__}", RUN_ID: context.run_id, "Picture": picture.recipe()}
    with ThreadPoolExecutor(1) as executor:
        of_coverage = executor.submit(_write_coverage_picture, base, mosaic, texts)
        if context.threads == 1:
            of_coverage.result()
        outputs |= _write_pictures(base, picture, mosaic, frames, options, texts, context)
        context.progress(1, steps, "preview")
        outputs["coverage_preview"] = of_coverage.result()
    if picture.holes:
        places = ", ".join(f"x {x} y {y}" for x, y in picture.holes[:LISTED_HOLES])
        context.say("run_info_holes_filled", count=len(picture.holes), places=places)
    context.progress(2, steps, "coverage")
    limits = display_range(rows) if options.viewer_fits or options.viewer_tiff else None
    if options.viewer_fits:
        path = Path(f"{base}_viewer.fits")
        cards = {**mosaic.grid.wcs_cards, RUN_ID: (context.run_id, "run that made this file")}
        outputs["viewer"] = str(write_viewer_fits_uint16(path, rows, cards, limits=limits, durable=False))
    if options.viewer_tiff:
        tiff = Path(f"{base}_viewer.tif")
        described = f"{RUN_ID}={context.run_id}"
        outputs["tiff"] = str(write_tiff16(tiff, rows, limits=limits, description=described, durable=False))
    if options.colour.save_calibrated and mosaic.colour.solution is not None:
        path = Path(f"{base}_calibrated.fits")
        outputs["calibrated"] = str(_write_calibrated(path, rows, mosaic, context.run_id))
    extra = write_copies(base, mosaic.science_path, options.formats, context)
    if "astrobin" in options.formats:
        extra |= write_exposures(base, frames, brightness, options.filter_numbers, context)
    outputs |= {kind: str(path) for kind, path in extra.items()}
    _remove_old(base, outputs, context)
    context.progress(steps, steps)
    return outputs


def _write_coverage_picture(base: Path, mosaic: Mosaic, texts: dict[str, str]) -> str:
    depth = np.nan_to_num(downscale(FitsRows(mosaic.coverage_path), COVERAGE_PICTURE_PX)[0])
    path = Path(f"{base}_coverage.png")
    return str(write_png(path, coverage_rgba(depth), texts=texts, durable=False))


def _write_pictures(
    base: Path,
    picture: FinishedPicture,
    mosaic: Mosaic,
    frames: Sequence[RegisteredFrame],
    options: OutputOptions,
    texts: dict[str, str],
    context: RunContext,
) -> dict[str, str]:
    shown = picture.render()
    paths = {"preview": write_picture(Path(f"{base}_preview.png"), shown, "png", texts=texts, durable=False)}
    for form in (form for form in options.formats if form in PICTURES):
        rgba = picture.render(16) if form == "tiff16" else shown
        path = Path(f"{base}_picture{ENDINGS[form]}")
        paths[f"picture_{form}"] = write_picture(path, rgba, form, texts=texts, durable=False)
    if options.annotation:
        note = annotation_of(shown, picture, mosaic, frames)
        paths |= write_annotation(base, shown, note, picture, texts)
    if options.zoom or options.hips:
        every_pixel = EveryPixel(picture, mosaic)
        if options.zoom:
            paths |= write_zoom(base, shown, every_pixel, mosaic, frames, context.cancel.check)
        if options.hips:
            paths |= write_sphere(base, every_pixel, mosaic, context)
    return {kind: str(path) for kind, path in paths.items()}


def _write_calibrated(path: Path, rows: FitsRows, mosaic: Mosaic, run_id: str) -> Path:
    solution = mosaic.colour.solution
    assert solution is not None
    factors = tuple(10.0 ** (0.4 * (UNIT_MAG - point.at_white)) for point in solution.zero_points)
    cards = {
        **mosaic.grid.wcs_cards,
        **mosaic.colour.cards(),
        RUN_ID: (run_id, "run that made this file"),
        "BUNIT": ("nmgy", "1 is a star of the white colour with V = 22.5"),
    }
    return write_calibrated_fits(path, rows, factors, cards, durable=False)


def _remove_old(base: Path, outputs: dict[str, str], context: RunContext) -> None:
    """Note what an earlier mosaic of this name left and this run did not make anew: it would not fit any more."""
    current = {Path(path).relative_to(base.parent).parts[0] for path in outputs.values()}
    files = [base.name + ending for ending in OPTIONAL_ENDINGS]
    folders = [base.name + ending for ending in OPTIONAL_FOLDERS]
    old = [name for name in files if (context.output_dir / name).is_file()]
    old += [name for name in folders if is_own_folder(context.output_dir / name)]
    old = [name for name in old if name not in current]
    context.results.replaces(old)
    if old:
        context.say("run_info_old_outputs_removed", files=old)
