"""Made-up nights under a sky that shines: raw frames whose glow follows altitude, azimuth, Moon and time.

`write_glow_night(folder, NightSpec(...))` writes the frames and returns their truth; `plan_glow_night` with the same
arguments returns the same truth without rendering, so nothing of it need be kept on disk. The binning of 2 makes
frames of 960 x 540 px as wide as those of the telescope, so that the glow across them is as steep as it really is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from zemosaic_core.night_sky import (
    Site,
    horizontal,
    julian_date,
    moon_place,
    parallactic_deg,
    sun_altitude_deg,
    transmission,
)
from zemosaic_core.synthetic_galaxy import Galaxy
from zemosaic_core.synthetic_glow import Glow, glow_adu
from zemosaic_core.synthetic_nebula import Cloud, paint_diffuse_light
from zemosaic_core.synthetic_sky import (
    GLOW_STEP_PX,
    NOMINAL_SCALE_ARCSEC,
    FrameSetup,
    HotPixels,
    Sky,
    make_hot_pixels,
    make_sky,
    pixel_to_sky,
    render_frame,
    tan_cards,
    vignette,
)
from zemosaic_io.demo_session import crossing_satellite
from zemosaic_io.telescope_frames import telescope_cards, wcs_header_cards, write_raw_frame

__all__ = ["GlowFrame", "GlowNight", "NightSpec", "plan_glow_night", "random_night", "write_glow_night"]

_TARGET = "Demo glow"
_TEXTURE_SCALE_DEG = 12.0 / 3600.0
_SITE = Site(48.0, 9.0)
_GLOW = Glow()
_GALAXY = Galaxy(radius_deg=0.5, core_adu=1500.0, disk_adu=200.0)


@dataclass(frozen=True)
class NightSpec:
    """One or more nights of the same target.

    Attributes
    ----------
    seed : int
        The same specification gives the same files, bit by bit.
    layout : str
        'panels': panel after panel, each with its frames. 'field': one panel. 'walk': the telescope's own mosaic
        mode, every frame elsewhere on a serpentine over the field of the panels.
    panels : tuple of int
        Rows and columns; neighbours overlap by ``overlap`` of a frame.
    frames_per_panel, cycles : int
        Frames per visit of a panel, and how often in a night each panel is visited.
    starts : tuple of datetime
        Begin of each night, UTC.
    cadence_s : float
        Time from frame to frame; longer than the exposure stands for frames that were not kept.
    site : Site
        Where the telescope stands.
    equatorial : bool
        Frames keep their position angle; otherwise row 0 is always up, and the field turns.
    glow : Glow
        Light of the sky.
    vignetting : float
        Loss of light in the corners; no flats are made.
    clouds : tuple of Cloud
        Nebulosity, brightness in ADU per pixel of the frames.
    galaxy : Galaxy or None
        At the centre, brightness in ADU per pixel of the frames.
    level_jitter, plane_jitter : float
        Scatter of the sky level from frame to frame, and of its slopes (from middle to edge), relative to the level.
    differential_extinction : bool
        Starlight is dimmed by the air at its own altitude; otherwise by that at the middle of its frame.
    haze : float
        A frame loses up to this share of the light of the stars.
    n_satellites, bad_pixels : int
        Frames with a trail; hot pixels of the sensor.
    with_site, with_wcs : bool
        What the headers know.
    hint_is_target : bool
        RA and DEC of the headers name the centre of the mosaic instead of the frame.
    """

    seed: int = 1
    layout: str = "panels"
    panels: tuple[int, int] = (2, 2)
    frames_per_panel: int = 8
    cycles: int = 1
    starts: tuple[datetime, ...] = (datetime(2025, 10, 20, 20, 0),)
    cadence_s: float = 60.0
    center_deg: tuple[float, float] = (10.6847, 41.2690)
    overlap: float = 0.20
    shape_hw: tuple[int, int] = (960, 540)
    binning: int = 2
    site: Site = _SITE
    equatorial: bool = False
    glow: Glow = _GLOW
    vignetting: float = 0.04
    clouds: tuple[Cloud, ...] = ()
    galaxy: Galaxy | None = _GALAXY
    level_jitter: float = 0.01
    plane_jitter: float = 0.002
    differential_extinction: bool = False
    haze: float = 0.04
    n_satellites: int = 2
    bad_pixels: int = 40
    with_site: bool = True
    with_wcs: bool = True
    hint_is_target: bool = False

    @property
    def scale_arcsec(self) -> float:
        """Arc seconds per pixel."""
        return NOMINAL_SCALE_ARCSEC * self.binning


@dataclass(frozen=True)
class GlowFrame:
    """One exposure.

    Attributes
    ----------
    name : str
        File name.
    night, visit, panel : int
        Numbers; a visit is an unbroken stay on one panel (in a walk every frame is one).
    taken : datetime
        UTC.
    altitude_deg, azimuth_deg : float
        Of its centre.
    hint_deg : tuple of float
        RA and DEC of the header.
    setup : FrameSetup
        True WCS, transparency, glow, vignetting, accidents.
    """

    name: str
    night: int
    visit: int
    panel: int
    taken: datetime
    altitude_deg: float
    azimuth_deg: float
    hint_deg: tuple[float, float]
    setup: FrameSetup


@dataclass(frozen=True)
class GlowNight:
    """All that is true about the frames in a folder.

    Attributes
    ----------
    folder : Path
        Where the frames are.
    spec : NightSpec
        What was asked for.
    sky : Sky
        Stars (flux in ADU per frame at the zenith) and diffuse light (ADU per nominal pixel).
    frames : tuple of GlowFrame
        In the order they were taken.
    hot_pixels : HotPixels
        Defects of the sensor.
    """

    folder: Path
    spec: NightSpec
    sky: Sky
    frames: tuple[GlowFrame, ...]
    hot_pixels: HotPixels = field(repr=False)

    @property
    def paths(self) -> list[Path]:
        """Paths of all frames, in the order they were taken."""
        return [self.folder / frame.name for frame in self.frames]

    def fingerprint(self) -> str:
        """Return a hash of everything the pixels of the frames follow from."""
        digest = hashlib.sha256(repr(self.spec).encode())
        for array in (self.sky.ra_deg, self.sky.flux, self.sky.texture, self.hot_pixels.flat):
            digest.update(np.ascontiguousarray(array).tobytes())
        for frame in self.frames:
            setup = frame.setup
            digest.update(
                repr((frame.name, setup.cards, setup.transparency, setup.fwhm_px, setup.satellites)).encode()
            )
            for nodes in (setup.glow_adu, setup.air):
                digest.update(b"" if nodes is None else np.ascontiguousarray(nodes).tobytes())
        return digest.hexdigest()[:16]

    def glow_at(self, index: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the light of the sky at places (px, origin 0) of a frame, before vignetting: (3, ...) ADU."""
        nodes = self.frames[index].setup.glow_adu
        assert nodes is not None
        gx, gy = np.asarray(x) / GLOW_STEP_PX, np.asarray(y) / GLOW_STEP_PX
        i = np.clip(np.floor(gx).astype(int), 0, nodes.shape[2] - 2)
        j = np.clip(np.floor(gy).astype(int), 0, nodes.shape[1] - 2)
        fx, fy = gx - i, gy - j
        top = (1 - fx) * nodes[:, j, i] + fx * nodes[:, j, i + 1]
        bottom = (1 - fx) * nodes[:, j + 1, i] + fx * nodes[:, j + 1, i + 1]
        return np.asarray((1 - fy) * top + fy * bottom)

    def flat(self) -> np.ndarray:
        """Return the true flat field, shape (H, W), float32; 1 in the middle."""
        return vignette(self.spec.shape_hw, self.spec.vignetting)


def plan_glow_night(folder: Path | str, spec: NightSpec) -> GlowNight:
    """Decide everything about the nights without rendering or writing a frame.

    Raises
    ------
    ValueError
        For an unknown layout, or a night in which the target is below 8 degrees or the Sun above -8.
    """
    rng = np.random.default_rng([spec.seed, 51])
    stops = _stops(spec)
    scale_deg = spec.scale_arcsec / 3600.0
    frame_deg = np.array(spec.shape_hw) * scale_deg
    reach = max(float(np.hypot(*(np.array(stop) - spec.center_deg)[::-1])) for _, stop in stops)
    size_deg = 2.0 * (reach + 0.6 * float(np.hypot(*frame_deg)))
    sky = _make_sky(spec, size_deg, float(np.prod(frame_deg)))
    hot = make_hot_pixels(spec.shape_hw, count=spec.bad_pixels, seed=spec.seed)
    frames: list[GlowFrame] = []
    visit = -1
    for night, start in enumerate(spec.starts):
        moment, previous = start, None
        framing = rng.uniform(-2.0, 2.0)
        for panel, stop in _itinerary(spec, stops):
            if spec.layout == "walk" or panel != previous:
                visit, previous = visit + 1, panel
                pointing_error = rng.uniform(-0.03, 0.03, 2)
            moment = moment + timedelta(seconds=spec.cadence_s * float(rng.uniform(0.9, 1.1)))
            numbers = (night, visit, panel)
            hours = (moment - start).total_seconds() / 3600.0
            pose = (stop, framing, pointing_error)
            frames.append(_expose(rng, spec, pose, moment, hours, numbers, hot, len(frames)))
    crossed = rng.permutation(len(frames))[: spec.n_satellites]
    for index in np.sort(crossed):
        trail = crossing_satellite(rng, spec.shape_hw)
        frames[index] = replace(frames[index], setup=replace(frames[index].setup, satellites=(trail,)))
    return GlowNight(Path(folder), spec, sky, tuple(frames), hot)


def write_glow_night(
    folder: Path | str, spec: NightSpec, *, on_frame: Callable[[int, int], None] | None = None
) -> GlowNight:
    """Write the raw frames of a made-up night and return their truth.

    Parameters
    ----------
    folder : path
        Where the frames go; created when missing.
    spec : NightSpec
        What the night is like.
    on_frame : callable, optional
        Called with (frames written, frames in all).

    Raises
    ------
    SaveFailed
        When a file cannot be written.
    ValueError
        As `plan_glow_night`.
    """
    night = plan_glow_night(folder, spec)
    for index, frame in enumerate(night.frames):
        site = (spec.site.latitude_deg, spec.site.longitude_deg) if spec.with_site else None
        cards = telescope_cards(
            _TARGET,
            frame.hint_deg,
            frame.taken,
            18.0 + round(0.03 * (index % 40), 3),
            binning=spec.binning,
            equatorial=spec.equatorial,
            site_deg=site,
        )
        if spec.with_wcs:
            cards += wcs_header_cards(frame.setup.cards)
        write_raw_frame(night.folder / frame.name, render_frame(night.sky, frame.setup), cards)
        if on_frame is not None:
            on_frame(index + 1, len(night.frames))
    return night


def _stops(spec: NightSpec) -> list[tuple[int, tuple[float, float]]]:
    """Panel number and centre (RA, Dec) of every place the telescope stops at."""
    scale_deg = spec.scale_arcsec / 3600.0
    pitch_hw = np.array(spec.shape_hw) * (1.0 - spec.overlap) * scale_deg
    if spec.layout == "field":
        return [(0, spec.center_deg)]
    turn = _grid_angle_deg(spec)
    if spec.layout == "panels":
        rows, columns = spec.panels
        places = [
            ((column - (columns - 1) / 2.0) * pitch_hw[1], (row - (rows - 1) / 2.0) * pitch_hw[0])
            for row in range(rows)
            for column in range(columns)
        ]
        return list(enumerate(_turned(spec, places, turn)))
    if spec.layout == "walk":
        count = spec.panels[0] * spec.panels[1] * spec.frames_per_panel
        columns = max(2, round(float(np.sqrt(count * spec.panels[1] / spec.panels[0]))))
        extent = pitch_hw * (np.array(spec.panels) - 1)
        places = []
        for number in range(count):
            row, column = divmod(number, columns)
            column = column if row % 2 == 0 else columns - 1 - column
            u = column / (columns - 1) - 0.5
            v = row / max(1, -(-count // columns) - 1) - 0.5
            places.append((u * extent[1], v * extent[0]))
        return list(enumerate(_turned(spec, places, turn)))
    raise ValueError(f"layout {spec.layout!r}; known are 'panels', 'field' and 'walk'")


def _grid_angle_deg(spec: NightSpec) -> float:
    """Position angle of the panels: that of the frames in the middle of the first night."""
    count = spec.panels[0] * spec.panels[1] * spec.frames_per_panel * spec.cycles
    middle = spec.starts[0] + timedelta(seconds=0.5 * count * spec.cadence_s)
    return parallactic_deg(*spec.center_deg, julian_date(middle), spec.site)


def _turned(
    spec: NightSpec, offsets_deg: list[tuple[float, float]], turn_deg: float
) -> list[tuple[float, float]]:
    """Centres on the sky of places given as (right, down) on a frame at the mosaic's centre, degrees."""
    plane = tan_cards(*spec.center_deg, rotation_deg=turn_deg, scale_arcsec=3600.0, shape_hw=(1, 1))
    found = []
    for right, down in offsets_deg:
        ra, dec = pixel_to_sky(plane, right, down)
        found.append((float(ra), float(dec)))
    return found


def _itinerary(
    spec: NightSpec, stops: list[tuple[int, tuple[float, float]]]
) -> list[tuple[int, tuple[float, float]]]:
    per_stop = 1 if spec.layout == "walk" else spec.frames_per_panel
    return [stop for _ in range(spec.cycles) for stop in stops for _ in range(per_stop)]


def _make_sky(spec: NightSpec, size_deg: float, frame_area_deg2: float) -> Sky:
    # Small frames see as many stars as full-size ones: the sky gets denser as they get smaller.
    crowding = max(1.0, 0.902 / frame_area_deg2)
    sky = make_sky(spec.center_deg, size_deg, seed=spec.seed, stars_per_deg2=35.0 * crowding)
    # The texture is per nominal pixel, the specification per pixel of the frames.
    area = float(spec.binning**2)
    clouds = tuple(replace(cloud, peak_adu=cloud.peak_adu / area) for cloud in spec.clouds)
    galaxy = spec.galaxy
    if galaxy is not None:
        galaxy = replace(galaxy, core_adu=galaxy.core_adu / area, disk_adu=galaxy.disk_adu / area)
        size_deg = max(size_deg, 2.6 * galaxy.radius_deg)
    texture = paint_diffuse_light(
        clouds, galaxy, size_deg=1.1 * size_deg, scale_deg=_TEXTURE_SCALE_DEG, seed=spec.seed
    )
    cards = tan_cards(*spec.center_deg, scale_arcsec=_TEXTURE_SCALE_DEG * 3600.0, shape_hw=texture.shape[1:])
    # The texture has north towards +y: turn the usual "row 0 is up" around.
    cards["CD2_2"] = -float(cards["CD2_2"])
    return replace(sky, texture=texture, texture_cards=cards)


def _expose(
    rng: np.random.Generator,
    spec: NightSpec,
    pose: tuple[tuple[float, float], float, np.ndarray],
    moment: datetime,
    hours: float,
    numbers: tuple[int, int, int],
    hot: HotPixels,
    index: int,
) -> GlowFrame:
    stop, framing_deg, pointing_error = pose
    scale_deg = spec.scale_arcsec / 3600.0
    dither = (
        rng.uniform(-1.0, 1.0, 2) * 0.012 * min(spec.shape_hw) + 4.0 * rng.standard_normal(2)
    ) * scale_deg
    dec = stop[1] + dither[1]
    ra = (stop[0] + dither[0] / np.cos(np.deg2rad(dec))) % 360.0
    jd = julian_date(moment)
    jitter_deg = 0.02 * float(rng.standard_normal())
    if spec.equatorial:
        rotation = _grid_angle_deg(spec) + jitter_deg
    else:
        rotation = parallactic_deg(ra, dec, jd, spec.site) + framing_deg + jitter_deg
    cards = tan_cards(ra, dec, rotation_deg=rotation, scale_arcsec=spec.scale_arcsec, shape_hw=spec.shape_hw)
    altitude, azimuth = (float(v) for v in horizontal(ra, dec, jd, spec.site))
    if altitude < 8.0 or sun_altitude_deg(jd, spec.site) > -8.0:
        raise ValueError(
            f"{moment}: the target is {altitude:.0f} degrees high and the Sun "
            f"{sun_altitude_deg(jd, spec.site):.0f}; choose another time"
        )
    overhead = transmission(altitude, spec.glow.extinction_mag)
    air = (1.0 - spec.haze * float(rng.uniform())) * overhead
    fwhm_px, n_cosmics = float(rng.uniform(2.4, 2.9)), int(rng.integers(1, 5))
    nodes, across = _light_nodes(rng, spec, cards, jd, hours)
    setup = FrameSetup(
        cards=cards,
        shape_hw=spec.shape_hw,
        transparency=(float(air[0]), float(air[1]), float(air[2])),
        fwhm_px=fwhm_px,
        hot_pixels=hot,
        n_cosmics=n_cosmics,
        seed=(spec.seed, index),
        glow_adu=nodes,
        vignetting=spec.vignetting,
        air=across / overhead[:, None, None] if spec.differential_extinction else None,
    )
    name = f"Light_{_TARGET.replace(' ', '_')}_10.0s_IRCUT_{moment.strftime('%Y%m%d-%H%M%S')}.fit"
    if spec.hint_is_target:
        hint = spec.center_deg
    else:
        hint = (
            float((stop[0] + pointing_error[0] / np.cos(np.deg2rad(dec))) % 360.0),
            stop[1] + float(pointing_error[1]),
        )
    return GlowFrame(name, *numbers, moment, altitude, azimuth, hint, setup)


def _light_nodes(
    rng: np.random.Generator, spec: NightSpec, cards: dict[str, float | str], jd: float, hours: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sky (ADU) and transmission of the air at the nodes of a frame, (3, ny, nx) each."""
    height, width = spec.shape_hw
    xs = np.arange(0, width + 2 * GLOW_STEP_PX, GLOW_STEP_PX)
    ys = np.arange(0, height + 2 * GLOW_STEP_PX, GLOW_STEP_PX)
    x, y = np.meshgrid(xs, ys)
    altitude, azimuth = horizontal(*pixel_to_sky(cards, x, y), jd, spec.site)
    nodes = glow_adu(spec.glow, altitude, azimuth, hours, moon_place(jd, spec.site))
    u, t = 2.0 * x / (width - 1) - 1.0, 2.0 * y / (height - 1) - 1.0
    slopes = spec.plane_jitter * rng.standard_normal(2)
    level = spec.level_jitter * float(rng.standard_normal())
    jittered = np.asarray(nodes * (1.0 + level + slopes[0] * u + slopes[1] * t))
    return jittered, transmission(altitude, spec.glow.extinction_mag)


def random_night(seed: int) -> NightSpec:
    """Draw a night: layout, site, date, Moon, vignetting, clouds and mount.

    Every seed gives a night in which the target is up and the Sun is down.
    """
    rng = np.random.default_rng([seed, 61])
    for _ in range(2000):
        spec = _draw(rng, seed)
        if _is_possible(spec):
            return spec
    raise RuntimeError(f"no possible night found for seed {seed}")


def _draw(rng: np.random.Generator, seed: int) -> NightSpec:
    layout = str(rng.choice(["panels", "panels", "panels", "walk", "field"]))
    panels = ((2, 2), (3, 3), (3, 2), (2, 3), (1, 3))[int(rng.integers(5))]
    frames = int(rng.integers(5, 9)) if layout != "field" else int(rng.integers(16, 33))
    # A field is followed for hours, panels take a part of a night.
    count = frames if layout == "field" else frames * panels[0] * panels[1]
    duration_h = float(rng.uniform(0.6, 2.0)) if layout != "field" else float(rng.uniform(1.5, 4.5))
    site = Site(float(rng.uniform(-40.0, 56.0)), float(rng.uniform(-120.0, 140.0)))
    first = datetime(2025, 1, 1) + timedelta(days=float(rng.uniform(0.0, 365.0)))
    starts = [first]
    if rng.uniform() < 0.35:
        starts.append(first + timedelta(days=int(rng.integers(1, 6)), hours=float(rng.uniform(-3.0, 3.0))))
    clouds: tuple[Cloud, ...] = ()
    if rng.uniform() < 0.6:
        clouds = (
            Cloud(
                peak_adu=float(rng.uniform(80.0, 150.0)),
                radius_deg=float(rng.uniform(0.7, 1.3)),
                east_deg=float(rng.uniform(-0.6, 0.6)),
                north_deg=float(rng.uniform(-0.6, 0.6)),
            ),
        )
    glow = Glow(
        airglow_adu=float(rng.uniform(60.0, 180.0)),
        air_adu=float(rng.uniform(60.0, 250.0)),
        dome_adu=float(rng.uniform(300.0, 3000.0)),
        dome_azimuth_deg=float(rng.uniform(0.0, 360.0)),
        moon_adu_per_nl=float(rng.uniform(0.15, 0.6)),
        drift=float(rng.uniform(0.0, 0.2)),
        drift_period_h=float(rng.uniform(1.5, 5.0)),
        drift_phase=float(rng.uniform(0.0, 2.0 * np.pi)),
    )
    return NightSpec(
        seed=seed,
        layout=layout,
        panels=panels,
        frames_per_panel=frames,
        cycles=int(rng.choice([1, 1, 2])) if layout == "panels" else 1,
        starts=tuple(starts),
        cadence_s=3600.0 * duration_h / count,
        center_deg=(float(rng.uniform(0.0, 360.0)), float(rng.uniform(-45.0, 70.0))),
        site=site,
        equatorial=bool(rng.uniform() < 0.25),
        glow=glow,
        vignetting=float(rng.uniform(0.0, 0.12)),
        clouds=clouds,
        galaxy=Galaxy(radius_deg=0.4, core_adu=1500.0, disk_adu=200.0) if rng.uniform() < 0.5 else None,
        n_satellites=int(rng.integers(0, 9)),
    )


def _is_possible(spec: NightSpec) -> bool:
    """Say whether target, Sun and light of the sky are acceptable from begin to end of each night."""
    count = len(_itinerary(spec, _stops(spec)))
    for start in spec.starts:
        for part in (0.0, 0.5, 1.0):
            jd = julian_date(start + timedelta(seconds=part * count * spec.cadence_s * 1.1))
            altitude, azimuth = horizontal(*spec.center_deg, jd, spec.site)
            if not 27.0 < altitude < 83.0 or sun_altitude_deg(jd, spec.site) > -12.0:
                return False
            light = glow_adu(spec.glow, altitude, azimuth, 0.0, moon_place(jd, spec.site))
            if light[1] > 2500.0:
                return False
    return True
