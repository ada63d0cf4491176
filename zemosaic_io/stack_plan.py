"""`stack_plan.csv`: which frames of a folder are stacked, in which batches, as ZeAnalyser and ZeMosaic 4 write it.

Columns are known by their names, in any order and case; without a line of names the column of files is found by what
it holds. Paths are taken as they stand, from the folder of the list, or, where a list was written on another computer,
by the name of the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from zemosaic_core.errors import RunFailed
from zemosaic_io.folders import is_frame_name, survey_files
from zemosaic_io.header_values import angle_deg
from zemosaic_io.headers import FrameInfo

__all__ = ["PLAN_NAME", "PlannedFrame", "StackPlan", "find_stack_plan", "planned_infos", "read_stack_plan"]

PLAN_NAME = "stack_plan.csv"
# Lists of a million lines are no lists of frames.
_MOST_BYTES = 200_000_000
# Names of columns; of several that mean the same the first counts.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "file": ("file_path", "filepath", "file", "path", "filename", "fits", "raw"),
    "weight": ("weight", "stack_weight", "frame_weight"),
    "batch": ("batch_id", "batch", "session", "night"),
    "filter": ("filter", "band", "channel"),
    "exposure": ("exposure", "exp", "exptime", "exposure_s"),
    "ra": ("ra", "ra_deg"),
    "dec": ("dec", "dec_deg"),
}


@dataclass(frozen=True)
class PlannedFrame:
    """One line of the list.

    Attributes
    ----------
    path : Path
        A file that is there.
    weight : float
        Factor of the weight that its noise gives it; > 0.
    batch, filter_name : str
        '' where the list does not tell.
    exposure_s, ra_deg, dec_deg : float or None
    """

    path: Path
    weight: float = 1.0
    batch: str = ""
    filter_name: str = ""
    exposure_s: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None


@dataclass(frozen=True)
class StackPlan:
    """What the list says.

    Attributes
    ----------
    path : Path
    frames : tuple of PlannedFrame
        Each file once, in the order of the list.
    missing : tuple of str
        Files of the list that are nowhere.
    n_by_name : int
        Frames found by their name only.
    n_without_weight : int
        Lines of weight 0, which are not stacked.
    """

    path: Path
    frames: tuple[PlannedFrame, ...]
    missing: tuple[str, ...] = ()
    n_by_name: int = 0
    n_without_weight: int = 0

    @property
    def batches(self) -> tuple[tuple[str, ...], ...]:
        """Paths by batch, in the order in which the list begins them; one batch where it tells of none."""
        found: dict[str, list[str]] = {}
        for frame in self.frames:
            found.setdefault(frame.batch, []).append(str(frame.path))
        return tuple(tuple(paths) for paths in found.values())


def find_stack_plan(folder: Path) -> Path | None:
    """Return the list in a folder, whatever the case of its name; None when there is none."""
    try:
        names = sorted(path for path in folder.iterdir() if path.name.lower() == PLAN_NAME)
    except OSError:
        return None  # the survey of the folder says why
    return next((path for path in names if path.is_file()), None)


def _refused(key: str, path: Path, english: str, **values: Any) -> RunFailed:
    return RunFailed(key, f"{path}: {english}", path=str(path), **values)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that hold something, with their numbers."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _refused(
                "stack_plan_unreadable", path, "it is too large for a list of frames", reason="> 200 MB"
            )
        content = path.read_bytes()
    except OSError as error:
        reason = str(error.strerror or error)
        raise _refused("stack_plan_unreadable", path, reason, reason=reason) from error
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise _refused("stack_plan_unreadable", path, "it is no text", reason="UTF-8, Windows-1252")
    if "\0" in text:
        raise _refused("stack_plan_unreadable", path, "it is no text", reason="NUL")
    first = next((line for line in text.splitlines() if line.strip()), "")
    # A comma may be the decimal sign of a list that has semicolons between its columns.
    delimiter = next((mark for mark in ("\t", ";") if mark in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise _refused("stack_plan_unreadable", path, str(error), reason=str(error)) from error
    return [(number, cells) for number, cells in rows if any(cells) and not cells[0].startswith("#")]


def _columns(path: Path, rows: Sequence[tuple[int, list[str]]]) -> tuple[dict[str, int], bool]:
    """Return the place of each known column, and whether the first line holds names.

    Raises
    ------
    RunFailed
        ``stack_plan_no_files_column``: no column holds files.
    """
    names = [cell.lower().replace(" ", "_") for cell in rows[0][1]]
    places = {
        column: next(names.index(name) for name in known if name in names)
        for column, known in COLUMNS.items()
        if any(name in names for name in known)
    }
    if "file" in places:
        return places, True
    holding = [place for place, cell in enumerate(rows[0][1]) if is_frame_name(_name(cell))]
    if len(holding) == 1:
        return {"file": holding[0]}, False
    listed = ", ".join(rows[0][1])[:200]
    raise _refused("stack_plan_no_files_column", path, f"no column holds files ({listed})", columns=listed)


def _name(cell: str) -> str:
    # A path of Windows has parts for this class only; one of other systems has the same parts for it.
    return PureWindowsPath(cell).name


class _Finder:
    """Files by what a list calls them."""

    def __init__(self, folder: Path, recursive: bool, exclude: Iterable[Path]) -> None:
        self._folder, self._recursive, self._exclude = folder, recursive, tuple(exclude)
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, cell: str) -> tuple[Path | None, bool]:
        """Return the file, and whether only its name told; None where there is none, or several have its name."""
        for path in (Path(cell).expanduser(), Path(cell.replace("\\", "/"))):
            place = path if path.is_absolute() else self._folder / path
            try:
                if place.is_file():
                    return place, False
            except (OSError, ValueError):
                continue
        if self._by_name is None:
            self._by_name = {}
            for file in survey_files(self._folder, recursive=self._recursive, exclude=self._exclude):
                self._by_name.setdefault(file.name.lower(), []).append(file)
        same = self._by_name.get(_name(cell).lower(), [])
        return (same[0], True) if len(same) == 1 else (None, False)


def _number(text: str, path: Path, line: int, column: str) -> float | None:
    """Return a number, or None of an empty cell.

    Raises
    ------
    RunFailed
        ``stack_plan_bad_number``: with the line, the column and what stands there.
    """
    if not text or text.lower() in ("nan", "none", "n/a", "na", "-"):
        return None
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        english = f"line {line}, {column}: {text!r} is no number of 0 or more"
        raise _refused("stack_plan_bad_number", path, english, line=line, column=column, value=text[:80])
    return number


def read_stack_plan(path: Path, *, recursive: bool = True, exclude: Iterable[Path] = ()) -> StackPlan:
    """Read a list of frames.

    Parameters
    ----------
    path : Path
        The list; nothing is written.
    recursive : bool
        Files that are only known by their name may lie in folders below that of the list.
    exclude : iterable of Path
        Folders in which such files are not looked for.

    Raises
    ------
    RunFailed
        ``stack_plan_unreadable``, ``stack_plan_empty``, ``stack_plan_no_files_column``, ``stack_plan_bad_number``, or
        ``stack_plan_nothing_there``: none of its files exists.
    """
    rows = _rows(path)
    if not rows:
        raise _refused("stack_plan_empty", path, "it names no frame")
    places, named = _columns(path, rows)
    finder = _Finder(path.parent, recursive, exclude)
    frames: dict[Path, PlannedFrame] = {}
    missing: list[str] = []
    n_by_name = n_without_weight = 0
    for line, cells in rows[1 if named else 0 :]:
        cell = {column: cells[place] if place < len(cells) else "" for column, place in places.items()}
        if not cell["file"]:
            continue
        weight = _number(cell.get("weight", ""), path, line, "weight")
        exposure = _number(cell.get("exposure", ""), path, line, "exposure")
        found, by_name = finder.find(cell["file"])
        if found is None:
            missing.append(cell["file"])
        elif weight == 0:
            n_without_weight += 1
        elif found not in frames:
            n_by_name += by_name
            frames[found] = PlannedFrame(
                found,
                1.0 if weight is None else weight,
                cell.get("batch", ""),
                cell.get("filter", ""),
                exposure or None,
                _angle(cell.get("ra", ""), hours=True),
                _angle(cell.get("dec", ""), hours=False),
            )
    if not frames and not missing:
        raise _refused("stack_plan_empty", path, "it names no frame")
    if not frames:
        raise _refused(
            "stack_plan_nothing_there",
            path,
            f"none of its {len(missing)} files is there, such as {missing[0]}",
            files=len(missing),
            example=missing[0][:200],
        )
    return StackPlan(path, tuple(frames.values()), tuple(missing), n_by_name, n_without_weight)


def _angle(text: str, *, hours: bool) -> float | None:
    """Return degrees; text in parts is hours for a right ascension. A hint that cannot be read is none."""
    return angle_deg(text, hours_if_text=hours)


def planned_infos(plan: StackPlan, infos: Iterable[FrameInfo]) -> list[FrameInfo]:
    """Return headers with what the list says besides.

    The filter is that of the list where it names one; exposure and position stand in where a header has none.
    """
    by_path = {str(frame.path): frame for frame in plan.frames}
    return [_told(info, by_path.get(str(info.path))) for info in infos]


def _told(info: FrameInfo, frame: PlannedFrame | None) -> FrameInfo:
    if frame is None:
        return info
    changes: dict[str, Any] = {}
    if frame.filter_name and frame.filter_name != info.filter_name:
        changes["filter_name"] = frame.filter_name
    if frame.exposure_s is not None and info.exposure_s is None:
        changes["exposure_s"] = frame.exposure_s
    if info.ra_deg is None and frame.ra_deg is not None and frame.dec_deg is not None:
        changes |= {"ra_deg": frame.ra_deg, "dec_deg": frame.dec_deg}
    return replace(info, **changes) if changes else info
