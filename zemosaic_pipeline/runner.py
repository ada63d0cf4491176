"""A whole run, phase after phase: the table of the classic route and what surrounds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zemosaic_core.errors import Cancelled, RunFailed, SaveFailed, SettingsError, ZeMosaicError
from zemosaic_io.manifest import Manifest
from zemosaic_pipeline import (
    phase0_survey,
    phase1_prepare,
    phase2_group,
    phase3_master_tiles,
    phase4_grid,
    phase5_assemble,
    phase6_export,
    phase7_cleanup,
    pixel_masks,
    sky,
    solve_frames,
)
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_pipeline.events import (
    PHASES,
    GpuRecorded,
    Reporter,
    RunStarted,
)
from zemosaic_pipeline.judge_frames import judge_air
from zemosaic_pipeline.plan import Machine, estimate_canvas, make_policy, resolve, worker_count
from zemosaic_pipeline.records import MasterTile, SolvedFrame
from zemosaic_pipeline.report import collect, write_report
from zemosaic_pipeline.routes import groups_of_route
from zemosaic_settings import Settings

__all__ = ["RunResult", "Selection", "run_classic"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Frames and groups the user chose by hand; empty means: take all, group by position."""

    frames: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Selection:
        """Read ``frame_selection`` and ``frame_groups`` as the filter dialog gives them."""
        return Selection(
            tuple(map(str, config.get("frame_selection") or ())),
            tuple(tuple(map(str, group)) for group in config.get("frame_groups") or ()),
        )


@dataclass(frozen=True)
class RunResult:
    """Where everything is, and the report as data."""

    outputs: dict[str, str]
    report: dict[str, Any]


def _check_folders(settings: Settings) -> tuple[Path, Path]:
    folder, output = Path(settings.input_dir), Path(settings.output_dir)
    if not folder.is_dir():
        raise SettingsError(
            "error_input_not_folder", f"input folder {folder} does not exist", path=str(folder)
        )
    if output.resolve() == folder.resolve():
        raise SettingsError(
            "error_output_is_input", f"output folder {output} is the input folder", path=str(output)
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".zemosaic_write_test_{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            "error_output_not_writable",
            f"cannot write to {output}: {error}",
            path=str(output),
            reason=str(error),
        ) from error
    return folder, output


def run_classic(
    settings: Settings,
    report: Reporter,
    *,
    cancel: CancelToken | None = None,
    selection: Selection | None = None,
) -> RunResult:
    """Turn the input folder into a mosaic in the output folder.

    Parameters
    ----------
    settings : Settings
        ``input_dir`` and ``output_dir`` must be set.
    report : Reporter
        Called with every event from this thread.
    cancel : CancelToken, optional
        Asked at item boundaries.
    selection : Selection, optional
        What the user chose by hand.

    Raises
    ------
    SettingsError, RunFailed, SaveFailed, Cancelled
        The run did not give a mosaic; a report was still written where the output folder allows it.
    """
    folder, output = _check_folders(settings)
    selection = selection or Selection()
    machine = Machine.probe(output)
    policy = make_policy(settings, output, on_record=lambda record: report(GpuRecorded(record)))
    try:
        context = RunContext(
            output,
            report=report,
            cancel=cancel or CancelToken(),
            policy=policy,
            workers=worker_count(settings, machine),
            threads=machine.cores,
        )
    except ZeMosaicError:
        policy.close()
        raise
    run = _ClassicRun(settings, folder, selection, machine, context)
    report(RunStarted(context.run_id, str(folder), str(output), tuple(PHASES)))
    try:
        policy.check_required()
        outputs = run.execute()
        facts = run.facts(outputs, "success", None)
        outputs |= write_report(output, facts, settings.language)
        return RunResult(outputs, facts)
    except BaseException as error:
        run.report_failure(error)
        raise
    finally:
        context.close()
        policy.close()


class _ClassicRun:
    """The classic route with what it knows so far, so that a failed run can still tell."""

    def __init__(
        self, settings: Settings, folder: Path, selection: Selection, machine: Machine, context: RunContext
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.selection = selection
        self.machine = machine
        self.context = context
        self.plan: Any = None
        self.n_found = 0
        self.solved: Sequence[SolvedFrame] = ()
        self.placed: Any = None
        self.sky: Any = None
        self.groups: Sequence[Any] = ()
        self.tiles: Sequence[MasterTile] = ()
        self.mosaic: Any = None

    def execute(self) -> dict[str, str]:
        """Go through the phases; return the output files."""
        context = self.context
        manifest = Manifest(context.state_dir / "manifest.json")
        with context.phase(phase0_survey.PHASE):
            frames = phase0_survey.run(
                self.folder, context, recursive=self.settings.scan_recursive, selection=self._chosen()
            )
            self.n_found = len(frames) + len(context.left_out)
            infos = [frame.info for frame in frames]
            self.plan = plan = resolve(
                self.settings,
                infos,
                self.machine,
                canvas_hw=estimate_canvas(infos),
                policy=context.policy,
                preplanned=self.selection.groups,
            )
            context.expect({row.phase: row.seconds for row in plan.rows})
        with context.phase(phase1_prepare.PHASE, len(frames)):
            if not plan.resume:
                manifest.keep_only(set())
                phase1_prepare.forget(context)
            prepared = phase1_prepare.run(frames, plan.measure, context)
            self.solved = solved = solve_frames.run(prepared, plan.solve, context, manifest)
            context.release_pool()
        with context.phase(phase2_group.PHASE):
            groups = phase2_group.run(solved, plan.group, context)
            self.groups = groups = groups_of_route(plan.route, groups, solved)
            context.say(plan.route.reason_key, route=plan.route.route, **plan.route.values)
        with context.phase(phase4_grid.PHASE):
            placed = phase4_grid.run(solved, plan.grid, context, with_flat=plan.sky.model == "full")
            open_frames, masks = pixel_masks.run(placed.frames, plan.measure, context, phase4_grid.PHASE)
            clear = judge_air(open_frames, plan.measure, context, phase4_grid.PHASE)
            self.placed = placed = replace(placed, frames=clear)
            self.sky = behind = sky.run(placed.frames, placed.grid, placed.flat, plan, context)
        with context.phase(phase3_master_tiles.PHASE, len(groups)):
            self.tiles = tiles = phase3_master_tiles.run(
                groups,
                placed.frames,
                prepared.hot_pixels,
                masks,
                behind.terms,
                placed.grid,
                plan,
                context,
                manifest,
            )
            if not tiles:
                raise RunFailed("run_error_no_tiles", "no master tile could be made")
        approximate = any(item.solution.approximate for item in solved)
        with context.phase(phase5_assemble.PHASE):
            self.mosaic = mosaic = phase5_assemble.run(
                tiles, self.n_found, approximate, placed.one_flux_scale, behind, placed.grid, plan, context
            )
        with context.phase(phase6_export.PHASE):
            outputs = phase6_export.run(mosaic, plan.output, context)
        with context.phase(phase7_cleanup.PHASE):
            phase7_cleanup.run(tiles, plan.output.keep_state, context)
        return outputs

    def _chosen(self) -> Iterable[str] | None:
        return self.selection.frames or None

    def facts(self, outputs: dict[str, str], outcome: str, error: BaseException | None) -> dict[str, Any]:
        """Return everything the report says."""
        return collect(self, outputs, outcome, error)

    def report_failure(self, error: BaseException) -> None:
        """Write the report of a run that ended early; a report that cannot be written must not hide why."""
        try:
            write_report(
                self.context.output_dir,
                self.facts({}, "cancelled" if isinstance(error, Cancelled) else "failed", error),
                self.settings.language,
            )
        except (SaveFailed, OSError):
            log.exception("the report of the failed run could not be written")
