"""A whole run, phase after phase: the table of the classic route and what surrounds it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zemosaic_core.compiled_code import is_compiled
from zemosaic_core.errors import Cancelled, RunFailed, SaveFailed, SettingsError, ZeMosaicError
from zemosaic_io.calibration_sets import load_set
from zemosaic_io.manifest import Manifest
from zemosaic_io.stack_plan import StackPlan
from zemosaic_pipeline import (
    calibrate,
    merge_tiles,
    phase0_survey,
    phase1_prepare,
    phase2_group,
    phase3_master_tiles,
    phase4_grid,
    phase5_assemble,
    phase6_export,
    phase7_cleanup,
    pixel_masks,
    place_tiles,
    solve_frames,
    tile_checks,
    tile_intake,
)
from zemosaic_pipeline.cluster_run import cluster_of, require_workers
from zemosaic_pipeline.colour import star_light
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_pipeline.cost import disk_bytes
from zemosaic_pipeline.events import (
    PHASES,
    GpuRecorded,
    Reporter,
    RunStarted,
)
from zemosaic_pipeline.filters import (
    filter_names,
    frames_of_filters,
    groups_of_filters,
    tiles_of_filters,
)
from zemosaic_pipeline.judge_frames import judge_air
from zemosaic_pipeline.known_outline import with_known_outline
from zemosaic_pipeline.listed_frames import frames_with_known_wcs, listed_batches, listed_frames
from zemosaic_pipeline.machine import Machine, available_memory, free_disk, no_more_processes
from zemosaic_pipeline.outline import estimate_canvas
from zemosaic_pipeline.plan import RunPlan, make_policy, resolve, usable_memory, worker_count
from zemosaic_pipeline.plan_limits import refuse_small_disk
from zemosaic_pipeline.records import (
    Frame,
    LeftOut,
    MasterTile,
    Mosaic,
    PixelMasks,
    RegisteredFrame,
    SolvedFrame,
)
from zemosaic_pipeline.report import PREVIOUS_REPORT, collect, set_aside_report, write_report
from zemosaic_pipeline.routes import groups_of_route
from zemosaic_pipeline.sky import with_gains
from zemosaic_pipeline.sky_brightness import sky_brightness
from zemosaic_settings import Settings

__all__ = ["RunResult", "Selection", "run_classic"]

log = logging.getLogger(__name__)

# A plan that needs so many times the memory it did is news.
_TOLD_GROWTH = 1.05

# As long as any path that a run makes in its output folder, temporary names included.
_LONGEST_NAME = "x" * 140


@dataclass(frozen=True)
class Selection:
    """Frames and groups the user chose by hand; empty means: take all, group by position."""

    frames: tuple[str, ...] = ()
    tiles: tuple[str, ...] | None = None
    """Finished stacks that take part; None: those among the frames where there are no frames, else all."""
    groups: tuple[tuple[str, ...], ...] = ()
    known_wcs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """FITS cards of a WCS by path, of frames whose files have none."""
    listed: StackPlan | None = None
    """The files that count, wherever they are; None: those of the input folder."""
    gpu_asked_by: str = ""
    """Text key of who chose whether the graphics card is used; empty: the settings."""

    @property
    def has_no_frames(self) -> bool:
        """Whether every frame that was chosen is a finished stack."""
        return bool(self.tiles) and bool(self.frames) and set(self.frames) <= set(self.tiles or ())

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Selection:
        """Read ``frame_selection``, ``tile_selection`` and ``frame_groups`` of the filter, and ``gpu_asked_by``."""
        tiles = config.get("tile_selection")
        return Selection(
            tuple(map(str, config.get("frame_selection") or ())),
            None if tiles is None else tuple(map(str, tiles)),
            tuple(tuple(map(str, group)) for group in config.get("frame_groups") or ()),
            gpu_asked_by=str(config.get("gpu_asked_by") or ""),
        )


@dataclass(frozen=True)
class RunResult:
    """Where everything is, and the report as data."""

    outputs: dict[str, str]
    report: dict[str, Any]


def _check_folders(settings: Settings) -> tuple[Path, Path]:
    folder, output = Path(settings.input_dir), Path(settings.output_dir)
    if not os.path.isdir(folder):
        raise SettingsError(
            "error_input_not_folder", f"input folder {folder} does not exist", path=str(folder)
        )
    if output.resolve() == folder.resolve():
        raise SettingsError(
            "error_output_is_input", f"output folder {output} is the input folder", path=str(output)
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            # What is too long is told before the work, not by the first file that lies deep.
            os.lstat(output / _LONGEST_NAME)
        probe = output / f".zemosaic_write_test_{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            "error_output_not_writable",
            f"cannot write to {output}: {error}",
            path=str(output),
            reason=error.strerror or str(error),
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
    policy = make_policy(
        settings,
        machine,
        output,
        on_record=lambda record: report(GpuRecorded(record)),
        asked_by=selection.gpu_asked_by,
    )
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
    try:
        context.cluster = cluster_of(settings, context, usable_memory(settings, machine))
    except BaseException:
        context.close()
        policy.close()
        raise
    run = _ClassicRun(settings, folder, selection, machine, context)
    report(RunStarted(context.run_id, str(folder), str(output), tuple(PHASES)))
    try:
        run.report_begin()
        policy.check_required()
        made = run.execute()
        outputs = {kind: context.results.final(path) for kind, path in made.items()}
        facts = run.facts(outputs, "success", None)
        written = write_report(context.results.folder, facts, settings.language, durable=False)
        context.results.replaces(PREVIOUS_REPORT)
        context.results.publish()
        context.preview_grown(outputs["preview"])
        return RunResult(outputs | {k: context.results.final(path) for k, path in written.items()}, facts)
    except BaseException as error:
        told = run.told(error)
        run.report_failure(told)
        if told is error:
            raise
        raise told from error
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
        self.stacks_from = tile_intake.TileFolders((), True)
        self.listed: StackPlan | None = None
        self.n_found = 0
        self.solved: Sequence[SolvedFrame] = ()
        self.placed: Any = None
        self.sky: Any = None
        self.groups: Sequence[Any] = ()
        self.tiles: Sequence[MasterTile] = ()
        self.mosaic: Any = None
        self.mosaics: dict[str, Mosaic] = {}
        self.brightness: dict[int, tuple[float, float]] = {}
        self.phase = ""
        self.earlier: dict[str, Any] = {}

    def report_begin(self) -> None:
        """Say from the start that this run is at work; what an earlier one left is told and kept."""
        context = self.context
        self.earlier = set_aside_report(context.output_dir)
        if interrupted := self.earlier.get("interrupted"):
            context.resumes = interrupted["run_id"]
            context.say("run_info_interrupted", "WARN", **interrupted)
        self._report_running(next(iter(PHASES)))

    def _report_running(self, phase: str) -> None:
        self.phase = phase
        facts = self.facts({}, "running", None)
        write_report(self.context.output_dir, facts, self.settings.language, durable=False)

    @contextmanager
    def _phase(self, name: str, total: int = 0) -> Iterator[None]:
        self._report_running(name)
        with self.context.phase(name, total):
            yield

    def _follow(self, plan: RunPlan) -> None:
        """Go on by this plan; say where it differs from what was planned before, or from what was asked for."""
        context, before = self.context, self.plan
        self.plan = plan
        context.follow(plan)
        blocks, picture = plan.block_budget_bytes, plan.output.preview["max_dim"]
        planned_mb = round(plan.peak_bytes / 1e6)
        if before is None:
            is_smaller, longest = plan.is_reduced, self.settings.preview_png_max_dim
        else:
            longest = before.output.preview["max_dim"]
            is_smaller = (plan.workers, plan.threads, blocks) != (
                before.workers,
                before.threads,
                before.block_budget_bytes,
            )
            if plan.peak_bytes > _TOLD_GROWTH * before.peak_bytes:
                context.say("run_info_plan_grew", planned_mb=planned_mb)
        if is_smaller:
            context.say(
                "run_info_smaller_plan",
                workers=plan.workers,
                threads=plan.threads,
                block_mb=round(blocks / 1e6),
                planned_mb=planned_mb,
            )
        if picture < longest:
            context.say("run_info_smaller_picture", longest=picture)

    def execute(self) -> dict[str, str]:
        """Go through the phases; return the output files."""
        context = self.context
        manifest = Manifest(context.state_dir / "manifest.json")
        with self._phase(phase0_survey.PHASE):
            calibration = calibrate.options_from(self.settings)
            raw, refused = self._survey(calibration)
            frames = [*raw, *self._stacks(raw)]
            self.n_found = len(frames) + len(context.left_out)
            infos = [frame.info for frame in frames]
            chosen = calibrate.choose(
                infos[: len(raw)], self._beside(refused, calibration), self.folder, calibration
            )
            elsewhere, compiles = require_workers(context, infos), not is_compiled()
            plan = resolve(
                self.settings,
                infos,
                self.machine,
                canvas_hw=estimate_canvas(
                    infos,
                    float(self.settings.drizzle_scale),
                    exclude_outliers=self.settings.canvas_exclude_outliers,
                ),
                policy=context.policy,
                preplanned=self.selection.groups,
                batches=listed_batches(self.listed),
                n_calibrations=chosen.n_sets,
                n_tiles=len(frames) - len(raw),
                elsewhere=elsewhere,
                compiles=compiles,
            )
            self._follow(plan)
            phase6_export.refuse_what_is_in_the_way(self.n_found, plan.output, context)
            if compiles:
                context.say("run_info_compiles")
            self._refuse_small_disk(
                next(row.disk_bytes for row in plan.rows if row.phase == phase1_prepare.PHASE)
            )
        with self._phase(phase1_prepare.PHASE, len(frames)):
            if not plan.resume:
                manifest.keep_only(set())
                phase1_prepare.forget(context)
            frames = calibrate.run(
                frames, chosen, manifest, context, budget_bytes=plan.block_budget_bytes, resume=plan.resume
            )
            if context.cluster is not None:
                used = {frame.calibration for frame in frames if frame.calibration}
                context.cluster.provide({path: load_set(path) for path in used})
            prepared = phase1_prepare.run(frames, self.folder, plan.measure, context)
            self.solved = solved = solve_frames.run(prepared, plan.solve, context, manifest)
            context.release_pool()
        with self._phase(phase2_group.PHASE):
            raw_solved = [item for item in solved if not item.frame.is_tile]
            groups = phase2_group.run(raw_solved, plan.group, context) if raw_solved else []
            found = [item.frame.info for item in solved]
            names = {
                item.frame.index: name
                for item, name in zip(
                    solved, filter_names(found, split=plan.group.split_by_filter), strict=True
                )
            }
            self.groups = groups = groups_of_filters(groups_of_route(plan.route, groups, raw_solved), names)
            context.say(plan.route.reason_key, route=plan.route.route, **plan.route.values)
        with self._phase(phase4_grid.PHASE):
            tile_set = place_tiles.placed_tile_set(solved)
            placed = (
                phase4_grid.run(
                    solved, plan.grid, context, with_flat=plan.sky.model == "full" and bool(raw_solved)
                )
                if tile_set is None
                else tile_set.placed
            )
            self._refuse_small_disk(disk_bytes(plan.n_channels, plan.output.variance, placed.grid.shape_hw))
            plan = with_known_outline(
                plan,
                [frame.solved for frame in placed.frames] or solved,
                placed.grid.shape_hw,
                usable_memory(self.settings, self.machine),
                chosen.n_sets,
            )
            self._follow(plan)
            given = place_tiles.judged(placed, plan, context)
            clear, masks = self._judged(place_tiles.raw_frames(placed), plan)
            parts = frames_of_filters([*clear, *given], names)
            behind = {
                name: place_tiles.sky_behind(same, tile_set, placed, plan, context)
                for name, same in parts.items()
            }
            parts = {name: with_gains(same, behind[name].gain_factors) for name, same in parts.items()}
            # What the gains were found from grows with the night and has served.
            self.placed = placed = replace(
                placed, frames=tuple(f for same in parts.values() for f in same), fluxes=None
            )
            self.sky = next(iter(behind.values()), None)
        with self._phase(phase3_master_tiles.PHASE, len(groups)):
            raw_frames = place_tiles.raw_frames(placed)
            tiles: list[MasterTile] = []
            if raw_frames:
                tiles = phase3_master_tiles.run(
                    groups,
                    raw_frames,
                    prepared.hot_pixels,
                    masks,
                    {index: terms for found in behind.values() for index, terms in found.terms.items()},
                    placed.grid,
                    plan,
                    context,
                    manifest,
                    linked=placed.one_flux_scale,
                )
            tiles += place_tiles.run(
                place_tiles.given_tiles(placed),
                raw_frames,
                tile_set,
                placed.grid,
                plan,
                context,
                manifest,
                len(groups),
            )
            whole, tiles = tiles, tile_checks.run(tiles, plan, context)
            self.tiles = tiles
            if not tiles:
                raise RunFailed("run_error_no_tiles", "no master tile could be made")
        approximate = any(item.solution.approximate for item in solved)
        with self._phase(phase5_assemble.PHASE):
            own = {
                name: merge_tiles.run(
                    same,
                    placed.grid,
                    plan,
                    context,
                    one_flux_scale=placed.one_flux_scale,
                    one_sky=behind[name].is_one_sky,
                )
                for name, same in tiles_of_filters(tiles, names).items()
            }
            self.tiles = [tile for same in own.values() for tile in same]
            self.mosaics = mosaics = {
                name: phase5_assemble.run(
                    own[name],
                    self.n_found,
                    approximate,
                    placed.one_flux_scale,
                    sky_of_part,
                    star_light(parts[name]),
                    placed.grid,
                    plan,
                    context,
                    sum(not item.solution.confirmed for item in solved),
                    name,
                )
                for name, sky_of_part in behind.items()
                if name in own
            }
            self.mosaic = next(iter(mosaics.values()))
        with self._phase(phase6_export.PHASE):
            outputs: dict[str, str] = {}
            for number, (name, mosaic) in enumerate(mosaics.items()):
                skies = sky_brightness(parts[name], behind[name], mosaic)
                self.brightness |= skies
                written = phase6_export.run(mosaic, parts[name], skies, plan.output, context)
                # The mosaic of most frames is the result; the others stand beside it.
                outputs |= {f"{kind}:{name}" if number else kind: path for kind, path in written.items()}
        with self._phase(phase7_cleanup.PHASE):
            phase7_cleanup.run(whole, plan.output.keep_state, context)
        return outputs

    def _judged(
        self, frames: Sequence[RegisteredFrame], plan: RunPlan
    ) -> tuple[tuple[RegisteredFrame, ...], PixelMasks]:
        """Return the raw frames with open sky and clear air, and what of their pixels is no light of the sky."""
        if not frames:
            return (), PixelMasks()
        rejects = plan.stack.rule.rejection != "none"
        phase = phase4_grid.PHASE
        kept, masks = pixel_masks.run(frames, plan.measure, self.context, phase, with_trails=rejects)
        return judge_air(kept, plan.measure, self.context, phase), masks

    def _survey(self, calibration: calibrate.CalibrationOptions) -> tuple[list[Frame], list[LeftOut]]:
        """Return the raw frames and what is left out; none where only stacks are wanted."""
        self.stacks_from = tile_intake.tile_folders(self.settings)
        if self.stacks_from and (not self.stacks_from.with_frames or self.selection.has_no_frames):
            return [], []
        self.listed = self.selection.listed or listed_frames(self.settings)
        frames, refused = phase0_survey.run(
            self.folder,
            self.context,
            recursive=self.settings.scan_recursive,
            memory_bytes=usable_memory(self.settings, self.machine),
            selection=self._chosen(),
            other_places=[*calibrate.given_places(calibration), *self.stacks_from.folders],
            listed=self.listed,
            split_by_filter=self.settings.split_by_filter,
        )
        return frames_with_known_wcs(frames, self.selection.known_wcs), refused

    def _stacks(self, raw: Sequence[Frame]) -> list[Frame]:
        """Return the stacks that are given, numbered after the raw frames."""
        if not self.stacks_from:
            return []
        return tile_intake.run(
            self.stacks_from,
            self.context,
            recursive=self.settings.scan_recursive,
            first_index=len(raw),
            n_channels=raw[0].info.n_channels if raw else None,
            selection=self.selection.tiles if raw or self.selection.tiles is not None else self._chosen(),
        )

    def _refuse_small_disk(self, needed_bytes: int) -> None:
        """Refuse what will not find room; what is stored of earlier runs takes none again."""
        context = self.context
        stored = sum(path.stat().st_size for path in context.state_dir.rglob("*") if path.is_file())
        refuse_small_disk(needed_bytes - stored, free_disk(context.output_dir), str(context.output_dir))

    def _beside(self, refused: list[LeftOut], calibration: calibrate.CalibrationOptions) -> list[LeftOut]:
        """Return what may be calibration frames: what was neither chosen nor listed is looked at as well."""
        listed = () if self.listed is None else tuple(str(frame.path) for frame in self.listed.frames)
        chosen = self.selection.frames or listed
        if not (chosen and calibration.wanted):
            return refused
        return phase0_survey.set_aside(
            self.folder,
            self.context.output_dir,
            recursive=self.settings.scan_recursive,
            selection=chosen,
            other_places=calibrate.given_places(calibration),
        )

    def _chosen(self) -> Iterable[str] | None:
        return self.selection.frames or None

    def facts(self, outputs: dict[str, str], outcome: str, error: BaseException | None) -> dict[str, Any]:
        """Return everything the report says."""
        return collect(self, outputs, outcome, error)

    def told(self, error: BaseException) -> BaseException:
        """Return what a user is told of an error: why a watch stopped the run, or that memory was short."""
        cancel = self.context.cancel
        if isinstance(error, Cancelled):
            return cancel.reason or error
        if cancel.is_set() and cancel.reason is None:
            # A signal that stops a run stops its processes as well; what fails by that is not why it ends.
            log.warning("after a stop was asked for: %r", error, exc_info=error)
            return Cancelled()
        if isinstance(error, MemoryError):
            planned_mb = round(self.plan.peak_bytes / 1e6) if self.plan is not None else 0
            free_mb = round(available_memory() / 1e6)
            return RunFailed(
                "run_error_memory",
                f"the memory ran short: {planned_mb} MB were planned, {free_mb} MB are free",
                planned_mb=planned_mb,
                free_mb=free_mb,
            )
        return no_more_processes(error) or error

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
