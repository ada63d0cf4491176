"""The end of phase 4: one model of the sky for all frames, from their meshes and star fluxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from astropy.wcs import WCS
from threadpoolctl import threadpool_limits

from zemosaic_core.detector_surface import places_on_detector
from zemosaic_core.glow_prior import PROBE_UV, FrameCircumstances, LocalSky
from zemosaic_core.light_digits import decimals_of_light, rounded_light
from zemosaic_core.night_sky import Site, airmass, horizontal, julian_date, moon_place, moonlight_nl
from zemosaic_core.site_of_frames import RotationFit, site_from_rotation
from zemosaic_core.sky_cost import channels_at_once, lattice_nodes, solving_bytes
from zemosaic_core.sky_lattice import cell_centres, cell_spacing_px
from zemosaic_core.sky_meshes import SkyMeshes
from zemosaic_core.sky_model import SkyModel, solve_sky
from zemosaic_core.star_flat import StarFlat, no_star_flat, radius_squared
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.phase2_group import frame_centres
from zemosaic_pipeline.phase4_grid import Placed, StarFluxes
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameTerms, MosaicGrid, RegisteredFrame
from zemosaic_pipeline.sessions import night_labels, session_labels, setup_labels

__all__ = ["SkySolution", "run", "solved_with_flat", "with_gains"]

# Frames taken one after the other at one pointing share what is left of the glow for this long.
VISIT_S = 600.0
VISIT_FIELDS = 0.1
# More sessions than this share their patterns by camera: each has few frames then.
MAX_SESSIONS = 12
# Overlaps that the report shows.
MAX_OVERLAPS = 400
# Extinction that shapes the moonlight; only its shape counts.
EXTINCTION_MAG = 0.25


@dataclass(frozen=True)
class SkySolution:
    """The model, and the terms of each frame by its index; no terms where the model was not wanted or not possible.

    ``reason_key`` says why there is no model, ``site_key`` where the site came from; ``shared_before`` that tiles which
    were given had such a model when they were made; ``with_tiles`` that tiles with skies of their own are joined.
    ``gain_factors`` change the gains of frames and stacks, by index and channel, where the sky made the flat better
    known than the stars did.
    """

    model: SkyModel | None
    terms: dict[int, FrameTerms]
    frames: tuple[int, ...]
    hours: np.ndarray
    reason_key: str = ""
    site_key: str = ""
    shared_before: bool = False
    with_tiles: bool = False
    gain_factors: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def is_one_sky(self) -> bool:
        """Whether one sky lies behind all frames: modelled here, or before their tiles were made."""
        return not self.with_tiles and (self.model is not None or self.shared_before)

    def facts(self) -> dict[str, Any]:
        """Return what the report shows."""
        if self.model is None:
            return {"model": False, "reason": self.reason_key}
        model = self.model
        return {
            "model": True,
            "site": self.site_key,
            "frames": list(self.frames),
            "hours": np.round(self.hours, 4).tolist(),
            "flat": {
                "applied": model.flat_applied,
                "nu": model.flat.nu.tolist(),
                "corner": model.flat.corner,
                "corner_sigma": model.flat.corner_sigma,
                "stars": model.flat.n_measurements,
                "cells": model.flat.n_cells,
            },
            "pedestal": {
                "adu": [float(f"{level:.4g}") for level in model.pedestal.level_adu],
                "sigma_adu": [float(f"{sigma:.3g}") for sigma in model.pedestal.sigma_adu],
                "measured": model.pedestal.measured,
            },
            "channels": [
                {
                    "assurance": channel.assurance,
                    "gauge_used": channel.gauge.used,
                    "conflict": channel.gauge.conflict,
                    "sigma_tilt_adu": channel.gauge.sigma_data[:2].tolist(),
                    "sigma_bowl_adu": channel.gauge.sigma_data[2:].tolist(),
                    "background_adu": channel.background_adu,
                    "empty_share": float(channel.empty.sum() / max(1, channel.seen.sum())),
                    "glow": _rounded(channel.glow),
                    "patterns_adu": channel.patterns.tolist(),
                    "session_patterns_adu": _rounded(channel.session_patterns),
                    "residual_adu": _rounded(channel.residual_adu),
                    "overlaps": [
                        list(row) for row in zip(*map(_rounded, _fullest(channel.overlaps).T), strict=True)
                    ],
                    "removed_quadric": channel.removed_quadric.tolist(),
                    "quadric_centre_xy": list(channel.quadric_centre_xy),
                    "sizes_adu": channel.sizes_adu.tolist(),
                }
                for channel in model.channels
            ],
        }


def _rounded(levels: np.ndarray) -> list[Any]:
    """Return levels as nested lists, to a thousandth of a count or, where values run from 0 to 1, four digits."""
    finite = np.abs(levels[np.isfinite(levels) & (levels != 0)])
    typical = float(np.median(finite)) if finite.size else 0.0
    return list(np.round(levels, decimals_of_light(typical, 3, 4)).tolist())


def _fullest(overlaps: np.ndarray) -> np.ndarray:
    """Return the overlaps that share most, at most `MAX_OVERLAPS`."""
    return overlaps[np.argsort(-overlaps[:, 2], kind="stable")[:MAX_OVERLAPS]]


def _taken(date_obs: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(date_obs)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def visit_labels(
    centre_xy: np.ndarray, field_px: float, seconds: np.ndarray, night: np.ndarray
) -> np.ndarray:
    """Return one number per frame, the same for frames taken one after the other at one pointing."""
    labels = np.zeros(len(seconds), np.int64)
    order = np.lexsort((centre_xy[:, 1], centre_xy[:, 0], seconds, night))
    first, label = order[0], 0
    for i in order:
        away = float(np.hypot(*(centre_xy[i] - centre_xy[first])))
        if (
            night[i] != night[first]
            or seconds[i] - seconds[first] > VISIT_S
            or away > VISIT_FIELDS * field_px
        ):
            first, label = i, label + 1
        labels[i] = label
    return labels


def _meshes(frames: Sequence[RegisteredFrame], cell_px: int) -> SkyMeshes:
    n = len(frames)
    shapes = [frame.solved.frame.info.shape_hw for frame in frames]
    sizes = sorted(set(shapes))
    sides = {shape: frames[shapes.index(shape)].open_mesh().shape[1:] for shape in sizes}
    ny, nx = (max(side[axis] for side in sides.values()) for axis in (0, 1))
    # Smaller meshes repeat their last cells, which have no level.
    centres: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for shape, (rows, columns) in sides.items():
        x, y = cell_centres(shape, (rows, columns), cell_px)
        more = ((0, ny - rows), (0, nx - columns))
        centres[shape] = np.pad(x, more, mode="edge"), np.pad(y, more, mode="edge")
    n_channels = len(frames[0].gain)
    mesh, error = (np.full((n, n_channels, ny, nx), np.nan, np.float32) for _ in range(2))
    areas = np.empty(n)
    places = np.empty((n, ny, nx, 2))
    for i, (frame, shape) in enumerate(zip(frames, shapes, strict=True)):
        rows, columns = sides[shape]
        mesh[i, :, :rows, :columns] = frame.open_mesh()
        error[i, :, :rows, :columns] = frame.solved.measure.columns("mesh_noise")["mesh_noise"]
        places[i] = np.stack(frame.to_plane.apply(*centres[shape]), axis=-1)
        areas[i] = _area_px(frame, shape)
    return SkyMeshes(
        mesh=mesh,
        error=error,
        sky=np.array([frame.solved.measure.sky_adu for frame in frames], float),
        pixel_noise=np.array([frame.solved.measure.noise_adu for frame in frames], float),
        gains=np.array([frame.gain for frame in frames], float),
        xy=places,
        uv=np.stack([places_on_detector(*centres[shape], shape) for shape in sizes]),
        q=np.stack([radius_squared(*centres[shape], shape) for shape in sizes]),
        frame_area_px=float(np.median(areas)),
        size=np.array([sizes.index(shape) for shape in shapes], np.int64),
    )


def _area_px(frame: RegisteredFrame, shape_hw: tuple[int, int]) -> float:
    """Return the area of a frame on the mosaic plane."""
    height, width = shape_hw
    outline = np.stack(
        frame.to_plane.apply(np.array([0.0, width, 0.0]), np.array([0.0, 0.0, height])), axis=-1
    )
    across, along = outline[1] - outline[0], outline[2] - outline[0]
    return float(abs(across[0] * along[1] - across[1] * along[0]))


def _local_sky(
    frames: Sequence[RegisteredFrame],
    moments: Sequence[datetime],
    sites: Sequence[tuple[float, float]],
    grid: MosaicGrid,
) -> LocalSky:
    """Return where each frame looks in the sky of its observer."""
    wcs = WCS(grid.wcs_cards)
    sides = np.array([frame.solved.frame.info.shape_hw[::-1] for frame in frames]) - 1
    probes = (PROBE_UV + 1) * sides[:, None] / 2
    places = np.stack(
        [np.stack(frame.to_plane.apply(*xy.T), axis=-1) for frame, xy in zip(frames, probes, strict=True)]
    )
    ra, dec = wcs.all_pix2world(places[..., 0].ravel(), places[..., 1].ravel(), 0)
    ra, dec = ra.reshape(len(frames), -1), dec.reshape(len(frames), -1)
    directions, masses, light = [], [], []
    for i, (moment, site) in enumerate(zip(moments, sites, strict=True)):
        place, jd = Site(*site), julian_date(moment)
        altitude, azimuth = horizontal(ra[i], dec[i], jd, place)
        a, z = np.radians(altitude), np.radians(azimuth)
        directions.append(np.stack([np.cos(a) * np.cos(z), np.cos(a) * np.sin(z), np.sin(a)], axis=-1))
        masses.append(airmass(altitude))
        light.append(moonlight_nl(altitude, azimuth, moon_place(jd, place), EXTINCTION_MAG))
    return LocalSky(np.array(directions), np.array(masses), np.array(light))


def _site_from_rotation(
    frames: Sequence[RegisteredFrame], moments: Sequence[datetime], night: np.ndarray
) -> RotationFit:
    """Find the site from how the frames turned; one place for all of them."""
    ra_deg, dec_deg, rotation_deg = frame_centres([frame.solved for frame in frames]).T
    jd = np.array([julian_date(moment) for moment in moments])
    return site_from_rotation(ra_deg, dec_deg, rotation_deg, jd, night)


def _circumstances(
    frames: Sequence[RegisteredFrame],
    meshes: SkyMeshes,
    grid: MosaicGrid,
    site: tuple[float, float] | None,
) -> tuple[FrameCircumstances, str]:
    """Return when and where the frames were taken, and a text key of where the site came from."""
    infos = [frame.solved.frame.info for frame in frames]
    moments = [_taken(info.date_obs) for info in infos]
    known = [moment for moment in moments if moment is not None]
    first = min(known) if known else None
    seconds = np.array(
        [0.0 if moment is None or first is None else (moment - first).total_seconds() for moment in moments]
    )
    night = np.array(night_labels(infos), np.int64)
    centre = np.nanmean(meshes.xy.reshape(len(frames), -1, 2), axis=1)
    visit = visit_labels(centre, float(np.sqrt(meshes.frame_area_px)), seconds, night)
    sites = [site or info.site_deg for info in infos]
    local, key = None, "sky_site_unknown"
    from_turning = ""
    if any(place is None for place in sites) and all(moment is not None for moment in moments):
        fit = _site_from_rotation(frames, [m for m in moments if m], night)
        if fit.site is not None:
            sites = [(fit.site.latitude_deg, fit.site.longitude_deg)] * len(frames)
            from_turning = "sky_site_rotation"
        elif fit.equatorial:
            key = "sky_site_equatorial"
    if all(moment is not None for moment in moments) and all(place is not None for place in sites):
        local = _local_sky(frames, [m for m in moments if m], [s for s in sites if s], grid)
        key = "sky_site_setting" if site else from_turning or "sky_site_header"
    session = next(
        (labels for labels in (session_labels(infos), setup_labels(infos)) if max(labels) < MAX_SESSIONS),
        [0] * len(infos),
    )
    return FrameCircumstances(seconds / 3600.0, night, visit, local, np.array(session, np.int64)), key


def with_gains(
    frames: Sequence[RegisteredFrame], factors: Mapping[int, np.ndarray]
) -> tuple[RegisteredFrame, ...]:
    """Return the frames with gains changed by what there is for their index."""
    return tuple(
        replace(frame, gain=tuple(map(float, frame.gain * factors[frame.solved.frame.index])))
        if frame.solved.frame.index in factors
        else frame
        for frame in frames
    )


def solved_with_flat(
    meshes: SkyMeshes,
    circumstances: FrameCircumstances,
    indices: Sequence[int],
    flats: Mapping[int, StarFlat],
    fluxes: StarFluxes | None,
    threads: int = 1,
) -> tuple[SkyModel, dict[int, np.ndarray]]:
    """Return the model of the sky, and the gains that it needs.

    Where the sky makes the flat better known than the stars did, fluxes with that flat taken out give new gains, and
    these the sky once more.

    Parameters
    ----------
    meshes, circumstances
        Of the same frames.
    indices : sequence of int
        Indices of these frames.
    flats : mapping of int to StarFlat
        What the stars told, by index of the frame.
    fluxes : StarFluxes or None
        Of these frames and perhaps of others; None where the gains came from elsewhere.
    threads : int
        Channels solved at once.

    Returns
    -------
    SkyModel
    dict
        New gains, (C,) by index of all frames with fluxes; empty where the gains stay as they are.
    """
    unknown = no_star_flat()
    of_stars = [flats.get(index, unknown) for index in indices]
    model = solve_sky(meshes, circumstances, of_stars, threads=threads)
    flat = model.better_flat
    if flat is None or fluxes is None:
        return model, {}
    scale = fluxes.flux_scale({**flats, **dict.fromkeys(indices, flat)})
    gains = dict(zip(fluxes.indices, scale.gains, strict=True))
    meshes = replace(meshes, gains=np.array([gains[index] for index in indices]))
    return solve_sky(meshes, circumstances, flat, before=model, threads=threads), gains


def run(frames: Sequence[RegisteredFrame], placed: Placed, plan: RunPlan, context: RunContext) -> SkySolution:
    """Return the model of the sky, or why there is none."""
    grid, flats = placed.grid, placed.flats
    indices = tuple(frame.solved.frame.index for frame in frames)

    def without(reason_key: str) -> SkySolution:
        return SkySolution(None, {}, indices, np.zeros(len(frames)), reason_key=reason_key)

    if plan.sky.model != "full":
        return without("sky_not_wanted")
    if plan.stack.normalise != "linear_fit":
        context.say("sky_needs_linear_fit", "WARN", method=plan.stack.normalise)
        return without("sky_needs_linear_fit")
    if not frames:
        return without("")
    meshes = _meshes(frames, plan.measure.mesh_cell_px)
    circumstances, site_key = _circumstances(frames, meshes, grid, plan.sky.site_deg)
    cells = math.prod(meshes.xy.shape[1:3])
    nodes = lattice_nodes(len(frames), math.prod(grid.shape_hw), cell_spacing_px(meshes.xy), cells)
    one_bytes = solving_bytes(len(frames), nodes, cells)
    at_once = channels_at_once(one_bytes, plan.block_budget_bytes, context.threads, plan.n_channels)
    # Small dense algebra: several threads would mostly wait for each other, for minutes on a busy machine.
    with threadpool_limits(limits=1):
        model, gains = solved_with_flat(meshes, circumstances, indices, flats, placed.fluxes, at_once)
    factors = {
        frame.solved.frame.index: gains[frame.solved.frame.index] / np.array(frame.gain)
        for frame in (placed.frames if gains else ())
    }
    if circumstances.local is not None and not model.local_used:
        site_key = "sky_site_misfit"
        context.say("sky_site_not_used", "WARN")
    terms = {
        index: FrameTerms(
            model.terms[i], model.radial[i], None if model.surface is None else model.surface[i]
        )
        for i, index in enumerate(indices)
    }
    _tell(model, context)
    return SkySolution(model, terms, indices, circumstances.hours, site_key=site_key, gain_factors=factors)


def _tell(model: SkyModel, context: RunContext) -> None:
    """Say how well the large scales of the sky are known, and what flat was found."""
    worst = max(model.channels, key=lambda channel: float(channel.gauge.sigma_data[:2].max()))
    tilt, bowl = worst.gauge.sigma_data[:2].max(), worst.gauge.sigma_data[2:].max()
    residual = float(np.nanmedian([np.nanmedian(channel.residual_adu) for channel in model.channels]))
    context.detail(sky_assurance=worst.assurance, sky_residual_adu=residual)
    context.say(
        f"sky_assurance_{worst.assurance}",
        tilt_adu=rounded_light(float(tilt), 1) if np.isfinite(tilt) else None,
        bowl_adu=rounded_light(float(bowl), 1) if np.isfinite(bowl) else None,
        residual_adu=rounded_light(residual, 2) if np.isfinite(residual) else None,
    )
    if model.flat_applied:
        context.say(
            "sky_flat_of_sky" if model.flat.n_cells else "sky_flat_applied",
            corner_percent=round(100 * (1 - model.flat.corner), 2),
            error_percent=round(100 * model.flat.corner_sigma, 2),
        )
