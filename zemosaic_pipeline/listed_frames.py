"""Which frames a list in the input folder names, in which batches; and what callers know of frames besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.sphere import image_geometry
from zemosaic_io.stack_plan import StackPlan, find_stack_plan, read_stack_plan
from zemosaic_io.wcs_read import celestial_cards, linear_scale_arcsec
from zemosaic_pipeline.records import Frame
from zemosaic_settings import Settings

__all__ = ["frames_with_known_wcs", "listed_batches", "listed_frames"]


def listed_frames(settings: Settings) -> StackPlan | None:
    """Return the list of frames in the input folder; None when there is none, or it shall not count.

    Raises
    ------
    RunFailed
        The list cannot be used; one sentence says why.
    """
    if settings.grid_mode == "off":
        return None
    path = find_stack_plan(Path(settings.input_dir))
    if path is None:
        return None
    return read_stack_plan(path, recursive=settings.scan_recursive, exclude=[Path(settings.output_dir)])


def listed_batches(listed: StackPlan | None) -> Sequence[Sequence[str]]:
    """Return the paths of each batch; nothing without a list."""
    return () if listed is None else listed.batches


def frames_with_known_wcs(frames: Sequence[Frame], known: Mapping[str, Mapping[str, Any]]) -> list[Frame]:
    """Return the frames; those whose files have no WCS with the one that is known of them.

    It is no more believed than one of a header: the stars have to confirm it.

    Parameters
    ----------
    known : mapping of str to mapping
        FITS cards of a WCS by path. Cards that describe no WCS of the sky are left aside.
    """
    if not known:
        return list(frames)
    by_path = {str(Path(path).resolve()): cards for path, cards in known.items()}
    found = []
    for frame in frames:
        info = frame.info
        cards = by_path.get(str(Path(info.path).resolve()))
        usable = celestial_cards(cards) if cards and info.wcs_cards is None else None
        if usable is None:
            found.append(frame)
            continue
        place = image_geometry(wcs_of(usable), info.shape_hw)
        info = replace(
            info,
            wcs_cards=usable,
            ra_deg=place.ra_deg,
            dec_deg=place.dec_deg,
            scale_arcsec=linear_scale_arcsec(usable),
        )
        found.append(replace(frame, info=info))
    return found
