"""Make masters of darks, flats and bias frames, and of them what each light frame is calibrated with."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.calibration import (
    Flat,
    Offset,
    bad_pixels_of_dark,
    colour_levels,
    flat_of_light,
    kin_median,
    scaled_offset,
    typical_variance,
)
from zemosaic_core.errors import SettingsError, SkipItem
from zemosaic_core.pixel_map import shift_pixel_map
from zemosaic_core.raw_defects import NEVER_SATURATED, ceilings, saturation_levels
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, SampleNoise
from zemosaic_io.calibration_frames import KINDS, CalibrationFrame, Kind, frames_at, read_calibration_frame
from zemosaic_io.calibration_sets import CalibrationSet, RawPlanes, save_set, stored_set
from zemosaic_io.fits_read import read_identified
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import Manifest, hash_key, make_folder
from zemosaic_io.sealed_arrays import load_sealed, save_sealed
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import TRACEBACK, result_or_skip
from zemosaic_pipeline.match_calibration import (
    CalibrationChoice,
    LightRecipe,
    MasterRecipe,
    choose_calibration,
)
from zemosaic_pipeline.records import Frame, LeftOut
from zemosaic_settings import Settings
from zemosaic_utils import coadd_on_grid

__all__ = ["CalibrationOptions", "choose", "options_from", "run"]

FOLDER = "calibration"
# Part of the keys of masters and sets: raise it when their meaning changes.
VERSION = 1
# Files that the survey of light frames sets aside and that may be calibration frames.
SET_ASIDE = ("frame_not_light", "frame_not_light_folder", "frame_not_light_name")
RULE = CombineRule("winsorized_sigma_clip", 3.0, 3.0, (0.05, 0.05), "mean")
# A flat with more pixels at the top than this does not tell how the light falls.
MOST_SATURATED = 0.005
# What full scale has become where programs write frames of 16 bits as floating point from 0 to 1.
FULL_SCALE = 65535.0
UNIT_TOP = 1.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationOptions:
    """Where calibration frames come from; empty places mean: from the input folder."""

    wanted: bool
    places: dict[Kind, str]
    tolerance_celsius: float


def options_from(settings: Settings) -> CalibrationOptions:
    """Return what the settings say, checked.

    Raises
    ------
    SettingsError
        ``settings_no_calibration``: a place does not exist.
    """
    places: dict[Kind, str] = {
        "bias": settings.bias_dir,
        "dark": settings.darks_dir,
        "flat": settings.flats_dir,
    }
    wanted = settings.calibration == "auto"
    for option, place in zip(("bias_dir", "darks_dir", "flats_dir"), places.values(), strict=True):
        if wanted and place and not os.path.exists(place):
            raise SettingsError(
                "settings_no_calibration",
                f"{option} = {place!r} is not allowed; allowed is a folder or a FITS file that exists",
                option=option,
                value=place,
            )
    return CalibrationOptions(wanted, places, settings.calibration_temperature_tolerance)


def given_places(options: CalibrationOptions) -> tuple[Path, ...]:
    """Return the folders and files given: what lies there is no light frame."""
    return tuple(Path(place) for place in options.places.values() if place) if options.wanted else ()


def choose(
    lights: Sequence[FrameInfo], refused: Sequence[LeftOut], folder: Path, options: CalibrationOptions
) -> CalibrationChoice:
    """Find the calibration frames, by their headers, and match them with the light frames.

    Those in the input folder are used for each kind that no place was given for.

    Parameters
    ----------
    lights : sequence of FrameInfo
    refused : sequence of LeftOut
        What the survey of the input folder left out.
    folder : Path
        The input folder.
    options : CalibrationOptions
    """
    if not options.wanted:
        return CalibrationChoice()
    found: dict[Path, CalibrationFrame] = {}
    unusable: list[SkipItem] = []
    for kind in KINDS:
        if place := options.places[kind]:
            frames, others = frames_at(Path(place), kind)
            found.update({frame.info.path.resolve(): frame for frame in frames})
            unusable += others
    for item in refused:
        if item.key not in SET_ASIDE:
            continue
        frame = result_or_skip(item.path, _aside, Path(item.path), folder)
        if isinstance(frame, CalibrationFrame) and not options.places[frame.kind]:
            found.setdefault(frame.info.path.resolve(), frame)
    choice = choose_calibration(lights, list(found.values()), options.tolerance_celsius)
    return replace(choice, unusable=tuple(unusable))


def _aside(path: Path, folder: Path) -> CalibrationFrame:
    return read_calibration_frame(path, None, root=folder)


def run(
    frames: Sequence[Frame],
    choice: CalibrationChoice,
    manifest: Manifest,
    context: RunContext,
    *,
    budget_bytes: int,
    resume: bool,
) -> list[Frame]:
    """Return the frames, each with the file of what it is calibrated with; without any the very same frames.

    Parameters
    ----------
    frames : sequence of Frame
        In the order for which `choice` was made.
    choice : CalibrationChoice
    budget_bytes : int
        Memory the engine may take for its blocks.
    resume : bool
        Use what an earlier run made of the same frames.
    """
    for skip in choice.unusable:
        told = {name: value for name, value in skip.values.items() if name != "path"}
        context.say(
            "run_warn_calibration_frame", "WARN", path=skip.values["path"], reason_key=skip.key, **told
        )
    if choice.unused:
        context.say("run_warn_calibration_unused", "WARN", details=choice.unused)
    if not choice.recipes:
        return list(frames)
    folder = context.state_dir / FOLDER
    make_folder(folder)
    integers = all(frame.info.bitpix > 0 for frame in frames)
    maker = _Maker(manifest, context, folder, budget_bytes, resume, integers)
    changed = []
    sets = set()
    for position, frame in enumerate(frames):
        context.cancel.check()
        recipe = choice.recipes.get(position)
        path = "" if recipe is None else maker.set_of(recipe, frame.info)
        changed.append(replace(frame, calibration=path) if path else frame)
        sets.add(path)
    manifest.save()
    n_calibrated = sum(bool(frame.calibration) for frame in changed)
    if n_calibrated:
        context.say("run_info_calibrated", frames=n_calibrated, of=len(frames), details=choice.used)
    context.detail(calibrated=n_calibrated, calibration=choice.used, calibration_unused=choice.unused)
    return changed


@dataclass(frozen=True)
class _Master:
    """A mean of frames with its variance (None: not known), and how many exposures are in it."""

    key: str
    value: np.ndarray
    variance: np.ndarray | None
    n_exposures: int


@dataclass(frozen=True)
class _Facts:
    """What one look at the pixels of a calibration frame tells."""

    content_key: str
    # Values run from 0 to 1.
    is_unit: bool


class _Maker:
    """Makes masters and sets, each once."""

    def __init__(
        self,
        manifest: Manifest,
        context: RunContext,
        folder: Path,
        budget_bytes: int,
        resume: bool,
        integers: bool,
    ) -> None:
        self._manifest, self._context, self._folder = manifest, context, folder
        self._budget, self._resume, self._integers = budget_bytes, resume, integers
        self._facts: dict[Path, _Facts | None] = {}
        # By the object of the recipe, of which a choice has one for each master.
        self._keys: dict[tuple[int, str | None], str] = {}
        self._paths: dict[tuple[Any, ...], str] = {}
        self._unusable: set[str] = set()

    def set_of(self, recipe: LightRecipe, light: FrameInfo) -> str:
        """Return the file of the set for a light frame; '' when nothing of it can be made."""
        pattern = light.cfa_pattern if light.kind == "cfa" else None
        named = (self._key(recipe.dark), self._key(recipe.bias), self._key(recipe.flat, pattern))
        scale = recipe.dark_scale if named[0] else 1.0
        wanted = (*named, scale, pattern)
        if wanted not in self._paths:
            self._paths[wanted] = self._make_set(recipe, named, scale, pattern)
        return self._paths[wanted]

    def _make_set(
        self, recipe: LightRecipe, named: tuple[str, str, str], scale: float, pattern: str | None
    ) -> str:
        path = self._folder / f"{hash_key('set', VERSION, named, scale, pattern)}.npz"
        if self._resume and stored_set(path) is not None:
            return str(path)
        dark, bias = self._master(recipe.dark), self._master(recipe.bias)
        if dark is not None and scale != 1.0 and bias is None:
            dark = None
        offset = scaled_offset(_offset(dark), _offset(bias), scale)
        light = self._master(recipe.flat, pattern) if offset is not None or recipe.flat_alone else None
        flat = self._flat(light, recipe.flat, pattern)
        if offset is None and flat is None:
            return ""
        bad = [] if flat is None else [flat.dead]
        if dark is not None:
            bad.append(bad_pixels_of_dark(dark.value, dark.variance, dark.n_exposures))
        steps = ("B" if bias is not None else "") + ("D" if dark is not None else "")
        made = CalibrationSet(
            None if offset is None else offset.value,
            None if flat is None else flat.inverse,
            np.unique(np.concatenate(bad)) if bad else np.empty(0, np.int64),
            0.0 if offset is None else offset.variance,
            0.0 if flat is None else flat.relative_variance,
            steps + ("F" if flat is not None else ""),
        )
        save_set(path, made)
        return str(path)

    def _flat(self, light: _Master | None, recipe: MasterRecipe | None, pattern: str | None) -> Flat | None:
        if light is None or recipe is None:
            return None
        try:
            return flat_of_light(light.value, light.variance, light.n_exposures, pattern)
        except ValueError as error:
            self._say_unusable(
                str(recipe.frames[0].info.path), "calibration_flat_no_light", reason=str(error)
            )
            return None

    def _usable(self, recipe: MasterRecipe) -> list[tuple[CalibrationFrame, _Facts]]:
        """Return the frames of a master that can be read, copies once, in an order that does not follow names."""
        usable: dict[str, tuple[CalibrationFrame, _Facts]] = {}
        for frame in recipe.frames:
            if frame.info.path not in self._facts:
                self._context.cancel.check()
                self._facts[frame.info.path] = self._look(frame)
            facts = self._facts[frame.info.path]
            if facts is not None:
                usable.setdefault(facts.content_key, (frame, facts))
        return [usable[key] for key in sorted(usable)]

    def _look(self, frame: CalibrationFrame) -> _Facts | None:
        info = frame.info
        state = (info.size_bytes, info.mtime_ns, info.ctime_ns, info.inode)
        key = hash_key("calibration frame", VERSION, str(info.path), frame.kind, state)
        stored = self._manifest.get(key) if self._resume else None
        if stored is not None:
            return _Facts(**stored)
        facts = result_or_skip(
            info.path, self._context.reads, info.path, info.size_bytes, _examine, info, frame.kind
        )
        if isinstance(facts, SkipItem):
            self._say_unusable(str(info.path), facts.key, **facts.values)
            return None
        self._manifest.put(key, asdict(facts))
        return facts

    def _say_unusable(self, path: str, key: str, /, **values: Any) -> None:
        if path not in self._unusable:
            self._unusable.add(path)
            values.pop("path", None)
            if trace := values.pop(TRACEBACK, None):
                log.warning("%s is not used for calibration after an unexpected error\n%s", path, trace)
            self._context.say("run_warn_calibration_frame", "WARN", path=path, reason_key=key, **values)

    def _key(self, recipe: MasterRecipe | None, pattern: str | None = None) -> str:
        """Return the key of a master: it follows from the pixels of its frames; '' without usable frames."""
        if recipe is None:
            return ""
        known = (id(recipe), pattern)
        if known not in self._keys:
            frames = self._usable(recipe)
            pedestal = self._key(recipe.pedestal)
            lost = recipe.pedestal is not None and not pedestal
            facts = [asdict(facts) for _, facts in frames]
            self._keys[known] = (
                hash_key("master", VERSION, recipe.kind, facts, pedestal, pattern, self._integers)
                if frames and not lost
                else ""
            )
        return self._keys[known]

    def _master(self, recipe: MasterRecipe | None, pattern: str | None = None) -> _Master | None:
        key = self._key(recipe, pattern)
        if recipe is None or not key:
            return None
        path = self._folder / f"{key}.npz"
        stored = load_sealed(path, key) if self._resume else None
        if stored is not None:
            return _Master(key, stored[1]["value"], stored[1].get("variance"), stored[0]["n_exposures"])
        made = result_or_skip(str(recipe.frames[0].info.path), self._stack, recipe, key, pattern)
        if isinstance(made, SkipItem):
            self._say_unusable(
                str(made.values.get("path", recipe.frames[0].info.path)), made.key, **made.values
            )
            return None
        arrays = {"value": made.value} | ({} if made.variance is None else {"variance": made.variance})
        save_sealed(path, key, {"n_exposures": made.n_exposures}, arrays)
        return made

    def _stack(self, recipe: MasterRecipe, key: str, pattern: str | None) -> _Master:
        """Combine the frames of a master with the co-add engine.

        Raises
        ------
        SkipItem
            A frame cannot be read any more, or is not what it was.
        """
        frames = self._usable(recipe)
        pedestal = self._master(recipe.pedestal)
        below = None if pedestal is None else pedestal.value
        factors, sums, samples = [], {}, []
        for position, (frame, facts) in enumerate(frames):
            self._context.cancel.check()
            read = self._context.reads(frame.info.path, frame.info.size_bytes, read_identified, frame.info)
            if read.content_key != facts.content_key:
                raise SkipItem(
                    "frame_changed", f"{frame.info.path} changed during the run", path=str(frame.info.path)
                )
            sums[position] = read.row_sums
            factor = self._factor(recipe.kind, read.data, below, pattern, facts)
            factors.append(factor)
            if position < 2:
                samples.append(_adjusted(read.data.astype(np.float32), below, factor, 0, 0))
        shape = frames[0][0].info.shape_hw

        def adjust(k: int, window: np.ndarray, y0: int, x0: int) -> np.ndarray:
            return _adjusted(window, below, factors[k], y0, x0)

        pixels = RawPlanes(
            {k: frame.info for k, (frame, _) in enumerate(frames)}, sums, adjust, self._context.reads
        )
        value, variance = self._coadd(pixels, len(frames), shape, _sample_noise(samples))
        value = np.where(np.isfinite(value), value, kin_median(value))
        return _Master(
            key, value, variance if len(frames) > 1 else None, sum(f.info.stack_count for f, _ in frames)
        )

    def _factor(
        self, kind: str, data: np.ndarray, below: np.ndarray | None, pattern: str | None, facts: _Facts
    ) -> np.ndarray:
        """Return what the four phases of a frame are multiplied with, shape (2, 2): flats are brought to level 1."""
        if kind == "flat":
            samples = data.astype(np.float32)
            levels = colour_levels(samples if below is None else samples - below, pattern)
            return np.where(levels > 0, 1.0 / np.where(levels > 0, levels, 1.0), np.nan).astype(np.float32)
        return np.full((2, 2), FULL_SCALE if facts.is_unit and self._integers else 1.0, np.float32)

    def _coadd(
        self, pixels: RawPlanes, n_frames: int, shape_hw: tuple[int, int], noise: SampleNoise | None
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = shape_hw
        box = (0, height, 0, width)
        straight = shift_pixel_map(0, 0, box)
        as_is, alike = np.array([[1, 0, 0, 0]], np.float32), np.ones(1, np.float32)
        sources = [CoaddSource(k, shape_hw, straight, box, as_is, alike) for k in range(n_frames)]
        value, variance = np.empty(shape_hw, np.float32), np.empty(shape_hw, np.float32)

        def sink(y0: int, y1: int, block: CoaddBlock) -> None:
            value[y0:y1], variance[y0:y1] = block.image[0], block.variance[0]

        coadd_on_grid(
            pixels,
            sources,
            shape_hw,
            1,
            replace(RULE, noise=noise),
            "bilinear",
            sink=sink,
            budget_bytes=self._budget,
            threads=self._context.threads,
            cancel=self._context.cancel,
        )
        return value, variance


def _offset(master: _Master | None) -> Offset | None:
    if master is None:
        return None
    return Offset(master.value, typical_variance(master.variance, master.n_exposures))


def _adjusted(
    samples: np.ndarray, below: np.ndarray | None, factor: np.ndarray, y0: int, x0: int
) -> np.ndarray:
    """Take the pedestal from a window of a frame and multiply each phase with its factor."""
    height, width = samples.shape
    out = samples if below is None else samples - below[y0 : y0 + height, x0 : x0 + width]
    out = np.array(out, np.float32)
    for j in (0, 1):
        for i in (0, 1):
            out[j::2, i::2] *= factor[(y0 + j) % 2, (x0 + i) % 2]
    return out


def _sample_noise(samples: Sequence[np.ndarray]) -> SampleNoise | None:
    """Return what two frames tell of the noise of one: it is all in which they differ."""
    if len(samples) < 2:
        return None
    difference = (samples[0] - samples[1])[::3, ::3]
    difference = difference[np.isfinite(difference)]
    level = float(np.nanmedian(samples[0][::3, ::3]))
    if not difference.size or not np.isfinite(level):
        return None
    spread = float(1.4826 * np.median(np.abs(difference - np.median(difference))))
    return SampleNoise((spread**2 / 2.0,), (level,)) if spread > 0 else None


def _examine(info: FrameInfo, kind: str) -> _Facts:
    """Look at a calibration frame.

    Raises
    ------
    SkipItem
        It cannot be read, is empty, or is a flat whose light was cut off.
    """
    read = read_identified(info)
    finite = read.data if read.data.dtype == np.uint16 else read.data[np.isfinite(read.data)]
    if not finite.size or not finite.min() < finite.max():
        raise SkipItem("frame_empty", f"{info.path}: every pixel is the same", value=0.0)
    if kind == "flat" and read.data.dtype == np.uint16:
        _refuse_saturated(info, read.data)
    return _Facts(read.content_key, bool(info.bitpix < 0 and float(finite.max()) <= UNIT_TOP))


def _refuse_saturated(info: FrameInfo, data: np.ndarray) -> None:
    levels = saturation_levels(ceilings(data))
    cut = sum(
        np.count_nonzero(data[k // 2 :: 2, k % 2 :: 2] >= level)
        for k, level in enumerate(levels.tolist())
        if level < NEVER_SATURATED - 1
    )
    full = np.count_nonzero(data >= 65535)
    share = max(cut, full) / data.size
    if share > MOST_SATURATED:
        raise SkipItem(
            "calibration_flat_saturated",
            f"{info.path}: {100 * share:.1f} % of its pixels are saturated",
            path=str(info.path),
            percent=round(100 * share, 1),
        )
