"""Writes a made-up night of a smart telescope: raw frames as the telescope would, and their truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from zemosaic_core.errors import SaveFailed
from zemosaic_core.synthetic_galaxy import Galaxy
from zemosaic_core.synthetic_sky import (
    NOMINAL_SCALE_ARCSEC,
    FrameSetup,
    HotPixels,
    Satellite,
    Sky,
    make_hot_pixels,
    make_sky,
    pixel_to_sky,
    render_frame,
    star_pixels,
    tan_cards,
)
from zemosaic_io.atomic import atomic_path
from zemosaic_io.telescope_frames import telescope_cards, wcs_header_cards, write_raw_frame

__all__ = ["DemoFrame", "DemoTruth", "plan_demo_night", "write_demo_night"]

DEMO_CENTER_DEG = (10.6847, 41.2690)
_OBJECT = "Demo M 31"
_OVERLAP = 0.20
_PANEL_ROTATION_STEP_DEG = 8.0
# Julian year of the night: where its stars stand.
DEMO_EPOCH = 2025.8
_START = datetime(2025, 10, 18, 20, 30, 0)


@dataclass(frozen=True)
class DemoFrame:
    """One exposure of the made-up night.

    Attributes
    ----------
    name : str
        File name.
    panel : int
        Number of the panel, row by row.
    kind : str
        'good', 'clouded' or 'trailed'.
    setup : FrameSetup
        The truth: WCS cards, transparency, sky, seeing, accidents.
    hint_deg : tuple of float
        RA and DEC the telescope believes it points at.
    """

    name: str
    panel: int
    kind: str
    setup: FrameSetup
    hint_deg: tuple[float, float]


@dataclass(frozen=True)
class DemoTruth:
    """What is known about a made-up night.

    Attributes
    ----------
    folder : Path
        Where the frames are.
    sky : Sky
        Stars and diffuse light; `Sky.flux` in ADU per frame at transparency 1.
    frames : tuple of DemoFrame
        In the order they were taken.
    hot_pixels : HotPixels
        Persistent defects of the sensor.
    """

    folder: Path
    sky: Sky
    frames: tuple[DemoFrame, ...]
    hot_pixels: HotPixels

    @property
    def paths(self) -> list[Path]:
        """Paths of all frames, in the order they were taken."""
        return [self.folder / frame.name for frame in self.frames]

    def stars_of(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the stars on a frame: rows of the star table, x, y (px, origin 0), flux (k, 3) ADU."""
        setup = self.frames[index].setup
        rows, x, y = star_pixels(self.sky, setup)
        return rows, x, y, self.sky.flux[rows] * np.asarray(setup.transparency)

    def save(self, stem: Path | str) -> tuple[Path, Path]:
        """Write ``<stem>.json`` (frames) and ``<stem>.npz`` (stars, hot pixels) and return their paths.

        Raises
        ------
        SaveFailed
            When a file cannot be written.
        """
        stem = Path(stem)
        frames = []
        for frame in self.frames:
            record = asdict(frame)
            for arrays in ("hot_pixels", "glow_adu", "air"):
                record["setup"].pop(arrays)
            frames.append(record)
        text = json.dumps({"frames": frames}, indent=1)
        tables = {
            "ra_deg": self.sky.ra_deg,
            "dec_deg": self.sky.dec_deg,
            "mag": self.sky.mag,
            "flux": self.sky.flux,
            "hot_flat": self.hot_pixels.flat,
            "hot_adu": self.hot_pixels.adu,
        }
        json_path, npz_path = stem.with_suffix(".json"), stem.with_suffix(".npz")
        with atomic_path(json_path) as part:
            part.write_text(text, encoding="utf-8")
        with atomic_path(npz_path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **tables)
        return json_path, npz_path


def plan_demo_night(
    folder: Path | str,
    *,
    seed: int = 7,
    panels: tuple[int, int] = (2, 2),
    frames_per_panel: int = 12,
    shape_hw: tuple[int, int] = (1920, 1080),
    bad_frames: bool = True,
    n_satellites: int = 4,
    catalogue: tuple[np.ndarray, ...] | None = None,
    center_deg: tuple[float, float] = DEMO_CENTER_DEG,
) -> DemoTruth:
    """Decide everything about the night without rendering or writing a frame.

    Parameters are those of `write_demo_night`; returned is the same truth.
    """
    rng = np.random.default_rng([seed, 3])
    scale_deg = NOMINAL_SCALE_ARCSEC / 3600.0
    pitch_hw = np.array(shape_hw) * (1.0 - _OVERLAP) * scale_deg
    extent_deg = np.array(shape_hw) * scale_deg + pitch_hw * (np.array(panels) - 1)
    # Small test frames see as many stars as full-size ones: the sky gets denser as they get smaller.
    crowding = max(1.0, 0.902 / float(np.prod(np.array(shape_hw) * scale_deg)))
    sky = make_sky(
        center_deg,
        1.25 * float(np.hypot(*extent_deg)),
        seed=seed,
        stars_per_deg2=35.0 * crowding,
        catalogue=catalogue,
        galaxy=Galaxy(radius_deg=0.42 * float(extent_deg.max()), position_angle_deg=30.0),
    )
    hot = make_hot_pixels(shape_hw, count=40, seed=seed)
    centers = _panel_centers(center_deg, pitch_hw, panels)
    frames: list[DemoFrame] = []
    n_panels = len(centers)
    start = _START
    for panel, center in enumerate(centers):
        rotation = (panel - (n_panels - 1) / 2.0) * min(_PANEL_ROTATION_STEP_DEG, 26.0 / max(1, n_panels - 1))
        pointing_error = rng.uniform(-0.04, 0.04, 2)
        for turn in range(frames_per_panel):
            index = len(frames)
            setup = _plan_exposure(
                rng, center, rotation, turn, frames_per_panel, shape_hw, hot, (seed, index)
            )
            stamp = start.strftime("%Y%m%d-%H%M%S")
            name = f"Light_{_OBJECT.replace(' ', '_')}_10.0s_IRCUT_{stamp}.fit"
            hint = (
                float((center[0] + pointing_error[0] / np.cos(np.deg2rad(center[1]))) % 360.0),
                float(np.clip(center[1] + pointing_error[1], -90.0, 90.0)),
            )
            frames.append(DemoFrame(name, panel, "good", setup, hint))
            start += timedelta(seconds=int(rng.integers(40, 75)))
    frames = _spoil(rng, frames, n_satellites, bad_frames)
    return DemoTruth(Path(folder), sky, tuple(frames), hot)


def write_demo_night(
    folder: Path | str,
    *,
    seed: int = 7,
    panels: tuple[int, int] = (2, 2),
    frames_per_panel: int = 12,
    shape_hw: tuple[int, int] = (1920, 1080),
    with_wcs: bool = False,
    bad_frames: bool = True,
    n_satellites: int = 4,
    catalogue: tuple[np.ndarray, ...] | None = None,
    center_deg: tuple[float, float] = DEMO_CENTER_DEG,
    save_truth: Path | str | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> DemoTruth:
    """Write a night of raw frames with overlapping panels, field rotation and the usual accidents.

    Parameters
    ----------
    folder : path
        Where the frames go; created when missing.
    seed : int
        The same seed gives the same files.
    panels : tuple of int
        Rows and columns of panels; neighbours overlap by 20 %.
    frames_per_panel : int
        Exposures per panel.
    shape_hw : tuple of int
        Height and width of a frame, px.
    with_wcs : bool
        Write the true WCS into the headers. Otherwise only RA and DEC, wrong by up to a few arc minutes.
    bad_frames : bool
        Make one frame clouded and one trailed (needs at least 6 frames).
    n_satellites : int
        Frames with a satellite trail.
    catalogue : tuple of ndarray, optional
        Real stars, see `synthetic_sky.make_sky`, to show instead of invented bright ones.
    center_deg : tuple of float
        Sky position of the mosaic centre.
    save_truth : path, optional
        Stem of a ``.json`` and ``.npz`` with the truth.
    on_frame : callable, optional
        Called with (frames written, frames in all).

    Returns
    -------
    DemoTruth
        True WCS, transparency, sky and stars of every frame.

    Raises
    ------
    SaveFailed
        When a file cannot be written.
    """
    truth = plan_demo_night(
        folder,
        seed=seed,
        panels=panels,
        frames_per_panel=frames_per_panel,
        shape_hw=shape_hw,
        bad_frames=bad_frames,
        n_satellites=n_satellites,
        catalogue=catalogue,
        center_deg=center_deg,
    )
    try:
        truth.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveFailed(
            "save_failed",
            f"cannot create the folder {truth.folder}: {error}",
            path=str(truth.folder),
            reason=str(error),
        ) from error
    for index, frame in enumerate(truth.frames):
        pixels = render_frame(truth.sky, frame.setup)
        _write_frame(truth.folder / frame.name, pixels, frame, with_wcs)
        if on_frame is not None:
            on_frame(index + 1, len(truth.frames))
    if save_truth is not None:
        truth.save(save_truth)
    return truth


def _panel_centers(center_deg, pitch_hw, panels) -> list[tuple[float, float]]:
    """Centres of the panels, row by row."""
    plane = tan_cards(*center_deg, scale_arcsec=3600.0, shape_hw=(1, 1))
    centers = []
    for row in range(panels[0]):
        for column in range(panels[1]):
            x = (column - (panels[1] - 1) / 2.0) * pitch_hw[1]
            y = (row - (panels[0] - 1) / 2.0) * pitch_hw[0]
            ra, dec = pixel_to_sky(plane, x, y)
            centers.append((float(ra), float(dec)))
    return centers


def _plan_exposure(rng, center, rotation, turn, n_turns, shape_hw, hot, seed) -> FrameSetup:
    """One ordinary exposure: dithered, a bit more rotated than the last, under slightly other air."""
    scale_deg = NOMINAL_SCALE_ARCSEC / 3600.0
    dither = rng.uniform(-1.0, 1.0, 2) * 0.012 * min(shape_hw) * scale_deg
    drift = 4.0 * (turn / max(1, n_turns - 1) - 0.5)  # an alt-az mount turns the field by degrees per panel
    ra = center[0] + dither[0] / np.cos(np.deg2rad(center[1]))
    cards = tan_cards(ra, center[1] + dither[1], rotation_deg=rotation + drift, shape_hw=shape_hw)
    air = rng.uniform(0.82, 1.0)
    # Thin air dims blue more than red.
    transparency = (air**0.8, air, air**1.25)
    level = rng.uniform(0.85, 1.25)
    warmth = rng.uniform(0.97, 1.03)
    slope = rng.normal(0.0, [0.07, 0.09, 0.02, 0.015, 0.025])
    return FrameSetup(
        cards=cards,
        shape_hw=tuple(shape_hw),
        transparency=tuple(float(t) for t in transparency),
        sky_adu=(float(300.0 * level * warmth), float(430.0 * level), float(270.0 * level / warmth)),
        sky_shape=tuple(float(s) for s in slope),
        fwhm_px=float(rng.uniform(2.35, 2.9)),
        hot_pixels=hot,
        n_cosmics=int(rng.integers(2, 9)),
        seed=tuple(seed),
    )


def _spoil(rng, frames: list[DemoFrame], n_satellites: int, bad_frames: bool) -> list[DemoFrame]:
    """Add satellites, one clouded and one trailed exposure."""
    frames = list(frames)
    order = rng.permutation(len(frames))
    bad: list[int] = []
    if bad_frames and len(frames) >= 6:
        bad = [int(order[0]), int(order[1])]
        frames[bad[0]] = _changed(
            frames[bad[0]], "clouded", cloud_depth=0.85, transparency=_dimmed(frames[bad[0]], 0.8)
        )
        frames[bad[1]] = _changed(
            frames[bad[1]], "trailed", trail_px=9.0, trail_angle_deg=float(rng.uniform(0, 180))
        )
    crossed = [int(i) for i in order if int(i) not in bad][:n_satellites]
    for index in crossed:
        satellite = crossing_satellite(rng, frames[index].setup.shape_hw)
        frames[index] = _changed(frames[index], "good", satellites=(satellite,))
    return frames


def _dimmed(frame: DemoFrame, factor: float) -> tuple[float, ...]:
    return tuple(factor * t for t in frame.setup.transparency)


def _changed(frame: DemoFrame, kind: str, **changes) -> DemoFrame:
    setup = FrameSetup(**{**vars(frame.setup), **changes})
    return DemoFrame(frame.name, frame.panel, kind, setup, frame.hint_deg)


def crossing_satellite(rng, shape_hw) -> Satellite:
    """A line from one side of the frame to the other."""
    height, width = shape_hw
    if rng.uniform() < 0.5:
        ends = (-5.0, rng.uniform(0, height), width + 5.0, rng.uniform(0, height))
    else:
        ends = (rng.uniform(0, width), -5.0, rng.uniform(0, width), height + 5.0)
    return Satellite(
        *(float(e) for e in ends), float(rng.uniform(1.0, 1.6)), float(rng.uniform(500.0, 4000.0))
    )


def _write_frame(path: Path, pixels: np.ndarray, frame: DemoFrame, with_wcs: bool) -> None:
    taken = datetime.strptime(path.stem.rsplit("_", 1)[1], "%Y%m%d-%H%M%S")
    rng = np.random.default_rng([*frame.setup.seed, 5])
    celsius = 18.0 + round(float(rng.uniform(0, 2)), 3)
    cards = telescope_cards(_OBJECT, frame.hint_deg, taken, celsius)
    write_raw_frame(path, pixels, cards + wcs_header_cards(frame.setup.cards) if with_wcs else cards)
