"""Made-up meshes of the sky whose every part is known: no pixels, so a whole night takes milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from zemosaic_core.detector_surface import products, surface_values
from zemosaic_core.glow_prior import PROBE_UV, FrameCircumstances, LocalSky
from zemosaic_core.sky_meshes import SkyMeshes
from zemosaic_core.star_flat import radius_squared

SHAPE_HW = (1920, 1080)
CELL = 64
PEDESTAL = 400.0
LIGHT = 430.0
CELL_NOISE = 1.2


@dataclass(frozen=True)
class MadeNight:
    """Meshes, their circumstances, and the truth: sky above the background per cell, shape (N, ny, nx)."""

    meshes: SkyMeshes
    circumstances: FrameCircumstances
    sky_truth: np.ndarray
    vignetting: float


def cell_grid() -> tuple[np.ndarray, np.ndarray]:
    height, width = SHAPE_HW
    y = (np.arange(0, height, CELL) + np.minimum(np.arange(0, height, CELL) + CELL, height) - 1) / 2
    x = (np.arange(0, width, CELL) + np.minimum(np.arange(0, width, CELL) + CELL, width) - 1) / 2
    return np.meshgrid(x, y)


def nebula(xy: np.ndarray, centre: tuple[float, float], size_px: float, peak: float) -> np.ndarray:
    """A smooth cloud with a hole in it."""
    r2 = ((xy - np.array(centre)) ** 2).sum(-1) / size_px**2
    return peak * np.exp(-r2) * (1 - 0.6 * np.exp(-4 * r2))


def made_night(
    seed: int = 1,
    *,
    panels: tuple[int, int] = (2, 2),
    frames: int = 8,
    vignetting: float = 0.04,
    tilt_adu: float = 20.0,
    panel_planes_adu: float = 0.0,
    cloud_adu: float = 0.0,
    cloud_px: float = 900.0,
    rotation_deg: float = 25.0,
    drift_adu: float = 40.0,
    overlap: float = 0.2,
    with_site: bool = False,
    frame_level_adu: float = 2.0,
    frame_plane_adu: float = 0.7,
    frame_bend_adu: float = 0.0,
    visit_bend_adu: float = 0.0,
) -> MadeNight:
    """Frames panel by panel under a glow that slopes over the horizon and drifts, with vignetting.

    ``frame_*`` and ``visit_*`` are sizes of what every frame or panel has of its own, as thin clouds give it.
    """
    rng = np.random.default_rng(seed)
    x, y = cell_grid()
    height, width = SHAPE_HW
    uv = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1)
    q = radius_squared(x, y, SHAPE_HW)
    local = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], axis=-1)
    pitch = np.array([width, height]) * (1 - overlap)
    extent = (np.array(panels[::-1]) - 1) * pitch / 2
    half = np.array([width - 1, height - 1]) / 2
    meshes, places, skies, hours, visits, directions = [], [], [], [], [], []
    n_all = panels[0] * panels[1] * frames
    slope = rng.normal(size=2)
    slope *= tilt_adu / np.linalg.norm(slope) / 2000.0
    for panel in range(panels[0] * panels[1]):
        centre = np.array([panel % panels[1], panel // panels[1]]) * pitch - extent
        own = rng.normal(0, panel_planes_adu, 2)
        bend = rng.normal(0, visit_bend_adu, 3) if visit_bend_adu else np.zeros(3)
        for _ in range(frames):
            k = len(meshes)
            angle = np.deg2rad(rotation_deg * k / max(1, n_all - 1))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            pointing = centre + rng.uniform(-18, 18, 2)
            xy = local @ turn.T + pointing
            over_horizon = (PROBE_UV * half @ turn.T + pointing) @ turn * 1.15e-5
            directions.append(_unit(np.pi / 4 + over_horizon[:, 1], over_horizon[:, 0] / np.cos(np.pi / 4)))
            sky = nebula(xy, (200.0, -300.0), cloud_px, cloud_adu)
            # The glow stands over the horizon: it turns against the sky as the frame does.
            glow = LIGHT + xy @ turn @ slope + drift_adu * np.sin(k / n_all * 3.0) + uv @ own
            glow = glow + rng.normal(0, 1) * frame_level_adu + uv @ rng.normal(0, frame_plane_adu, 2)
            if frame_bend_adu or visit_bend_adu:
                glow = glow + products(uv)[..., :3] @ (bend + rng.normal(0, frame_bend_adu, 3))
            light = (sky + glow) * (1 - vignetting * q)
            meshes.append(PEDESTAL + light + rng.normal(0, CELL_NOISE, x.shape))
            places.append(xy)
            skies.append(sky)
            hours.append(1.5 * k / n_all)
            visits.append(panel)
    mesh = np.array(meshes)[:, None]
    n = len(mesh)
    return MadeNight(
        SkyMeshes(
            mesh=mesh,
            error=np.full(mesh.shape, CELL_NOISE),
            sky=np.median(mesh, axis=(2, 3)),
            pixel_noise=np.full((n, 1), 40.0),
            gains=np.ones((n, 1)),
            xy=np.array(places),
            uv=uv[None],
            q=q[None],
            frame_area_px=float(height * width),
            size=np.zeros(n, np.int64),
        ),
        FrameCircumstances(
            np.array(hours),
            np.zeros(n, np.int64),
            np.array(visits),
            _local_sky(np.array(directions)) if with_site else None,
        ),
        np.array(skies),
        vignetting,
    )


def with_narrow_sensor(night: MadeNight, columns: int) -> MadeNight:
    """The same night, but every second frame comes from a sensor of so many columns of cells."""
    meshes, (x, y) = night.meshes, cell_grid()
    shape_hw = (SHAPE_HW[0], columns * CELL)
    last = np.minimum(np.arange(x.shape[1]), columns - 1)
    x = x[:, last]
    uv = np.stack([2 * x / (shape_hw[1] - 1) - 1, 2 * y / (shape_hw[0] - 1) - 1], axis=-1)
    narrow = np.arange(len(meshes.mesh)) % 2 == 1
    mesh, xy = meshes.mesh.copy(), meshes.xy.copy()
    mesh[narrow, ..., columns:] = np.nan
    xy[narrow] = xy[narrow][:, :, last]
    return replace(
        night,
        meshes=replace(
            meshes,
            mesh=mesh,
            xy=xy,
            uv=np.stack([meshes.uv[0], uv]),
            q=np.stack([meshes.q[0], radius_squared(x, y, shape_hw)]),
            size=narrow.astype(np.int64),
        ),
    )


def _unit(altitude: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    flat = np.cos(altitude)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(altitude)], axis=-1)


def _local_sky(direction: np.ndarray) -> LocalSky:
    airmass = 1.0 / direction[..., 2]
    return LocalSky(direction, airmass, np.zeros_like(airmass))


def left_over(night: MadeNight, model) -> np.ndarray:
    """What the corrected meshes still differ from the true sky by, less one constant, shape (N, ny, nx)."""
    m, terms, radial = (
        night.meshes.mesh[:, 0],
        model.terms[:, 0].astype(float),
        model.radial[:, 0].astype(float),
    )
    q, uv = night.meshes.q[night.meshes.size], night.meshes.uv[night.meshes.size]
    value = terms[:, 0, None, None] * m * (1 + radial[:, 0, None, None] * q + radial[:, 1, None, None] * q**2)
    value += terms[:, 1, None, None] + np.einsum("np,nyxp->nyx", terms[:, 2:], uv)
    value += radial[:, 2, None, None] * q + radial[:, 3, None, None] * q**2
    if model.surface is not None:
        value += np.stack(
            [surface_values(s.astype(float), at) for s, at in zip(model.surface[:, 0], uv, strict=True)]
        )
    left = value - night.sky_truth
    return left - np.nanmedian(left)
