"""What the frames chosen in the filter will become: groups, canvas, memory and time, within a moment.

The groups come from the same function as the run's, the costs from the same plan. Only the canvas is simpler:
the box around the footprints on a tangent plane, which differs from the run's grid by its exact orientation.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import ZeMosaicError
from zemosaic_settings import Settings
from zemosaic_ui.filter_model import FilterModel
from zemosaic_ui.sky_view import SkyPlane
from zemosaic_ui.work_thread import WorkThread

__all__ = ["PlanPreview", "PlanQuestion", "PlanWorker", "question_of"]


@dataclass(frozen=True)
class PlanQuestion:
    """The chosen frames as arrays, and the settings."""

    number: int
    positions: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    angle: np.ndarray
    corners: np.ndarray
    times: np.ndarray
    infos: tuple[Any, ...]
    is_stack: np.ndarray
    plane: SkyPlane
    config: Mapping[str, Any]


@dataclass(frozen=True)
class PlanPreview:
    """The answer.

    Attributes
    ----------
    groups : tuple of ndarray
        Positions of frames in the filter model; finished stacks are in none.
    canvas_hw : tuple of int
        Height and width of the mosaic, px; zeros when the scale is unknown.
    memory_bytes, disk_bytes : int
    seconds : float
    without_place : int
        Chosen frames whose place is not known yet.
    stray : tuple of int
        Frames far from all others, that would blow the canvas up; a run leaves them out unless it is told not to.
    problem : tuple of (key, values) or None
    n_stacks : int
        Chosen stacks whose place is known.
    far_left_out : bool
        Whether a run leaves `stray` out; then the mosaic is that of the others.
    """

    number: int
    groups: tuple[np.ndarray, ...]
    canvas_hw: tuple[int, int]
    memory_bytes: int
    disk_bytes: int
    seconds: float
    without_place: int
    stray: tuple[int, ...]
    problem: tuple[str, dict[str, Any]] | None = None
    n_stacks: int = 0
    far_left_out: bool = True


def question_of(model: FilterModel, settings: Settings, number: int) -> PlanQuestion:
    """Collect what a preview needs from the filter model."""
    positions = np.flatnonzero(model.kept)
    return PlanQuestion(
        number=number,
        positions=positions,
        ra=model.column("ra")[positions],
        dec=model.column("dec")[positions],
        angle=model.column("angle")[positions],
        corners=model.corners[positions],
        times=np.array([model.rows[i].date for i in positions]),
        infos=tuple(model.rows[i].info for i in positions),
        is_stack=model.is_stack[positions],
        plane=model.plane,
        config=settings.to_mapping(),
    )


def answer(question: PlanQuestion) -> PlanPreview:
    """Work a preview out; takes a fraction of a second for 10,000 frames."""
    from zemosaic_core.clustering import cluster_pointings
    from zemosaic_pipeline.outline import far_positions

    settings = Settings.from_mapping(question.config)
    placed = np.isfinite(question.ra) & np.isfinite(question.dec)
    # Frames first, as in a run.
    where = np.concatenate(
        [np.flatnonzero(placed & ~question.is_stack), np.flatnonzero(placed & question.is_stack)]
    )
    n_stacks = int((placed & question.is_stack).sum())
    frames = where[: len(where) - n_stacks]
    without_place = int((~placed).sum())
    if not len(where):
        return PlanPreview(question.number, (), (0, 0), 0, 0, 0.0, without_place, ())
    infos = [question.infos[i] for i in where]
    try:
        members = (
            cluster_pointings(
                question.ra[frames],
                question.dec[frames],
                np.nan_to_num(question.angle[frames]),
                threshold_deg=settings.cluster_panel_threshold,
                orientation_split_deg=settings.cluster_orientation_split_deg,
                target_groups=settings.cluster_target_groups,
                max_per_group=settings.max_raw_per_master_tile,
                times=np.unique(question.times[frames], return_inverse=True)[1],
            )
            if len(frames)
            else []
        )
    except ZeMosaicError as error:
        problem = (error.key, dict(error.values))
        return PlanPreview(question.number, (), (0, 0), 0, 0, 0.0, without_place, (), problem)
    groups = tuple(question.positions[frames[member]] for member in members)
    known = [info for info in infos if info is not None]
    far = far_positions(question.ra[where], question.dec[where], known)
    # What the run leaves out makes its mosaic no larger.
    near = np.arange(len(where))
    if settings.canvas_exclude_outliers:
        near = np.setdiff1d(near, far)
    canvas = _canvas(question, where[near], [infos[i] for i in near])
    stray = tuple(int(question.positions[where[i]]) for i in far)
    memory, disk, seconds = _costs(settings, infos, canvas, n_stacks)
    return PlanPreview(
        question.number,
        groups,
        canvas,
        memory,
        disk,
        seconds,
        without_place,
        stray,
        n_stacks=n_stacks,
        far_left_out=settings.canvas_exclude_outliers,
    )


def _scale_deg(infos: list[Any]) -> float:
    scales = [info.scale_arcsec for info in infos if info is not None and info.scale_arcsec]
    return float(np.median(scales)) / 3600.0 if scales else 0.0


def _canvas(question: PlanQuestion, where: np.ndarray, infos: list[Any]) -> tuple[int, int]:
    scale = _scale_deg(infos)
    corners = question.plane.project(question.corners[where, :, 0], question.corners[where, :, 1])
    points = corners.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if not scale or not len(points):
        return 0, 0
    width, height = (points.max(axis=0) - points.min(axis=0)) / scale
    return int(np.ceil(height)), int(np.ceil(width))


def _costs(
    settings: Settings, infos: list[Any], canvas: tuple[int, int], n_stacks: int
) -> tuple[int, int, float]:
    from zemosaic_pipeline.machine import Machine
    from zemosaic_pipeline.plan import resolve

    known = [info for info in infos if info is not None]
    if not known or not canvas[0]:
        return 0, 0, 0.0
    output = Path(settings.output_dir or ".").expanduser().absolute()
    plan = resolve(settings, known, Machine.probe(output), canvas_hw=canvas, n_tiles=n_stacks)
    disk = sum(max(0, row.disk_bytes) for row in plan.rows)
    return plan.peak_bytes, disk, sum(row.seconds for row in plan.rows)


class PlanWorker:
    """One thread that answers the newest question; older ones are dropped."""

    def __init__(self) -> None:
        self._answer: PlanPreview | None = None
        self._lock = threading.Lock()
        self._thread: WorkThread[PlanQuestion] = WorkThread("plan-preview", self._reply)

    def ask(self, question: PlanQuestion) -> None:
        """Ask for a preview."""
        self._thread.put(question, replaces=lambda older: True)

    def take(self) -> PlanPreview | None:
        """Return the newest answer once."""
        with self._lock:
            answered, self._answer = self._answer, None
            return answered

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _reply(self, question: PlanQuestion) -> None:
        answered = answer(question)
        with self._lock:
            self._answer = answered
