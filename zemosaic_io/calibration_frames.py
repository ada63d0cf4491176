"""Darks, flats and bias frames: which files they are and how they were taken, by header, folder and name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zemosaic_core.errors import SkipItem
from zemosaic_io.folders import is_frame_name, survey_files
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_io.light_frames import calibration_kind, says_light

__all__ = ["KINDS", "CalibrationFrame", "frames_at", "read_calibration_frame"]

Kind = Literal["bias", "dark", "flat"]
KINDS: tuple[Kind, ...] = ("bias", "dark", "flat")
_MASTER = re.compile(r"master|stack_\d|stacked|superbias", re.IGNORECASE)
_EXPOSURE = re.compile(
    r"exp[_ -]?(\d+(?:\.\d+)?)|(?<![\d.a-z])(\d+(?:\.\d+)?)(?:s|sec)(?![a-z])", re.IGNORECASE
)
_GAIN = re.compile(r"gain[_ -]?(\d+(?:\.\d+)?)", re.IGNORECASE)
_BINNING = re.compile(r"bin[_ -]?(\d)(?!\d)", re.IGNORECASE)
_CELSIUS = re.compile(r"(?<![\d.a-z])(-?\d+(?:\.\d+)?)C(?![a-z\d])", re.IGNORECASE)


@dataclass(frozen=True)
class CalibrationFrame:
    """A file to calibrate with.

    Attributes
    ----------
    info : FrameInfo
        What the header says; what it does not say is filled in from names of file and folders.
    kind : {'bias', 'dark', 'flat'}
        Darks for flats are darks: their exposure tells what they are for.
    is_master : bool
        Made from several frames by another program.
    """

    info: FrameInfo
    kind: Kind
    is_master: bool


def frames_at(place: Path, kind: Kind) -> tuple[list[CalibrationFrame], list[SkipItem]]:
    """Return the calibration frames in a folder, its subfolders included, or of a single file; and what is none.

    Parameters
    ----------
    place : Path
    kind : {'bias', 'dark', 'flat'}
        What they are when neither header nor names tell.

    Raises
    ------
    RunFailed
        The folder cannot be listed.
    """
    paths = [place] if os.path.isfile(place) and is_frame_name(place.name) else survey_files(place)
    found, refused = [], []
    for path in paths:
        try:
            found.append(read_calibration_frame(path, kind, root=place))
        except SkipItem as skip:
            refused.append(skip)
    return found, refused


def read_calibration_frame(path: Path, kind: Kind | None, *, root: Path | None) -> CalibrationFrame:
    """Read what a calibration frame says about itself.

    Parameters
    ----------
    path : Path
    kind : {'bias', 'dark', 'flat'} or None
        What it is when neither header nor names tell.
    root : Path, optional
        Folder that was searched: the names of those below it count.

    Raises
    ------
    SkipItem
        ``calibration_no_kind``: it is a light frame, a picture, or nothing tells what it is; or as `read_frame_info`.
    """
    info = read_frame_info(path)
    known = calibration_kind(info, root) or kind
    if known is None or says_light(info) or info.axes != "hw":
        raise SkipItem(
            "calibration_no_kind", f"{path} is no dark, flat or bias frame of a camera", path=str(path)
        )
    names = [path.name, *_folders(path, root)]
    is_master = info.stack_count > 1 or bool(_MASTER.search(info.image_type) or _MASTER.search(path.name))
    return CalibrationFrame(_completed(info, names), known, is_master)


def _folders(path: Path, root: Path | None) -> list[str]:
    if root is None or root == path or root not in path.parents:
        return [path.parent.name]
    return [*reversed(path.relative_to(root).parts[:-1]), root.name]


def _completed(info: FrameInfo, names: Iterable[str]) -> FrameInfo:
    """Fill in what the header does not say: ``dark_exp_15_gain_60_bin_1_20C`` says much."""
    names = list(names)

    def told(pattern: re.Pattern[str]) -> float | None:
        for name in names:
            if match := pattern.search(name):
                return float(next(group for group in match.groups() if group is not None))
        return None

    binning = told(_BINNING)
    return replace(
        info,
        exposure_s=told(_EXPOSURE) if info.exposure_s is None else info.exposure_s,
        gain=told(_GAIN) if info.gain is None else info.gain,
        sensor_celsius=told(_CELSIUS) if info.sensor_celsius is None else info.sensor_celsius,
        binning=int(binning) if info.binning == 1 and binning else info.binning,
    )
