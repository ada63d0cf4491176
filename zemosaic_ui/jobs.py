"""Work for child processes of the window: facts about the machine, a plan, a demo night, survey, measuring, solving.

Each function is called as ``job(queue, ..., cancel_event=event)`` by `ChildProcess`, puts plain messages
``(kind, payload)`` on the queue and imports what it needs itself, so that the window stays light.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SkipItem, ZeMosaicError
from zemosaic_settings import Settings
from zemosaic_ui.filter_model import FrameRow

__all__ = ["count_files", "demo_night", "doctor", "gpu_facts", "measure", "plan", "solve", "survey"]

BATCH = 100


def gpu_facts(queue: Any, config: Mapping[str, Any], *, cancel_event: Any) -> None:
    """Tell whether the graphics card can be used: ``("gpu", {ok, reason_key, detail, name, total_bytes, ...})``.

    ``wanted`` names a card that was wished for and is not there; ``calm`` says that nothing is wrong.
    """
    from zemosaic_gpu_policy import CALM_REASONS, gpu_status

    settings = Settings.from_mapping(config)
    try:
        status = gpu_status(choice=settings.gpu_choice)
    except ZeMosaicError as error:  # a variable of the environment that would stop a run too
        queue.put(("gpu", {**error.values, "ok": False, "reason_key": error.key, "detail": str(error)}))
        return
    device = status.device
    facts = {
        "ok": status.ok,
        **status.reason_values,
        "calm": status.reason in CALM_REASONS,
        "wanted": status.unmet_wish,
        "name": device.name if device else "",
        "total_bytes": device.total_bytes if device else 0,
    }
    queue.put(("gpu", facts))


def doctor(queue: Any, config: Mapping[str, Any], config_path: str, *, cancel_event: Any) -> None:
    """Examine the installation: one ``("finding", {...})`` after the other."""
    from zemosaic_pipeline.doctor import examine

    settings = Settings.from_mapping(config)
    for finding in examine(settings, config_path=config_path):
        queue.put(("finding", finding.to_dict()))
        if cancel_event.is_set():
            return


def plan(
    queue: Any, input_dir: str, output_dir: str, config: Mapping[str, Any], *, cancel_event: Any
) -> None:
    """Plan a run: ``("plan", facts)`` or ``("error", (key, values))``."""
    from zemosaic_pipeline.plan import make_plan

    try:
        made = make_plan(input_dir, output_dir, Settings.from_mapping(config))
    except ZeMosaicError as error:
        queue.put(("error", (error.key, error.values)))
        return
    queue.put(("plan", made.to_dict()))


def demo_night(queue: Any, folder: str, n_frames: int, *, cancel_event: Any) -> None:
    """Write a made-up night: ``("demo", folder of the frames)``."""
    from zemosaic_ui.demo import prepare_demo

    def say(key: str, level: str = "INFO", **values: Any) -> None:
        queue.put(("say", (key, values)))

    try:
        frames = prepare_demo(Path(folder), n_frames, say)
    except ZeMosaicError as error:
        queue.put(("error", (error.key, error.values)))
        return
    queue.put(("demo", str(frames)))


def count_files(folder: str, *, limit: int = 200_000) -> tuple[int, int]:
    """Return number and bytes of the FITS files below a folder; stops counting at ``limit`` files."""
    from zemosaic_io.folders import EXCLUDED_FOLDERS, is_frame_name

    number = size = 0
    todo = [folder]
    while todo and number < limit:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in EXCLUDED_FOLDERS:
                            todo.append(entry.path)
                    elif is_frame_name(entry.name):
                        number += 1
                        size += entry.stat().st_size
        except OSError:
            continue  # a folder that cannot be read is reported by the survey, with its reason
    return number, size


# ---------------------------------------------------------------------------------------------- the filter


def survey(
    queue: Any,
    folder: str,
    output_dir: str,
    *,
    recursive: bool,
    files: Sequence[str] | None,
    only_stacks: bool = False,
    stacks_dir: str = "",
    cancel_event: Any,
) -> None:
    """Read all headers: ``("total", n)``, then ``("rows", [FrameRow, ...])`` in batches, or ``("error", ...)``.

    Finished stacks are those of ``stacks_dir``, and with ``only_stacks`` all files that are looked at.
    """
    from zemosaic_io.folders import survey_files
    from zemosaic_pipeline.tile_intake import look_at_stacks, tile_files, tile_folders

    given = {"input_dir": folder, "output_dir": output_dir or ".", "tiles_dir": stacks_dir}
    apart = [Path(output_dir)] if output_dir else []
    stacks: list[Path] = []
    paths: list[Path] = []
    try:
        if stacks_dir:
            (own,) = tile_folders(Settings.from_mapping(given)).folders
            stacks = tile_files(own, recursive=recursive, exclude=apart)
            apart.append(own)
        if only_stacks:
            own_files = tile_files(Path(folder), recursive=recursive, exclude=apart) if not files else []
            stacks += [Path(f) for f in files or ()] + [path for path in own_files if path not in stacks]
        elif files:
            paths = [Path(f) for f in files]
        else:
            paths = survey_files(Path(folder), recursive=recursive, exclude=apart)
    except ZeMosaicError as error:
        queue.put(("error", (error.key, error.values)))
        return
    queue.put(("total", len(paths) + len(stacks)))
    for start in range(0, len(paths), BATCH):
        if cancel_event.is_set():
            return
        queue.put(("rows", [frame_row(path, Path(folder)) for path in paths[start : start + BATCH]]))
    for path, found in look_at_stacks(stacks):
        if cancel_event.is_set():
            return
        queue.put(("rows", [_stack_row(path, found)]))


def _stack_row(path: Path, found: Any) -> FrameRow:
    """Return what is known of a finished stack, or why it cannot be used."""
    row = (
        _refused_row(path, found)
        if isinstance(found, SkipItem)
        else placed_row(found, found.wcs_cards, "header")
    )
    return replace(row, is_stack=True)


def _refused_row(path: Path, skip: SkipItem) -> FrameRow:
    values = {name: value for name, value in skip.values.items() if name != "path"}
    return FrameRow(str(path), None, refused_key=skip.key, refused_values=values)


def frame_row(path: Path, root: Path | None = None) -> FrameRow:
    """Return what the header of a file below ``root`` tells, or why the file cannot be used."""
    from zemosaic_io.headers import read_frame_info
    from zemosaic_io.light_frames import refuse_other_than_light

    try:
        info = read_frame_info(path)
        refuse_other_than_light(info, root)
    except SkipItem as skip:
        return _refused_row(path, skip)
    return placed_row(info, info.wcs_cards, "header")


def placed_row(info: Any, cards: Mapping[str, Any] | None, source: str) -> FrameRow:
    """Return the row of a frame with its footprint from WCS cards, or from the mount's hint without them."""
    common: dict[str, Any] = {
        "path": str(info.path),
        "info": info,
        "date": info.date_obs,
        "exposure": float("nan") if info.exposure_s is None else info.exposure_s,
        "instrument": info.instrument,
    }
    height, width = info.shape_hw
    if cards is not None:
        ra, dec, angle, corners = _wcs_footprint(cards, height, width)
        return FrameRow(wcs=source, ra=ra, dec=dec, angle=angle, corners=corners, **common)
    if info.ra_deg is None or info.dec_deg is None:
        return FrameRow(wcs="none", **common)
    corners = ()
    if info.scale_arcsec is not None:
        corners = _upright_footprint(info.ra_deg, info.dec_deg, width, height, info.scale_arcsec / 3600.0)
    return FrameRow(wcs="hint", ra=info.ra_deg, dec=info.dec_deg, corners=corners, **common)


def _wcs_footprint(cards: Mapping[str, Any], height: int, width: int) -> tuple[float, float, float, tuple]:
    import numpy as np
    from astropy.wcs import WCS

    wcs = WCS(dict(cards))
    x, y = (width - 1) / 2, (height - 1) / 2
    px = np.array([x, x + 1, -0.5, width - 0.5, width - 0.5, -0.5])
    py = np.array([y, y, -0.5, -0.5, height - 0.5, height - 0.5])
    ra, dec = wcs.all_pix2world(px, py, 0)
    east = np.radians((ra[1] - ra[0] + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec[0]))
    angle = float(np.degrees(np.arctan2(east, np.radians(dec[1] - dec[0]))) % 360.0)
    corners = tuple((float(a % 360.0), float(d)) for a, d in zip(ra[2:], dec[2:], strict=True))
    return float(ra[0] % 360.0), float(dec[0]), angle, corners


def _upright_footprint(ra: float, dec: float, width: int, height: int, scale_deg: float) -> tuple:
    from zemosaic_ui.sky_view import SkyPlane

    plane = SkyPlane(ra, dec)
    x, y = width * scale_deg / 2, height * scale_deg / 2
    return tuple(plane.unproject(dx, dy) for dx, dy in ((-x, -y), (x, -y), (x, y), (-x, y)))


def measure(queue: Any, infos: Sequence[Any], config: Mapping[str, Any], *, cancel_event: Any) -> None:
    """Measure the frames in worker processes: ``("measures", [(path, {...}), ...])``, ``("refused", ...)``."""
    import tempfile

    from zemosaic_core.errors import Cancelled
    from zemosaic_pipeline.context import CancelToken
    from zemosaic_pipeline.measure import measure_frame
    from zemosaic_pipeline.plan import MeasureOptions
    from zemosaic_pipeline.worker_pool import WorkerPool

    options = MeasureOptions(quality_sigma=4.0, exclude_flagged=False, find_hot_pixels=False)
    pool = WorkerPool(max(1, round(0.75 * (os.cpu_count() or 1))), check=CancelToken(cancel_event).check)
    with tempfile.TemporaryDirectory(prefix="zemosaic_measure_") as folder:
        tasks = [(info, options, f"{folder}/{number}.npz") for number, info in enumerate(infos)]
        try:
            for position, found in pool.map(
                measure_frame,
                tasks,
                name_of=lambda task: str(task[0].path),
                size_of=lambda task: int(task[0].size_bytes),
            ):
                _send_measure(queue, str(infos[position].path), found)
        except Cancelled:
            return
        finally:
            pool.close()


def _send_measure(queue: Any, path: str, found: Any) -> None:
    if isinstance(found, SkipItem):
        queue.put(("measures", [(path, {"stars": float(found.values.get("stars", 0))})]))
        return
    values = {
        "stars": float(found.n_stars),
        "fwhm": found.fwhm_px,
        "elongation": found.elongation,
        "background": sum(found.sky_adu) / len(found.sky_adu),
    }
    queue.put(("measures", [(path, values)]))


def solve(queue: Any, paths: Sequence[str], config: Mapping[str, Any], *, cancel_event: Any) -> None:
    """Solve frames one after the other: ``("solved", FrameRow)`` or ``("unsolved", (path, key, values))``."""
    import tempfile

    from zemosaic_core.errors import Cancelled
    from zemosaic_pipeline.solve_files import iter_solutions

    settings = Settings.from_mapping(config)
    with tempfile.TemporaryDirectory(prefix="zemosaic_solve_") as folder:
        try:
            for found in iter_solutions([Path(p) for p in paths], settings, Path(folder), cancel_event):
                if found.ok:
                    queue.put(("solved", placed_row(found.info, found.outcomes[-1].wcs_cards, "solved")))
                    continue
                last = found.outcomes[-1] if found.outcomes else found
                queue.put(("unsolved", (str(found.path), last.key, dict(last.values or {}))))
        except Cancelled:
            return
