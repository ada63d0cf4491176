"""Decide which darks, flats and bias frames belong to which light frame; headers only, nothing is read or made."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

from zemosaic_core.errors import SkipItem
from zemosaic_io.calibration_frames import CalibrationFrame
from zemosaic_io.headers import FrameInfo

__all__ = ["CalibrationChoice", "LightRecipe", "MasterRecipe", "choose_calibration"]

# Timers that write 9.98 or 10.02 s mean 10 s.
SAME_EXPOSURE = 0.02
# Dark current that is scaled further than this leaves more than it takes: amplifiers do not glow in proportion.
MOST_SCALED = 3.0
# A flat is exposed for seconds or less: a dark that is not quite as long will do.
FLAT_DARK_EXPOSURE = 0.5


@dataclass(frozen=True)
class MasterRecipe:
    """Frames that become one master, and what is subtracted from them first.

    Attributes
    ----------
    kind : {'bias', 'dark', 'flat'}
    frames : tuple of CalibrationFrame
        Taken in one way.
    pedestal : MasterRecipe or None
        Of flats: the darks or bias frames that tell what is there without light; None: nothing is to be subtracted.
    """

    kind: str
    frames: tuple[CalibrationFrame, ...]
    pedestal: MasterRecipe | None = None

    @property
    def n_exposures(self) -> int:
        """Exposures in all files, those inside masters counted."""
        return sum(frame.info.stack_count for frame in self.frames)


@dataclass(frozen=True)
class LightRecipe:
    """What a light frame is calibrated with.

    Attributes
    ----------
    dark, bias, flat : MasterRecipe or None
        ``bias`` only where it is needed: no dark of the exposure was found.
    dark_scale : float
        Exposure of the light frame over that of the dark; 1 where they are the same.
    flat_alone : bool
        The samples have no pedestal any more: another program took it away.
    """

    dark: MasterRecipe | None = None
    bias: MasterRecipe | None = None
    flat: MasterRecipe | None = None
    dark_scale: float = 1.0
    flat_alone: bool = False

    @property
    def identity(self) -> Hashable:
        """What tells this recipe from others of one choice; there every master is one object."""
        return id(self.dark), id(self.bias), id(self.flat), self.dark_scale

    def __bool__(self) -> bool:
        return not (self.dark is None and self.bias is None and self.flat is None)


@dataclass(frozen=True)
class CalibrationChoice:
    """What becomes of the calibration frames.

    Attributes
    ----------
    recipes : dict
        Recipe of each light frame by its position; those that get nothing are missing.
    used, unused : str
        In words of the FITS header, for plan and report; '' when there is nothing to say. ``used``:
        ``DARK 10 s 20 C (16), FLAT IRCUT (30)``. ``unused`` says what does not fit: ``DARK 30 s (12): EXPTIME 10/30``,
        the light frame's value first.
    unusable : tuple of SkipItem
        Files in the places given that cannot be read, or are no calibration frames.
    """

    recipes: dict[int, LightRecipe] = field(default_factory=dict)
    used: str = ""
    unused: str = ""
    unusable: tuple[SkipItem, ...] = ()

    @property
    def n_sets(self) -> int:
        """Return how many different recipes there are."""
        return len({recipe.identity for recipe in self.recipes.values()})


def choose_calibration(
    lights: Sequence[FrameInfo], found: Sequence[CalibrationFrame], tolerance_celsius: float
) -> CalibrationChoice:
    """Match calibration frames with light frames.

    Darks must agree in camera, size, binning, gain, offset setting, colour pattern, order of rows, exposure (2 %) and
    temperature; the nearest temperature is taken, then the nearest night. Where there are only darks of another
    exposure, up to three times as long or short, they are scaled if there are bias frames. Flats must agree in camera,
    telescope, filter, size, binning and pattern; the nearest night is taken. What a header does not say is no
    difference. A flat is used only where the pedestal of light frame and flat is known.

    Parameters
    ----------
    lights : sequence of FrameInfo
    found : sequence of CalibrationFrame
    tolerance_celsius : float
        By how much the sensor may have been warmer or colder.
    """
    groups = _groups(found, tolerance_celsius)
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in ("bias", "dark", "flat")}
    flats = [
        _with_pedestal(flat, by_kind["dark"], by_kind["bias"], tolerance_celsius) for flat in by_kind["flat"]
    ]
    recipes: dict[int, LightRecipe] = {}
    # Frames taken in one way at one temperature get the same: matching once is enough.
    known: dict[Hashable, LightRecipe] = {}
    for position, light in enumerate(lights):
        if light.axes != "hw" or light.is_stack:
            continue
        key = _facts_that_count(light)
        if key not in known:
            known[key] = _recipe(light, by_kind["dark"], by_kind["bias"], flats, tolerance_celsius)
        if known[key]:
            recipes[position] = known[key]
    used = _used_masters(recipes.values())
    return CalibrationChoice(
        recipes,
        ", ".join(f"{_name(master)} ({master.n_exposures})" for master in used),
        _unused_text(lights, groups, flats, used, tolerance_celsius),
    )


def _recipe(
    light: FrameInfo,
    darks: Sequence[MasterRecipe],
    biases: Sequence[MasterRecipe],
    flats: Sequence[MasterRecipe | None],
    tolerance: float,
) -> LightRecipe:
    dark = bias = flat = None
    scale = 1.0
    if not set(light.calibrated) & {"B", "D"}:
        dark = _best(light, [g for g in darks if not _dark_differences(light, g, tolerance)])
        if dark is None:
            bias = _best(light, [g for g in biases if not _sensor_differences(light, g)])
            if bias is not None:
                dark, scale = _scalable_dark(light, darks, tolerance)
    # Division by a flat needs samples without pedestal.
    if "F" not in light.calibrated and (dark or bias or light.calibrated):
        flat = _best(light, [g for g in flats if g is not None and not _flat_differences(light, g)])
    return LightRecipe(dark, bias, flat, scale, bool(light.calibrated))


def _scalable_dark(
    light: FrameInfo, darks: Sequence[MasterRecipe], tolerance: float
) -> tuple[MasterRecipe | None, float]:
    """Return the dark of the nearest exposure within the limits, and by how much its dark current is multiplied."""
    if not light.exposure_s:
        return None, 1.0
    ratios = {}
    for position, group in enumerate(darks):
        exposure = _typical(group).exposure_s
        differences = _dark_differences(light, group, tolerance)
        if exposure and set(differences) == {"EXPTIME"}:
            ratio = light.exposure_s / exposure
            if 1 / MOST_SCALED <= ratio <= MOST_SCALED:
                ratios[position] = ratio
    if not ratios:
        return None, 1.0
    nearest = min(max(ratio, 1 / ratio) for ratio in ratios.values())
    best = _best(light, [darks[i] for i, ratio in ratios.items() if max(ratio, 1 / ratio) == nearest])
    assert best is not None
    assert _typical(best).exposure_s is not None
    return best, light.exposure_s / _typical(best).exposure_s  # type: ignore[operator]


def _with_pedestal(
    flat: MasterRecipe, darks: Sequence[MasterRecipe], biases: Sequence[MasterRecipe], tolerance: float
) -> MasterRecipe | None:
    """Return the flat with what is to be subtracted from it; None when nothing tells."""
    info = _typical(flat)
    if (flat.frames[0].is_master and info.bitpix < 0) or set(info.calibrated) & {"B", "D"}:
        # Programs that write masters as floating point have taken the pedestal away.
        return flat

    def is_as_long(group: MasterRecipe) -> bool:
        exposure = _typical(group).exposure_s
        if exposure is None or info.exposure_s is None:
            return False
        return abs(exposure - info.exposure_s) <= max(FLAT_DARK_EXPOSURE, SAME_EXPOSURE * exposure)

    usable = [
        g for g in darks if is_as_long(g) and not set(_dark_differences(info, g, tolerance)) - {"EXPTIME"}
    ]
    pedestal = _best(info, usable) or _best(info, [g for g in biases if not _sensor_differences(info, g)])
    return None if pedestal is None else MasterRecipe(flat.kind, flat.frames, pedestal)


def _best(light: FrameInfo, candidates: Sequence[MasterRecipe]) -> MasterRecipe | None:
    """Return the candidate nearest in temperature, then in time, then with most exposures."""

    def worth(group: MasterRecipe) -> tuple[float, float, int, str]:
        info = _typical(group)
        warmer = 0.0 if group.kind == "flat" else _distance(light.sensor_celsius, info.sensor_celsius, 99.0)
        return warmer, _days(light.night, info.night), -group.n_exposures, str(group.frames[0].info.path)

    return min(candidates, key=worth, default=None)


def _groups(found: Sequence[CalibrationFrame], tolerance: float) -> list[MasterRecipe]:
    """Put frames together that were taken in one way: each group becomes one master."""
    alike: dict[tuple[Hashable, ...], list[CalibrationFrame]] = {}
    for frame in sorted(found, key=lambda f: str(f.info.path)):
        info = frame.info
        of_kind: tuple[Hashable, ...] = ()
        if frame.kind == "flat":
            of_kind = (info.filter_name.casefold(), _plain(info.telescope), info.night)
        if frame.kind != "bias":
            of_kind += (None if info.exposure_s is None else f"{info.exposure_s:.2g}",)
        key = (
            frame.kind, frame.is_master, _plain(info.instrument), info.shape_hw, info.binning, info.gain,
            info.offset, info.cfa_pattern, info.row_order, info.bitpix < 0, *of_kind,
        )  # fmt: skip
        alike.setdefault(key, []).append(frame)
    groups = []
    for key, frames in alike.items():
        parts = _by_temperature(frames, tolerance) if key[0] == "dark" else [frames]
        groups += [MasterRecipe(str(key[0]), tuple(part)) for part in parts]
    return groups


def _by_temperature(frames: Sequence[CalibrationFrame], tolerance: float) -> list[list[CalibrationFrame]]:
    """Cut darks into runs that span no more than the tolerance, from the coldest on."""
    unknown = [f for f in frames if f.info.sensor_celsius is None]
    parts: list[list[CalibrationFrame]] = [unknown] if unknown else []
    start: float | None = None
    for frame in sorted((f for f in frames if f.info.sensor_celsius is not None), key=_celsius):
        if start is None or _celsius(frame) > start + tolerance:
            start = _celsius(frame)
            parts.append([])
        parts[-1].append(frame)
    return parts


def _celsius(frame: CalibrationFrame) -> float:
    return float(frame.info.sensor_celsius or 0.0)


def _typical(group: MasterRecipe) -> FrameInfo:
    """Return a frame in the middle of the group: of darks, the one of middle temperature."""
    return group.frames[len(group.frames) // 2].info


def _sensor_differences(light: FrameInfo, group: MasterRecipe) -> dict[str, str]:
    """In what the sensor was read differently: FITS word -> both values, the light frame's first."""
    info = _typical(group)
    pairs = {
        "INSTRUME": (light.instrument, info.instrument, _plain(light.instrument), _plain(info.instrument)),
        "NAXIS": (_size(light), _size(info), light.shape_hw, info.shape_hw),
        "XBINNING": (light.binning, info.binning, light.binning, info.binning),
        "GAIN": (light.gain, info.gain, light.gain, info.gain),
        "OFFSET": (light.offset, info.offset, light.offset, info.offset),
        "BAYERPAT": (light.cfa_pattern, info.cfa_pattern, light.cfa_pattern, info.cfa_pattern),
        "ROWORDER": (light.row_order, info.row_order, light.row_order, info.row_order),
    }
    return {
        word: f"{_shown(mine)}/{_shown(theirs)}"
        for word, (mine, theirs, a, b) in pairs.items()
        if a not in (None, "") and b not in (None, "") and a != b
    }


def _dark_differences(light: FrameInfo, group: MasterRecipe, tolerance: float) -> dict[str, str]:
    differences = _sensor_differences(light, group)
    info = _typical(group)
    mine, theirs = light.exposure_s, info.exposure_s
    if mine is not None and theirs is not None and abs(mine - theirs) > SAME_EXPOSURE * max(mine, theirs):
        differences["EXPTIME"] = f"{_shown(mine)}/{_shown(theirs)}"
    nearest = min(
        (f.info.sensor_celsius for f in group.frames if f.info.sensor_celsius is not None),
        key=lambda t: _distance(light.sensor_celsius, t, 0.0),
        default=None,
    )
    if _distance(light.sensor_celsius, nearest, 0.0) > tolerance:
        differences["CCD-TEMP"] = f"{_shown(light.sensor_celsius)}/{_shown(nearest)}"
    return differences


def _flat_differences(light: FrameInfo, group: MasterRecipe) -> dict[str, str]:
    differences = _sensor_differences(light, group)
    for word in ("GAIN", "OFFSET"):
        differences.pop(word, None)
    info = _typical(group)
    for word, mine, theirs in (
        ("FILTER", light.filter_name, info.filter_name),
        ("TELESCOP", light.telescope, info.telescope),
    ):
        if mine and theirs and _plain(mine) != _plain(theirs):
            differences[word] = f"{mine}/{theirs}"
    return differences


def _facts_that_count(light: FrameInfo) -> Hashable:
    return (
        light.instrument, light.shape_hw, light.binning, light.gain, light.offset, light.cfa_pattern,
        light.row_order, light.exposure_s, light.sensor_celsius, light.filter_name, light.telescope,
        light.night, light.calibrated,
    )  # fmt: skip


def _used_masters(recipes: Iterable[LightRecipe]) -> list[MasterRecipe]:
    """Return the masters that are made, each once."""
    seen: dict[int, MasterRecipe] = {}

    def add(master: MasterRecipe | None) -> None:
        if master is not None:
            seen.setdefault(id(master), master)
            add(master.pedestal)

    for recipe in recipes:
        for master in (recipe.dark, recipe.bias, recipe.flat):
            add(master)
    return list(seen.values())


def _unused_text(
    lights: Sequence[FrameInfo],
    groups: Sequence[MasterRecipe],
    flats: Sequence[MasterRecipe | None],
    used: Sequence[MasterRecipe],
    tolerance: float,
) -> str:
    """Say of each group that is used nowhere how it differs from the light frames nearest to it."""
    taken = {master.frames for master in used}
    usable_flats = {flat.frames for flat in flats if flat is not None}
    distinct = list({_facts_that_count(light): light for light in lights}.values())
    parts = []
    for group in groups:
        if group.frames in taken:
            continue
        differences = min((_differences(light, group, tolerance) for light in distinct), key=len, default={})
        reason = ", ".join(f"{word} {values}" for word, values in differences.items())
        if not differences and group.kind == "flat":
            reason = "BIAS -" if group.frames not in usable_flats else "DARK -"
        parts.append(f"{_name(group)} ({group.n_exposures})" + (f": {reason}" if reason else ""))
    return "; ".join(parts)


def _differences(light: FrameInfo, group: MasterRecipe, tolerance: float) -> dict[str, str]:
    if group.kind == "dark":
        return _dark_differences(light, group, tolerance)
    return _flat_differences(light, group) if group.kind == "flat" else _sensor_differences(light, group)


def _name(group: MasterRecipe) -> str:
    """``DARK 10 s 20 C``, ``FLAT IRCUT``, ``BIAS``."""
    info = _typical(group)
    words = [group.kind.upper()]
    if group.kind == "dark" and info.exposure_s is not None:
        words.append(f"{info.exposure_s:g} s")
    if group.kind == "dark" and info.sensor_celsius is not None:
        words.append(f"{info.sensor_celsius:.0f} C")
    if group.kind == "flat" and info.filter_name:
        words.append(info.filter_name)
    return " ".join(words)


def _size(info: FrameInfo) -> str:
    return f"{info.shape_hw[1]}x{info.shape_hw[0]}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value or "-")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _distance(a: float | None, b: float | None, unknown: float) -> float:
    return unknown if a is None or b is None else abs(a - b)


def _days(a: str, b: str) -> float:
    """Nights between two ISO dates; very many when one is not known."""
    try:
        return abs((date.fromisoformat(a) - date.fromisoformat(b)).days)
    except ValueError:
        return 1e9
