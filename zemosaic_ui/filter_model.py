"""The frame filter without a toolkit: facts about every frame as columns, rules that exclude, and the choice.

A frame is kept unless a rule excludes it; what the user decided by hand outranks every rule. Columns are NumPy
arrays, so that 10,000 frames are sorted, cut and regrouped within a few milliseconds.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import SaveFailed
from zemosaic_io.atomic import replace_durably
from zemosaic_ui.sky_view import (
    SkyPlane,
    closed_lines,
    group_colours,
    inside_polygon,
    middle_direction,
    quality_colours,
)

__all__ = ["COLUMNS", "GROUP_OF_STACKS", "METRICS", "FilterModel", "FilterResult", "FrameRow", "Rules"]

COLUMNS = (
    "file",
    "date",
    "exposure",
    "instrument",
    "wcs",
    "stars",
    "fwhm",
    "elongation",
    "background",
    "reason",
)
"""Columns of the table, in order; the text keys are ``filter_column_<name>``."""

METRICS = {"stars": False, "fwhm": True, "elongation": True, "background": True}
"""Quality columns with a histogram -> whether low values are the good ones."""

GROUP_OF_STACKS = -2
"""Number of the block of the table in which finished stacks stand."""

_FLOATS = ("exposure", "stars", "fwhm", "elongation", "background", "ra", "dec", "angle")


@dataclass(frozen=True)
class FrameRow:
    """What the survey tells about one file.

    Attributes
    ----------
    info : FrameInfo or None
        None when the file cannot be used at all; then ``refused_key`` says why.
    is_stack : bool
        A finished stack, which is a tile already; otherwise a frame.
    wcs : str
        ``header``, ``solved``, ``hint`` (only where the mount thinks it points) or ``none``.
    ra, dec : float
        Centre, degrees; NaN when unknown.
    angle : float
        Position angle of the +x axis, degrees; NaN when unknown.
    corners : tuple of (ra, dec)
        Footprint, degrees; empty when unknown.
    """

    path: str
    info: Any
    wcs: str = "none"
    ra: float = float("nan")
    dec: float = float("nan")
    angle: float = float("nan")
    corners: tuple[tuple[float, float], ...] = ()
    date: str = ""
    exposure: float = float("nan")
    instrument: str = ""
    refused_key: str = ""
    refused_values: dict[str, Any] = field(default_factory=dict)
    is_stack: bool = False


@dataclass
class Rules:
    """What excludes frames without a look at each of them.

    Attributes
    ----------
    max_distance_deg : float or None
        Frames whose centre is farther from the middle of the night's field are excluded.
    instruments : frozenset of str or None
        Only these are kept; None keeps all.
    cuts : dict
        Metric -> (low, high), inclusive; frames without a value pass.
    need_wcs : bool
        Frames without a place in the sky are excluded.
    """

    max_distance_deg: float | None = None
    instruments: frozenset[str] | None = None
    cuts: dict[str, tuple[float, float]] = field(default_factory=dict)
    need_wcs: bool = False


@dataclass(frozen=True)
class FilterResult:
    """The choice: kept and excluded frames by position, and the groups of kept frames."""

    kept: np.ndarray
    excluded: np.ndarray
    groups: tuple[np.ndarray, ...]


class FilterModel:
    """All frames of a folder and the choice among them."""

    def __init__(self) -> None:
        self.rules = Rules()
        self._decided: dict[str, int] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._empty()

    def _empty(self) -> None:
        self.rows: list[FrameRow] = []
        self.selected = np.zeros(0, dtype=bool)
        self.group = np.zeros(0, dtype=np.int32)
        self._columns: dict[str, np.ndarray] = {name: np.zeros(0) for name in _FLOATS}
        self._corners = np.zeros((0, 4, 2))
        self._manual = np.zeros(0, dtype=np.int8)
        self._stack = np.zeros(0, dtype=bool)
        self._refused = np.zeros(0, dtype=bool)
        self._instrument = np.zeros(0, dtype=object)
        self._position: dict[str, int] = {}
        self._plane: SkyPlane | None = None
        self._hay: list[str] = []
        self._cache: dict[str, Any] = {}
        self._undo: list[tuple[np.ndarray, Rules]] = []

    # ------------------------------------------------------------------ listeners

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener(what)``: ``rows``, ``choice``, ``selection``, ``groups`` or ``measures`` changed."""
        self._listeners.append(listener)

    def _changed(self, what: str) -> None:
        self._cache.clear()
        for listener in tuple(self._listeners):
            listener(what)

    # ------------------------------------------------------------------ filling

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.rows)

    def add(self, rows: Sequence[FrameRow]) -> None:
        """Append files of the survey."""
        if not rows:
            return
        for row in rows:
            self._position[row.path] = len(self.rows)
            self.rows.append(row)
        n = len(rows)
        nan = np.full(n, np.nan)
        new = {
            "exposure": np.array([row.exposure for row in rows], dtype=float),
            "ra": np.array([row.ra for row in rows], dtype=float),
            "dec": np.array([row.dec for row in rows], dtype=float),
            "angle": np.array([row.angle for row in rows], dtype=float),
        }
        for name in _FLOATS:
            self._columns[name] = np.concatenate([self._columns[name], new.get(name, nan)])
        corners = np.full((n, 4, 2), np.nan)
        for i, row in enumerate(rows):
            if len(row.corners) == 4:
                corners[i] = row.corners
        self._corners = np.concatenate([self._corners, corners])
        by_hand = np.array([self._decided.get(row.path, 0) for row in rows], dtype=np.int8)
        self._manual = np.concatenate([self._manual, by_hand])
        self._stack = np.concatenate([self._stack, np.array([row.is_stack for row in rows], dtype=bool)])
        self._refused = np.concatenate([self._refused, np.array([bool(r.refused_key) for r in rows])])
        self._instrument = np.concatenate(
            [self._instrument, np.array([r.instrument for r in rows], dtype=object)]
        )
        self.selected = np.concatenate([self.selected, np.zeros(n, dtype=bool)])
        self.group = np.concatenate([self.group, np.full(n, -1, dtype=np.int32)])
        self._plane = None
        self._changed("rows")

    def clear(self) -> None:
        """Forget all files and what could be undone; what was decided by hand comes back with its file."""
        self._decided |= {
            row.path: int(by_hand) for row, by_hand in zip(self.rows, self._manual, strict=True)
        }
        self._empty()
        self._changed("rows")

    def set_measures(self, measures: Iterable[tuple[str, dict[str, float]]]) -> None:
        """Take measured values by path: any of ``stars fwhm elongation background``."""
        for path, values in measures:
            position = self._position.get(path)
            if position is not None:
                for name, value in values.items():
                    self._columns[name][position] = value
        self._changed("measures")

    def set_solution(self, row: FrameRow) -> None:
        """Replace a frame's place in the sky after it was solved."""
        position = self._position[row.path]
        self.rows[position] = row
        for name in ("ra", "dec", "angle"):
            self._columns[name][position] = getattr(row, name)
        if len(row.corners) == 4:
            self._corners[position] = row.corners
        self._plane = None
        self._changed("rows")

    def set_groups(self, groups: Sequence[np.ndarray]) -> None:
        """Take the groups of a preview: arrays of frame positions."""
        self.group = np.full(len(self), -1, dtype=np.int32)
        for number, members in enumerate(groups):
            self.group[members] = number
        self._changed("groups")

    # ------------------------------------------------------------------ facts

    def column(self, name: str) -> np.ndarray:
        """Return a numeric column, shape (N,), NaN where unknown."""
        return self._columns[name]

    @property
    def corners(self) -> np.ndarray:
        """Footprints, shape (N, 4, 2): RA and Dec in degrees."""
        return self._corners

    @property
    def usable(self) -> np.ndarray:
        """Which files are frames at all, shape (N,) bool."""
        return ~self._refused

    @property
    def is_stack(self) -> np.ndarray:
        """Which files are finished stacks, shape (N,) bool."""
        return self._stack

    @property
    def has_place(self) -> np.ndarray:
        """Which frames have a real WCS, shape (N,) bool."""
        return np.array([row.wcs in ("header", "solved") for row in self.rows], dtype=bool)

    @property
    def plane(self) -> SkyPlane:
        """Tangent plane in the middle of all frames."""
        if self._plane is None:
            self._plane = SkyPlane(*middle_direction(self._columns["ra"], self._columns["dec"]))
        return self._plane

    @property
    def instruments(self) -> list[str]:
        """Names of all instruments, sorted."""
        return sorted({row.instrument for row in self.rows if row.info is not None or row.instrument})

    def index_of(self, path: str) -> int:
        """Return the position of a file."""
        return self._position[path]

    # ------------------------------------------------------------------ the choice

    @property
    def ruled_out(self) -> np.ndarray:
        """Number of the first rule that excludes each frame, 0 = none; see `reason_key`."""
        if "ruled" in self._cache:
            return self._cache["ruled"]
        code = np.zeros(len(self), dtype=np.int8)
        rules = self.rules
        for name, (low, high) in rules.cuts.items():
            values = self._columns[name]
            with np.errstate(invalid="ignore"):
                code[(values < low) | (values > high)] = 4
        if rules.instruments is not None:
            code[~np.isin(self._instrument.astype(str), list(rules.instruments))] = 3
        if rules.max_distance_deg is not None:
            with np.errstate(invalid="ignore"):
                far = self.plane.distance(self._columns["ra"], self._columns["dec"]) > rules.max_distance_deg
            code[far] = 2
        if rules.need_wcs:
            code[~self.has_place] = 1
        self._cache["ruled"] = code
        return code

    @property
    def kept(self) -> np.ndarray:
        """Which frames take part, shape (N,) bool."""
        if "kept" not in self._cache:
            chosen = (self._manual > 0) | ((self._manual == 0) & (self.ruled_out == 0))
            self._cache["kept"] = chosen & ~self._refused
        return self._cache["kept"]

    def reason_key(self, position: int) -> str:
        """Return the text key of why a frame is excluded, or an empty string."""
        if self._refused[position]:
            return self.rows[position].refused_key
        if self.kept[position]:
            return ""
        if self._manual[position] < 0:
            return "filter_reason_manual"
        rule = ("", "wcs", "distance", "instrument", "quality")[self.ruled_out[position]]
        return f"filter_reason_{rule}"

    def set_kept(self, positions: np.ndarray | Sequence[int], keep: bool) -> None:
        """Keep or exclude frames by hand."""
        self._remember()
        self._manual[np.asarray(positions, dtype=int)] = 1 if keep else -1
        self._changed("choice")

    def clear_manual(self, positions: np.ndarray | Sequence[int] | None = None) -> None:
        """Leave frames (or all) to the rules again."""
        self._remember()
        self._manual[slice(None) if positions is None else np.asarray(positions, dtype=int)] = 0
        self._changed("choice")

    def set_rules(self, **changes: Any) -> None:
        """Change some of the rules."""
        self._remember()
        self.rules = Rules(**{**self.rules.__dict__, **changes})
        self._changed("choice")

    def set_cut(self, metric: str, limits: tuple[float, float] | None) -> None:
        """Set or remove the limits of a quality metric."""
        cuts = {name: cut for name, cut in self.rules.cuts.items() if name != metric}
        if limits is not None:
            cuts[metric] = limits
        self.set_rules(cuts=cuts)

    def undo(self) -> bool:
        """Take back the last change of the choice; return whether there was one."""
        if not self._undo:
            return False
        self._manual, self.rules = self._undo.pop()
        self._manual = np.concatenate([self._manual, np.zeros(len(self) - len(self._manual), dtype=np.int8)])
        self._changed("choice")
        return True

    def _remember(self) -> None:
        self._undo.append((self._manual.copy(), self.rules))
        del self._undo[:-50]

    # ------------------------------------------------------------------ selection

    def select(self, positions: np.ndarray | Sequence[int], *, mode: str = "replace") -> None:
        """Highlight frames: ``replace``, ``add`` or ``toggle``."""
        mask = np.zeros(len(self), dtype=bool)
        mask[np.asarray(positions, dtype=int)] = True
        if mode == "add":
            mask |= self.selected
        elif mode == "toggle":
            mask ^= self.selected
        if not np.array_equal(mask, self.selected):
            self.selected = mask
            self._changed("selection")

    def in_rectangle(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """Return positions of frames whose centre lies in a rectangle of the sky plane (degrees)."""
        polygon = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return self.in_polygon(polygon)

    def in_polygon(self, polygon: np.ndarray) -> np.ndarray:
        """Return positions of frames whose centre lies in a polygon (M, 2) of the sky plane (degrees)."""
        points = self.plane.project(self._columns["ra"], self._columns["dec"])
        return np.flatnonzero(inside_polygon(points, polygon))

    def nearest(self, x: float, y: float, reach: float) -> int | None:
        """Return the frame whose centre is nearest to a point of the sky plane, within ``reach`` degrees."""
        if not len(self):
            return None
        points = self.plane.project(self._columns["ra"], self._columns["dec"])
        distance = np.hypot(points[:, 0] - x, points[:, 1] - y)
        if not np.isfinite(distance).any():
            return None
        best = int(np.nanargmin(distance))
        return best if distance[best] <= reach else None

    def outlines(self, colour_by: str, *, dark: bool) -> list[tuple[tuple[int, int, int], np.ndarray]]:
        """Return the footprints to draw: a colour and a closed line (M, 2) with NaN between footprints.

        Parameters
        ----------
        colour_by : str
            ``group``, ``state``, or a quality metric.
        """
        plane_corners = self.plane.project(self._corners[..., 0], self._corners[..., 1])
        drawn = np.isfinite(plane_corners).all(axis=(1, 2)) & self.usable
        if colour_by == "group":
            colours = group_colours(self.group, dark=dark)
        elif colour_by == "state":
            colours = self._state_colours()
        else:
            colours = quality_colours(self._columns[colour_by], low_is_good=METRICS[colour_by])
        colours[~self.kept] = (92, 92, 96) if dark else (178, 176, 172)
        found = []
        codes = colours.astype(np.int64) @ np.array([65536, 256, 1])
        for code in np.unique(codes[drawn]):
            members = np.flatnonzero(drawn & (codes == code))
            rgb = (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255)
            found.append((rgb, closed_lines(plane_corners[members])))
        return found

    def selected_outline(self) -> np.ndarray:
        """Return the footprints of the selected frames as one line with NaN gaps."""
        corners = self._corners[self.selected]
        return closed_lines(self.plane.project(corners[..., 0], corners[..., 1]))

    def _state_colours(self) -> np.ndarray:
        table = {
            "header": (70, 170, 150),
            "solved": (110, 170, 235),
            "hint": (222, 178, 70),
            "none": (150, 150, 150),
        }
        return np.array([table[row.wcs] for row in self.rows], dtype=np.uint8).reshape(-1, 3)

    def histogram(self, metric: str, *, bins: int = 48) -> tuple[np.ndarray, np.ndarray]:
        """Return edges (bins + 1) and counts of a quality metric; the 0.5 % wildest values share the end bins."""
        values = self._columns[metric][self.usable]
        values = values[np.isfinite(values)]
        if not len(values):
            return np.zeros(0), np.zeros(0)
        low, high = np.percentile(values, [0.25, 99.75])
        if high <= low:
            low, high = low - 0.5, low + 0.5
        counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
        return edges, counts

    # ------------------------------------------------------------------ the table

    def order(
        self, column: str, *, descending: bool = False, text: str = "", show: str = "all"
    ) -> np.ndarray:
        """Return the positions to show, sorted by a column.

        Parameters
        ----------
        text : str
            Only files whose name, date or instrument contains every word.
        show : str
            ``all``, ``kept``, ``excluded`` or ``selected``.
        """
        mask = np.ones(len(self), dtype=bool)
        if show == "kept":
            mask = self.kept.copy()
        elif show == "excluded":
            mask = ~self.kept
        elif show == "selected":
            mask = self.selected.copy()
        words = text.casefold().split()
        if words:
            mask &= np.fromiter((all(w in hay for w in words) for hay in self._haystacks()), bool, len(self))
        positions = np.flatnonzero(mask)
        keys = self._sort_keys(column)[positions]
        ranked = np.argsort(keys, kind="stable")
        if descending:
            ranked = np.argsort(-_ranks(keys), kind="stable")
        return positions[ranked]

    def by_group(self, positions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Split positions by group, keeping their order; then frames without a group (-1), then finished stacks."""
        stack = self.is_stack[positions]
        groups = np.where(stack, GROUP_OF_STACKS, np.maximum(self.group[positions], -1))
        numbers = [*(int(g) for g in np.unique(groups) if g >= 0), -1, GROUP_OF_STACKS]
        found = [(number, positions[groups == number]) for number in numbers]
        return [(number, members) for number, members in found if len(members)]

    def _haystacks(self) -> list[str]:
        for row in self.rows[len(self._hay) :]:
            self._hay.append(f"{os.path.basename(row.path)} {row.date} {row.instrument}".casefold())
        return self._hay

    def _sort_keys(self, column: str) -> np.ndarray:
        if column in self._columns:
            return self._columns[column]
        if column == "reason":
            return np.array([self.reason_key(i) for i in range(len(self))])
        source = {
            "file": lambda r: os.path.basename(r.path).casefold(),
            "date": lambda r: r.date,
            "instrument": lambda r: r.instrument.casefold(),
            "wcs": lambda r: r.wcs,
        }[column]
        return np.array([source(row) for row in self.rows])

    # ------------------------------------------------------------------ result

    def result(self) -> FilterResult:
        """Return the choice and the groups of kept frames."""
        kept = self.kept
        groups = tuple(
            np.flatnonzero(kept & (self.group == number))
            for number in range(int(self.group.max(initial=-1)) + 1)
        )
        return FilterResult(np.flatnonzero(kept), np.flatnonzero(~kept), tuple(g for g in groups if len(g)))

    def write_csv(self, path: Path) -> None:
        """Save the table with everything known about each frame.

        Raises
        ------
        SaveFailed
            The file cannot be written.
        """
        temporary = path.with_name(path.name + ".part")
        names = ["path", "kept", "reason", "group", "date", "instrument", "wcs", *_FLOATS]
        try:
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(names)
                for i, row in enumerate(self.rows):
                    numbers = [_plain(self._columns[name][i]) for name in _FLOATS]
                    words = [row.path, int(self.kept[i]), self.reason_key(i), int(self.group[i]), row.date]
                    writer.writerow([*words, row.instrument, row.wcs, *numbers])
            replace_durably(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SaveFailed(
                "ui_csv_not_saved", f"{path}: {error}", path=str(path), detail=str(error)
            ) from error


def _ranks(keys: np.ndarray) -> np.ndarray:
    """Dense ranks; missing numbers (NaN) rank lowest, so that they stay last when the order is turned round."""
    _, ranks = np.unique(keys, return_inverse=True)
    if keys.dtype.kind == "f":
        ranks = np.where(np.isnan(keys), -1, ranks)
    return ranks


def _plain(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
