"""The sky model alone on many made-up nights: what measuring would have found, without rendering a pixel.

python -m benchmarks.quality_sky                       # 100 random nights
python -m benchmarks.quality_sky --seeds 0-19 --nights dome low --no-site

Meshes and star fluxes are made of the truth with the noise that measuring has; gains and flat are solved from the
fluxes as a run does. A night takes a second, where a run takes a minute. Printed is, for each night, what is left of
the sky in the mosaic, and whether the error of tilt and bowl lies within twice the claimed one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.quality_background import CELL_PX, Cells
from benchmarks.quality_nights import night_spec
from benchmarks.quality_scene import CFA_DENSITY
from zemosaic_core.detector_surface import surface_values
from zemosaic_core.glow_prior import PROBE_UV, FrameCircumstances, LocalSky
from zemosaic_core.night_sky import airmass, horizontal, julian_date, moon_place, moonlight_nl
from zemosaic_core.sky_lattice import cell_centres
from zemosaic_core.sky_meshes import SkyMeshes
from zemosaic_core.sky_model import SkyModel
from zemosaic_core.star_flat import StarFlat, radius_squared, solve_star_flat
from zemosaic_core.synthetic_sky import (
    Camera,
    pixel_to_sky,
    sky_to_pixel,
    star_pixels,
    tan_cards,
    vignette,
)
from zemosaic_io.glow_session import GlowNight, plan_glow_night
from zemosaic_pipeline.phase4_grid import StarFluxes
from zemosaic_pipeline.sky import EXTINCTION_MAG, solved_with_flat, visit_labels

__all__ = ["MeasuredNight", "judge_model", "measure_night", "solve_night"]

FAINTEST_ADU, SATURATED_ADU = 4_000.0, 250_000.0
APERTURE_PIXELS = 60.0
# What interpolating missing colours and the shape of stars add to the noise of a flux.
FLUX_FLOOR = 0.006
MESH_NOISE_FACTOR = 1.3


@dataclass(frozen=True)
class MeasuredNight:
    """What a run would know of a night, and the truth per cell: ``diffuse`` (N, C, ny, nx) ADU at the zenith."""

    meshes: SkyMeshes
    circumstances: FrameCircumstances
    flat: StarFlat
    stars: StarFluxes
    diffuse: np.ndarray
    transparency: np.ndarray


def measure_night(night: GlowNight, *, with_site: bool = True) -> MeasuredNight:
    """Make the measurements of a night from its truth."""
    spec = night.spec
    rng = np.random.default_rng([spec.seed, 71])
    height, width = spec.shape_hw
    mesh_shape = (-(-height // CELL_PX), -(-width // CELL_PX))
    x, y = cell_centres(spec.shape_hw, mesh_shape, CELL_PX)
    q = radius_squared(x, y, spec.shape_hw)
    plane = tan_cards(*spec.center_deg, scale_arcsec=spec.scale_arcsec, shape_hw=(1, 1))
    flat = vignette(spec.shape_hw, spec.vignetting)
    flat_here = flat[np.rint(y).astype(int), np.rint(x).astype(int)].astype(np.float64)
    camera = Camera()
    # A cell is wider than the texture's detail.
    texture = np.stack([ndimage.gaussian_filter(channel, 8.0) for channel in night.sky.texture])
    meshes, errors, places, diffuse = [], [], [], []
    for index, frame in enumerate(night.frames):
        ra, dec = pixel_to_sky(frame.setup.cards, x, y)
        places.append(np.stack(sky_to_pixel(plane, ra, dec), axis=-1))
        sky = _diffuse_light(night, texture, ra, dec)
        air = np.asarray(frame.setup.transparency)[:, None, None]
        light = (night.glow_at(index, x, y) + air * sky) * flat_here
        variance = camera.adu_per_electron * light + (camera.adu_per_electron * camera.read_noise_e) ** 2
        error = MESH_NOISE_FACTOR * np.sqrt(variance / (CFA_DENSITY[:, None, None] * CELL_PX**2))
        meshes.append(camera.pedestal_adu + light + error * rng.standard_normal(light.shape))
        errors.append(error)
        diffuse.append(sky)
    mesh = np.array(meshes)
    stars = _measure_stars(night, rng)
    n_frames = len(night.frames)
    star_flat = solve_star_flat(
        stars.frame_index, stars.star_index, stars.flux, stars.q, n_frames, stars.n_stars
    )
    gains = stars.flux_scale(dict.fromkeys(stars.indices, star_flat)).gains
    measured = SkyMeshes(
        mesh=mesh,
        error=np.array(errors),
        sky=np.median(mesh, axis=(2, 3)),
        pixel_noise=np.sqrt(camera.adu_per_electron * (np.median(mesh, axis=(2, 3)) - camera.pedestal_adu)),
        gains=gains,
        xy=np.array(places),
        uv=np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1)[None],
        q=q[None],
        frame_area_px=float(height * width),
        size=np.zeros(len(mesh), np.int64),
    )
    transparency = np.array([frame.setup.transparency for frame in night.frames])
    return MeasuredNight(
        measured,
        _circumstances(night, measured, with_site),
        star_flat,
        stars,
        np.array(diffuse),
        transparency,
    )


def solve_night(measured: MeasuredNight) -> SkyModel:
    """Return the model of the sky, as a run finds it."""
    indices = measured.stars.indices
    flats = dict.fromkeys(indices, measured.flat)
    return solved_with_flat(measured.meshes, measured.circumstances, indices, flats, measured.stars)[0]


def _diffuse_light(night: GlowNight, texture: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """True light without stars of a smoothed texture, ADU per pixel of the frames at the zenith, (3, ...)."""
    tx, ty = sky_to_pixel(night.sky.texture_cards, ra, dec)
    area = night.spec.binning**2
    return area * np.stack([ndimage.map_coordinates(plane, [ty, tx], order=1) for plane in texture])


def _measure_stars(night: GlowNight, rng: np.random.Generator) -> StarFluxes:
    """Fluxes as a run measures them."""
    camera = Camera()
    flat = vignette(night.spec.shape_hw, night.spec.vignetting)
    rows, numbers, fluxes, radii = [], [], [], []
    for index, frame in enumerate(night.frames):
        star, x, y = star_pixels(night.sky, frame.setup)
        true = night.sky.flux[star]
        use = (true[:, 1] > FAINTEST_ADU) & (true.max(axis=1) < SATURATED_ADU)
        star, x, y, true = star[use], x[use], y[use], true[use]
        v = flat[np.rint(y).astype(int), np.rint(x).astype(int)][:, None]
        flux = true * np.asarray(frame.setup.transparency) * v
        glow = night.glow_at(index, x, y).T * v
        variance = camera.adu_per_electron * (flux + APERTURE_PIXELS * glow) / CFA_DENSITY
        sigma = np.hypot(np.sqrt(variance), FLUX_FLOOR * flux)
        fluxes.append(flux + sigma * rng.standard_normal(flux.shape))
        rows.append(np.full(star.size, index))
        numbers.append(star)
        radii.append(radius_squared(x, y, night.spec.shape_hw))
    frame_index, star_index = np.concatenate(rows), np.concatenate(numbers)
    star_index = np.unique(star_index, return_inverse=True)[1]
    flux, q = np.concatenate(fluxes), np.concatenate(radii)
    n_stars = int(star_index.max()) + 1
    return StarFluxes(frame_index, star_index, flux, q, n_stars, tuple(range(len(night.frames))))


def _circumstances(night: GlowNight, meshes: SkyMeshes, with_site: bool) -> FrameCircumstances:
    spec = night.spec
    height, width = spec.shape_hw
    moments = [frame.taken for frame in night.frames]
    seconds = np.array([(moment - min(moments)).total_seconds() for moment in moments])
    nights = np.array([frame.night for frame in night.frames], np.int64)
    centre = meshes.xy.reshape(len(moments), -1, 2).mean(axis=1)
    visits = visit_labels(centre, float(np.sqrt(meshes.frame_area_px)), seconds, nights)
    local = None
    if with_site:
        x, y = (PROBE_UV[:, 0] + 1) * (width - 1) / 2, (PROBE_UV[:, 1] + 1) * (height - 1) / 2
        directions, masses, moonlight = [], [], []
        for frame in night.frames:
            jd = julian_date(frame.taken)
            altitude, azimuth = horizontal(*pixel_to_sky(frame.setup.cards, x, y), jd, spec.site)
            a, z = np.radians(altitude), np.radians(azimuth)
            directions.append(np.stack([np.cos(a) * np.cos(z), np.cos(a) * np.sin(z), np.sin(a)], axis=-1))
            masses.append(airmass(altitude))
            moonlight.append(moonlight_nl(altitude, azimuth, moon_place(jd, spec.site), EXTINCTION_MAG))
        local = LocalSky(np.array(directions), np.array(masses), np.array(moonlight))
    return FrameCircumstances(seconds / 3600.0, nights, visits, local)


def judge_model(measured: MeasuredNight, model: SkyModel) -> dict[str, Any]:
    """Return what the mosaic of these frames would show of the sky that is not there, per channel."""
    found: dict[str, Any] = {
        k: [] for k in ("bg_rms_adu", "after_plane_adu", "slope", "errors_adu", "sigmas_adu", "assurance")
    }
    meshes = measured.meshes
    q, uv = meshes.q[0], meshes.uv[0]
    for c, channel in enumerate(model.channels):
        terms, radial = (
            model.terms[:, c].astype(np.float64)[..., None, None],
            model.radial[:, c].astype(np.float64)[..., None, None],
        )
        value = terms[:, 0] * meshes.mesh[:, c] * (1 + radial[:, 0] * q + radial[:, 1] * q**2)
        value = value + terms[:, 1] + terms[:, 2] * uv[..., 0] + terms[:, 3] * uv[..., 1]
        value = value + radial[:, 2] * q + radial[:, 3] * q**2
        if model.surface is not None:
            value = value + np.stack([surface_values(s.astype(np.float64), uv) for s in model.surface[:, c]])
        scale = float(np.median(terms[:, 0, 0, 0] * measured.transparency[:, c]))
        cells = _mosaic_cells(meshes.xy, value / scale, measured.diffuse[:, c])
        found["bg_rms_adu"].append(cells.rms())
        found["after_plane_adu"].append(cells.rms_after_plane())
        found["slope"].append(cells.slope())
        found["errors_adu"].append(cells.large_scales())
        found["sigmas_adu"].append([float(s) / scale for s in channel.gauge.sigma_data])
        found["assurance"].append(channel.assurance)
    return found


def _mosaic_cells(xy: np.ndarray, value: np.ndarray, truth: np.ndarray) -> Cells:
    """Mean of all frames' cells in the cells of the mosaic, residual and truth."""
    place = np.floor(xy / CELL_PX).astype(int).reshape(-1, 2)
    place -= place.min(axis=0)
    nx, ny = place.max(axis=0) + 1
    flat = place[:, 1] * nx + place[:, 0]
    count = np.bincount(flat, minlength=nx * ny)
    with np.errstate(invalid="ignore"):
        residual = np.bincount(flat, (value - truth).ravel(), nx * ny) / count
        mean_truth = np.bincount(flat, truth.ravel(), nx * ny) / count
    return Cells(residual.reshape(ny, nx), mean_truth.reshape(ny, nx), count.reshape(ny, nx))


def within(errors: list[float], sigmas: list[float], part: slice) -> bool:
    """Say whether tilt or bowl is off by no more than twice what is claimed."""
    return float(np.hypot.reduce(errors[part])) <= 2.0 * float(np.hypot.reduce(sigmas[part]))


def _judge_seed(name: str, with_site: bool) -> dict[str, Any]:
    night = plan_glow_night("", night_spec(name))
    measured = measure_night(night, with_site=with_site)
    start = time.process_time()
    model = solve_night(measured)
    seconds = time.process_time() - start
    verdict = judge_model(measured, model)
    spec = night.spec
    pairs = list(zip(verdict["errors_adu"], verdict["sigmas_adu"], strict=True))
    return {
        "night": name,
        "layout": spec.layout if spec.layout != "panels" else f"{spec.panels[0]}x{spec.panels[1]}",
        "frames": len(night.frames),
        "nights": len(spec.starts),
        "clouds": len(spec.clouds),
        "vignetting": spec.vignetting,
        "flat_applied": model.flat_applied,
        "flat_corner_error": float(model.flat.corner / (1.0 - spec.vignetting) - 1.0),
        "tilt_covered": [within(e, s, slice(0, 2)) for e, s in pairs],
        "bowl_covered": [within(e, s, slice(2, 5)) for e, s in pairs],
        "cpu_seconds": seconds,
        **verdict,
    }


def _print_row(r: dict[str, Any]) -> None:
    e, s = r["errors_adu"][1], r["sigmas_adu"][1]
    print(f"{r['night']:12s} {r['layout']:>6s} {r['frames']:6d} {r['nights']:6d} {r['clouds']:6d} "
          f"{100 * r['vignetting']:4.1f}  {r['flat_applied']!s:>7s}  {100 * r['flat_corner_error']:7.2f} "
          f"{max(r['bg_rms_adu']):8.2f} {max(r['after_plane_adu']):7.2f} {r['slope'][1]:7.3f} "
          f"{np.hypot(*e[:2]):5.1f} {np.hypot(*s[:2]):5.1f} {np.hypot.reduce(e[2:]):5.1f} "
          f"{np.hypot.reduce(s[2:]):5.1f} {all(r['tilt_covered'])!s:>5s} {all(r['bowl_covered'])!s:>5s} "
          f"{r['assurance'][1]:22s} {r['cpu_seconds']:5.1f}", flush=True)  # fmt: skip


def _print_summary(rows: list[dict[str, Any]]) -> None:
    worst = np.array([max(r["bg_rms_adu"]) for r in rows])
    slopes = np.array([s for r in rows for s in r["slope"] if np.isfinite(s)])
    tilt, bowl = (np.mean([all(r[key]) for r in rows]) for key in ("tilt_covered", "bowl_covered"))
    applied = [abs(r["flat_corner_error"]) for r in rows if r["flat_applied"]]
    print(f"sky of the worst channel: median {np.median(worst):.1f}, 90 % {np.percentile(worst, 90):.1f}, "
          f"worst {worst.max():.1f} ADU; above 8 ADU: {(worst > 8).sum()} of {len(rows)}")  # fmt: skip
    if slopes.size:
        low, middle, high = np.percentile(slopes, [5, 50, 95])
        print(f"slope of diffuse light: {middle:.3f}, 90 % within {low:.3f} .. {high:.3f}")
    print(
        f"within twice the claimed error in every channel: tilt {100 * tilt:.0f} %, bowl {100 * bowl:.0f} % of nights"
    )
    if applied:
        print(
            f"flat applied in {len(applied)} nights, error in the corner at most {100 * max(applied):.2f} %"
        )


def main() -> None:
    """Make, solve, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0-99", help="random nights, FIRST-LAST; '' for none")
    parser.add_argument("--nights", nargs="*", default=[], help="named nights too")
    parser.add_argument("--no-site", action="store_true", help="place and directions are not known")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = list(options.nights)
    if options.seeds:
        first, _, last = options.seeds.partition("-")
        names += [f"random-{seed}" for seed in range(int(first), int(last or first) + 1)]
    print("night        layout frames nights clouds  V %  applied  error %   sky ADU  -plane  slope   tilt +-   "
          "bowl +-   covered  from                   CPU s")  # fmt: skip
    rows = []
    for name in names:
        rows.append(_judge_seed(name, not options.no_site))
        _print_row(rows[-1])
    _print_summary(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
