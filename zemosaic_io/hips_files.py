"""A picture as a hierarchical survey (HiPS 1.0): tiles on the sphere for Aladin, Stellarium and their like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from astropy.wcs import WCS

from zemosaic_io.atomic import save_failed

__all__ = ["write_hips"]


def write_hips(
    folder: Path, picture: Path, wcs: WCS, title: str, work_dir: Path, check: Callable[[], None]
) -> Path:
    """Write the tiles of a picture, in the colours of the picture; return the folder.

    Parameters
    ----------
    folder : Path
        Must not exist.
    picture : Path
        A PNG with the first row of FITS at the bottom.
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
    from reproject import reproject_interp
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
                reproject_function=reproject_interp,
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
