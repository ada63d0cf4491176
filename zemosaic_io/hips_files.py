"""A picture as a hierarchical survey (HiPS 1.0): tiles on the sphere for Aladin, Stellarium and their like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_io.atomic import save_failed

__all__ = ["write_hips"]

# Places each way at which a tile asks where the picture lies.
_PROBES = 9
_LEAST_MARGIN_PX = 8


def write_hips(
    folder: Path, picture: Path, wcs: WCS, title: str, work_dir: Path, check: Callable[[], None]
) -> Path:
    """Write the tiles of a picture, in the colours of the picture; return the folder.

    Parameters
    ----------
    folder : Path
        Must not exist.
    picture : Path
        A PNG with the first row of FITS at the bottom. It is held in memory, four bytes a pixel.
    wcs : astropy.wcs.WCS
        Of the picture, celestial.
    title : str
        Name of the survey, of letters that an identifier may have.
    work_dir : Path
        Where a copy of the picture that knows its WCS may lie for the time being.
    check : callable
        Called between tiles; what it raises ends the work.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    # An extra: `output_formats.check_hips` has seen before the run that it is there.
    import pyavm
    from reproject.hips import reproject_to_hips

    def watched(tiles: Iterable[Any], **_: Any) -> Iterator[Any]:
        for tile in tiles:
            check()
            yield tile

    located = work_dir / picture.name
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # The equinox of ICRS is asked for and has none.
            warnings.simplefilter("ignore", UserWarning)
            place = pyavm.AVM.from_wcs(wcs, shape=wcs.array_shape)
            # Scale and rotation lose half a turn where the rotation exceeds a quarter of one, and come before a matrix.
            place.Spatial.Scale = place.Spatial.Rotation = None
            place.Spatial.CDMatrix = wcs.pixel_scale_matrix.ravel().tolist()
            place.embed(str(picture), str(located))
            reproject_to_hips(
                str(located),
                coord_system_out="equatorial",
                reproject_function=_reproject_window,
                output_directory=str(folder),
                progress_bar=watched,
                properties={
                    "creator_did": f"ivo://zemosaic/{title}",
                    "obs_title": title,
                    "hips_status": "private master unclonable",
                },
            )
    except OSError as error:
        raise save_failed(folder, error) from error
    finally:
        located.unlink(missing_ok=True)
    return folder


def _reproject_window(
    source: tuple[np.ndarray, Any], header: Any, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Resample for one tile only what lies behind it: the library would look at the whole picture for each."""
    from reproject import reproject_interp

    image, wcs = source
    tile_hw = int(header["NAXIS2"]), int(header["NAXIS1"])
    rows, columns = (np.linspace(-0.5, size - 0.5, _PROBES) for size in tile_hw)
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(columns, rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sky = WCS(header).pixel_to_world(grid_x, grid_y)
        x, y = (np.asarray(axis) for axis in wcs.world_to_pixel(sky))
    nothing = np.full((*image.shape[:-2], *tile_hw), np.nan), np.zeros((*image.shape[:-2], *tile_hw))
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return nothing
    edges = []
    for places, size in ((y[known], image.shape[-2]), (x[known], image.shape[-1])):
        # Between the probed places the border may bulge.
        margin = _LEAST_MARGIN_PX + (places.max() - places.min()) / _PROBES
        edges.append((max(0, int(places.min() - margin)), min(size, int(places.max() + margin) + 2)))
    (y0, y1), (x0, x1) = edges
    if y0 >= y1 or x0 >= x1:
        return nothing
    window = np.ascontiguousarray(image[..., y0:y1, x0:x1])
    # A gnomonic picture has no far side that would have to be told by going there and back.
    found: tuple[np.ndarray, np.ndarray] = reproject_interp(
        (window, wcs[y0:y1, x0:x1]), header, roundtrip_coords=False, **options
    )
    return found
