"""Phase 4: lay out the pixels of the mosaic and place every frame on them.

It runs before the tiles are stacked: tiles are then made directly on the mosaic's pixels, so a raw frame is
resampled once on its whole way, and a tile lands on the mosaic by a shift of whole pixels. The tiles of the
existing program, on grids of their own, cost a second interpolation that blurs stars and correlates noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core import grid as grids
from zemosaic_core import photometry, registration
from zemosaic_core.errors import RunFailed
from zemosaic_core.frame_verdicts import common_star_transparency
from zemosaic_core.frame_wcs import FrameWcs
from zemosaic_core.pixel_map import MapTransform, wcs_transform
from zemosaic_core.star_flat import StarFlat, radius_squared, solve_camera_flats
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.plan import GridOptions
from zemosaic_pipeline.records import MosaicGrid, RegisteredFrame, SolvedFrame
from zemosaic_pipeline.sessions import camera_labels

__all__ = ["PHASE", "Placed", "StarFluxes", "run"]

PHASE = "phase4_grid"
# Registration works on the brightest stars; more do not make it better, only slower.
MAX_STARS = 300
MIN_PHOTOMETRY_SNR = 25.0
# Areas of pixels that differ by less are those of one camera.
SAME_SCALE = 0.05
# Stars of this FWHM have lost all but 3 % of their contrast at the finest detail that pixels can hold.
WELL_SAMPLED_PX = 2.0


@dataclass(frozen=True)
class StarFluxes:
    """Fluxes of common stars as they were measured, from which the gains of frames follow with any flat.

    ``frame_index``, ``star_index`` and ``q`` (squared distance from the middle of the frame) are (K,), ``flux`` is
    (K, C); ``indices`` are the frames that ``frame_index`` counts.
    """

    frame_index: np.ndarray
    star_index: np.ndarray
    flux: np.ndarray
    q: np.ndarray
    n_stars: int
    indices: tuple[int, ...]

    def flux_scale(self, flats: Mapping[int, StarFlat]) -> photometry.Transparency:
        """Return the gains of the frames, with the flats of some of them (by index) taken out where they are usable."""
        flux = self.flux
        # Few flats stand behind many frames.
        usable = {id(flat): flat for flat in flats.values() if flat.usable}
        if usable:
            flatness = np.ones(len(self.q))
            flat_of_frame = np.array([id(flats.get(index)) for index in self.indices])
            for label, flat in usable.items():
                own = (flat_of_frame == label)[self.frame_index]
                flatness[own] = flat.values(self.q[own])
            flux = flux / flatness[:, None]
        return photometry.solve_transparency(
            self.frame_index, self.star_index, flux, n_frames=len(self.indices), n_stars=self.n_stars
        )


@dataclass(frozen=True)
class Placed:
    """The grid and the frames on it; ``linked`` are the indices of frames whose gains follow from common stars.

    ``flats`` has the flat that the stars tell by index of the frame; none where they were not asked. ``fluxes`` is what
    the gains were found from; None for stacks that were placed before, and once the gains are settled.
    """

    grid: MosaicGrid
    frames: tuple[RegisteredFrame, ...]
    linked: frozenset[int]
    flats: Mapping[int, StarFlat]
    fluxes: StarFluxes | None = None

    @property
    def one_flux_scale(self) -> bool:
        """Whether common stars link the gains of all frames."""
        return all(frame.solved.frame.index in self.linked for frame in self.frames)


def header_cards(wcs: WCS) -> dict[str, object]:
    """Return the FITS cards of a WCS."""
    return {
        card.keyword: card.value
        for card in wcs.to_header(relax=True).cards
        if card.keyword not in ("", "COMMENT")
    }


def _without_far_pointings(
    solved: Sequence[SolvedFrame], wcs_list: Sequence[WCS], options: GridOptions, context: RunContext
) -> list[int]:
    """Return positions of the frames to keep; a stray pointing must not blow the canvas up."""
    outliers = grids.far_frames(wcs_list, [item.frame.info.shape_hw for item in solved])
    dropped: set[int] = set()
    for outlier in outliers:
        names = [context.name_of(solved[i].frame.info.path) for i in outlier.frames]
        cost = round(outlier.extra_pixels / 1e6)
        context.say(
            "canvas_outlier_left_out" if options.exclude_outliers else "canvas_outlier_kept",
            "WARN",
            frames=len(names),
            example=names[0],
            cost_megapixels=cost,
        )
        if options.exclude_outliers:
            dropped.update(outlier.frames.tolist())
            for i in outlier.frames:
                context.leave_out(
                    str(solved[i].frame.info.path), PHASE, "frame_far_from_others", cost_megapixels=cost
                )
    return [i for i in range(len(solved)) if i not in dropped]


class _PlaneMaps(Sequence[MapTransform]):
    """Frame px -> plane px of every frame, by its first WCS; each is made when it is asked for."""

    def __init__(self, wcs_list: Sequence[WCS], plane: WCS) -> None:
        self._wcs_list = wcs_list
        self._plane = plane

    def __len__(self) -> int:
        return len(self._wcs_list)

    def __getitem__(self, position: Any) -> Any:
        # The map of an output grid (the frame) into a source (the plane).
        return wcs_transform(self._wcs_list[position], self._plane)


def _register(
    solved: Sequence[SolvedFrame], wcs_list: Sequence[WCS], spec: grids.GridSpec
) -> registration.GlobalRegistration:
    xy, flux = [], []
    initial = _PlaneMaps(wcs_list, spec.wcs)
    for item, to_plane in zip(solved, initial, strict=True):
        arrays = item.measure.columns("x", "y", "snr", "saturated", "channel_flux")
        xy.append(np.column_stack([arrays["x"], arrays["y"]])[:MAX_STARS].astype(float))
        # Near the detection limit only lucky measurements are seen, and more so through haze: faint stars would bias
        # the flux scale. Saturated ones have lost light.
        usable = (arrays["snr"] >= MIN_PHOTOMETRY_SNR) & ~arrays["saturated"]
        light = np.where(usable, arrays["channel_flux"], np.float32(np.nan))[:, :MAX_STARS]
        flux.append(light * _light_per_pixel(to_plane, item.frame.info.shape_hw))
    return registration.register_globally(
        xy,
        flux,
        initial,
        shapes_hw=[item.frame.info.shape_hw for item in solved],
        match_radius_px=3.0,
        anchors_xy=_catalogue_anchors(solved, spec),
    )


def _light_per_pixel(to_plane: MapTransform, shape_hw: tuple[int, int]) -> float:
    """Return what the light of a star becomes when a frame is sampled on the plane: values stay, their number does not.

    Frames of the plane's own scale give 1: their scales differ by what the air and the fit make of them.
    """
    x, y = (shape_hw[1] - 1) / 2, (shape_hw[0] - 1) / 2
    u, v = to_plane(np.array([x, x + 1.0, x]), np.array([y, y, y + 1.0]))
    area = float(abs((u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0])))
    return area if abs(area - 1.0) > SAME_SCALE else 1.0


def _catalogue_anchors(solved: Sequence[SolvedFrame], spec: grids.GridSpec) -> np.ndarray | None:
    """Return catalogue stars on the plane, when the catalogue agrees with most frames; they hold the whole fast."""
    if np.mean([item.solution.confirmed for item in solved]) < 0.5:
        return None
    radius = 0.5 * float(np.hypot(*spec.shape_hw)) * spec.scale_arcsec / 3600
    epoch = float(np.mean([item.frame.info.epoch for item in solved]))
    ra, dec, _ = catalogue_stars_near(*spec.center_deg, min(radius, 60.0), epoch=epoch)
    return spec.wcs.all_world2pix(np.column_stack([ra, dec]), 0) if len(ra) else None


def _detections(
    solved: Sequence[SolvedFrame], found: registration.GlobalRegistration
) -> Iterator[tuple[SolvedFrame, slice]]:
    """Yield each frame and its rows in the table of detections, which is ordered by frame."""
    bounds = np.searchsorted(found.frame_index, np.arange(len(solved) + 1))
    for item, first, last in zip(solved, bounds[:-1], bounds[1:], strict=True):
        yield item, slice(int(first), int(last))


def _transparency(
    solved: Sequence[SolvedFrame],
    found: registration.GlobalRegistration,
    flux_scale: photometry.Transparency,
) -> np.ndarray:
    """Return how clear the air of each frame was, also of frames that show faint stars only."""
    flux = np.full(len(found.frame_index), np.nan)
    if not flux_scale.ok.all():
        for item, own in _detections(solved, found):
            light = item.measure.columns("channel_flux")["channel_flux"].mean(axis=0)
            flux[own] = light[found.detection_index[own]]
    return common_star_transparency(
        found.frame_index,
        found.star_index,
        flux,
        flux_scale.gains.mean(axis=1),
        flux_scale.ok,
        len(found.star_xy),
    )


def _star_fluxes(solved: Sequence[SolvedFrame], found: registration.GlobalRegistration) -> StarFluxes:
    q = np.full(len(found.frame_index), np.nan)
    for item, own in _detections(solved, found):
        places = item.measure.columns("x", "y")
        at = found.detection_index[own]
        q[own] = radius_squared(places["x"][at], places["y"][at], item.frame.info.shape_hw)
    indices = tuple(item.frame.index for item in solved)
    return StarFluxes(found.frame_index, found.star_index, found.flux, q, len(found.star_xy), indices)


def _star_flats(solved: Sequence[SolvedFrame], stars: StarFluxes) -> dict[int, StarFlat]:
    """Return the flat that the stars tell of each frame."""
    camera = np.array(camera_labels([item.frame.info for item in solved]), np.int64)
    flats = solve_camera_flats(
        stars.frame_index, stars.star_index, stars.flux, stars.q, camera, stars.n_stars
    )
    return dict(zip(stars.indices, flats, strict=True))


def _check_size(shape_hw: tuple[int, int], options: GridOptions) -> None:
    megapixels = shape_hw[0] * shape_hw[1] / 1e6
    if megapixels > options.max_megapixels:
        raise RunFailed(
            "run_error_canvas_too_large",
            f"the mosaic would have {megapixels:.0f} Mpx, the limit canvas_max_megapixels is {options.max_megapixels}",
            megapixels=round(megapixels),
            limit=options.max_megapixels,
        )


def _tell_sampling(solved: Sequence[SolvedFrame], factor: float, context: RunContext) -> None:
    """Say so when a finer grid was asked for and the frames have no detail for it."""
    fwhm = float(np.nanmedian([item.measure.fwhm_px for item in solved])) if factor > 1 else 0.0
    if fwhm >= WELL_SAMPLED_PX:
        context.say("drizzle_not_warranted", "WARN", scale=factor, fwhm_px=round(fwhm, 1))


def _tell_parts(found: registration.GlobalRegistration, context: RunContext) -> int:
    """Return into how many parts without a common star the placed frames fall; say so when there are several."""
    placed = [
        int(part) for part, fit in zip(found.component, found.frames, strict=True) if fit.ok and part >= 0
    ]
    parts = len(set(placed))
    if parts > 1:
        # Parts are numbered by size.
        others = sum(part != min(placed) for part in placed)
        context.say("frames_disconnected", "WARN", parts=parts, frames=others)
    return parts


def run(
    solved: Sequence[SolvedFrame], options: GridOptions, context: RunContext, *, with_flat: bool = False
) -> Placed:
    """Return the mosaic grid and every frame's transform and flux scale on it.

    Parameters
    ----------
    with_flat : bool
        Also ask the stars for the flat field, and free their fluxes of it.

    Raises
    ------
    RunFailed
        The canvas would be larger than allowed.
    """
    wcs_list = FrameWcs([item.solution.wcs_cards for item in solved])
    solved = [solved[i] for i in _without_far_pointings(solved, wcs_list, options, context)]
    wcs_list = FrameWcs([item.solution.wcs_cards for item in solved])
    # Frames are placed on a grid of their own pixels, in whose units residuals and tolerances are; then it is refined.
    factor = options.drizzle_scale
    spec = grids.make_grid(
        wcs_list,
        [item.frame.info.shape_hw for item in solved],
        pixelscale_mode=options.pixelscale_mode,
        orientation=options.orientation,
        edge_step_px=grids.edge_step(factor),
    )
    finer = spec if factor == 1 else grids.finer_grid(spec, factor)
    _check_size(finer.shape_hw, options)
    _tell_sampling(solved, factor, context)
    context.progress(1, 3)
    found = _register(solved, wcs_list, spec)
    context.cancel.check()
    context.progress(2, 3)
    stars = _star_fluxes(solved, found)
    flats = _star_flats(solved, stars) if with_flat else {}
    flux_scale = stars.flux_scale(flats)
    transparency = _transparency(solved, found, flux_scale)
    frames = []
    for i, (item, fit) in enumerate(zip(solved, found.frames, strict=True)):
        if fit.to_plane is None or fit.to_frame is None:
            context.leave_out(str(item.frame.info.path), PHASE, fit.reason)
            continue
        measure = replace(item.measure, transparency=float(transparency[i]))
        frames.append(
            RegisteredFrame(
                solved=replace(item, measure=measure),
                to_plane=fit.to_plane if factor == 1 else fit.to_plane.onto_finer_grid(factor),
                to_frame=fit.to_frame if factor == 1 else fit.to_frame.from_finer_grid(factor),
                rms_px=fit.rms_px,
                n_matched=fit.n_matched,
                gain=tuple(map(float, flux_scale.gains[i])),
                kind=fit.kind,
            )
        )
    linked = frozenset(item.frame.index for item, ok in zip(solved, flux_scale.ok, strict=True) if ok)
    loose = [
        context.name_of(item.frame.info.path)
        for item, fit in zip(solved, found.frames, strict=True)
        if not fit.ok
    ]
    if loose:
        context.say("registration_weak", "WARN", frames=len(loose), example=loose[0])
    parts = _tell_parts(found, context)
    rms = float(np.median([frame.rms_px for frame in frames if np.isfinite(frame.rms_px)] or [np.nan]))
    context.detail(
        width=finer.shape_hw[1],
        height=finer.shape_hw[0],
        scale_arcsec=finer.scale_arcsec,
        registration_rms_px=rms,
        common_stars=len(found.star_xy),
        weakly_registered=len(loose),
        parts=parts,
    )
    context.say(
        "run_info_grid",
        width=finer.shape_hw[1],
        height=finer.shape_hw[0],
        scale_arcsec=round(finer.scale_arcsec, 3),
        rms_px=round(rms, 3),
    )
    context.progress(3, 3)
    grid = MosaicGrid(header_cards(finer.wcs), finer.shape_hw, finer.scale_arcsec)
    return Placed(grid, tuple(frames), linked, flats, stars)
