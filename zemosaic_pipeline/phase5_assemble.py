"""Phase 5: one photometric and background solution over all overlaps, then the tiles become the mosaic."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core import __version__
from zemosaic_core.colour_calibration import MIN_STARS
from zemosaic_core.coverage import covered_part
from zemosaic_core.detector_surface import places_on_detector
from zemosaic_core.light_digits import rounded_light
from zemosaic_core.sky_model import ASSURANCES
from zemosaic_core.sources import CoaddBlock, CombineRule
from zemosaic_core.thumbnails import cell_medians
from zemosaic_core.tile_photometry import OverlapSamples, TileOptions, TilePhotometry, solve_tiles
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline.colour import MosaicColour, StarLight, calibrate
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.mosaic_noise import mosaic_noise
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import MasterTile, Mosaic, MosaicGrid
from zemosaic_pipeline.sky import SkySolution
from zemosaic_pipeline.tile_canvas import Canvas, TileDepth, canvas_of, tile_sources, with_surfaces
from zemosaic_utils import coadd_incremental, coadd_on_grid

__all__ = ["BASE_PATTERN", "PHASE", "run", "tile_photometry"]

PHASE = "phase5_assemble"
CELL_PX = 32
MEAN = CombineRule(rejection="none", combine="mean")


@dataclass(frozen=True)
class Thumbnail:
    """Cell medians (C, ny, nx) of a tile, frames per cell (ny, nx), and the lattice index of the first cell."""

    medians: np.ndarray
    frames: np.ndarray
    first_cell: tuple[int, int]


def _thumbnail(store: TileStore, tile: MasterTile, rows: int = 1024) -> Thumbnail:
    """Read a tile once, in bands of whole lattice rows."""
    height, width = tile.shape_hw
    oy, ox = tile.origin_yx
    parts, frames, first = [], [], None
    y0 = 0
    while y0 < height:
        # Bands end where lattice rows end, so that a band's cells are whole.
        y1 = min(height, (oy + y0 + rows) // CELL_PX * CELL_PX - oy)
        medians, start = cell_medians(store.read(tile.tile_id, y0, y1, 0, width), (oy + y0, ox), CELL_PX)
        coverage = store.read_coverage(tile.tile_id, y0, y1)[np.newaxis]
        frames.append(cell_medians(coverage, (oy + y0, ox), CELL_PX)[0][0])
        first = start if first is None else first
        parts.append(medians)
        y0 = y1
    return Thumbnail(np.concatenate(parts, axis=1), np.concatenate(frames), first)


def _pair(
    i: int, j: int, thumbs: Sequence[Thumbnail], tiles: Sequence[MasterTile], min_cells: int = 6
) -> OverlapSamples | None:
    """Return the cells two tiles share, with positions in [-1, 1] of each tile; None when there are too few."""
    a, b = thumbs[i], thumbs[j]
    y0, x0 = max(a.first_cell[0], b.first_cell[0]), max(a.first_cell[1], b.first_cell[1])
    y1 = min(a.first_cell[0] + a.medians.shape[1], b.first_cell[0] + b.medians.shape[1])
    x1 = min(a.first_cell[1] + a.medians.shape[2], b.first_cell[1] + b.medians.shape[2])
    if y0 >= y1 or x0 >= x1:
        return None

    def window(thumb: Thumbnail, cells: np.ndarray) -> np.ndarray:
        top, left = thumb.first_cell
        return cells[..., y0 - top : y1 - top, x0 - left : x1 - left]

    values_a, values_b = window(a, a.medians), window(b, b.medians)
    both = np.isfinite(values_a).all(axis=0) & np.isfinite(values_b).all(axis=0)
    if np.count_nonzero(both) < min_cells:
        return None
    cy, cx = np.nonzero(both)
    centre_y, centre_x = (cy + y0 + 0.5) * CELL_PX - 0.5, (cx + x0 + 0.5) * CELL_PX - 0.5

    def place(tile: MasterTile) -> np.ndarray:
        top, left = tile.origin_yx
        return places_on_detector(centre_x - left, centre_y - top, tile.shape_hw)

    most = max(np.nanmax(thumb.frames) for thumb in thumbs)
    weight = _cell_weights(window(a, a.frames)[both], window(b, b.frames)[both], most)
    return OverlapSamples(
        i, j, place(tiles[i]), place(tiles[j]), values_a[:, both], values_b[:, both], weight
    )


def _cell_weights(frames_a: np.ndarray, frames_b: np.ndarray, most: float) -> np.ndarray:
    """Return weights up to 1 of differences of cells with these numbers of frames.

    At its rim a tile has few frames. Noise alone would ask for their harmonic mean; but there the gradients of
    single frames, which are steepest at their edges, do not average out either. Measured scatter falls like the
    square.
    """
    harmonic = 2.0 / (1.0 / np.maximum(frames_a, 1.0) + 1.0 / np.maximum(frames_b, 1.0))
    return (harmonic / max(most, 1.0)) ** 2


def tile_photometry(
    tiles: Sequence[MasterTile],
    store: TileStore,
    one_flux_scale: bool,
    plan: RunPlan,
    context: RunContext,
    *,
    one_sky: bool = False,
) -> tuple[TilePhotometry, list[Thumbnail], list[OverlapSamples]]:
    """Return gain, offset and gradient of every tile, solved over all overlaps at once.

    Parameters
    ----------
    one_sky : bool
        One model of the sky stands behind the frames of all tiles: what is left between tiles is noise, and slopes
        fitted to it would only bend the mosaic.

    Returns
    -------
    solution : TilePhotometry
    thumbs : list of Thumbnail
        One per tile; none of a tile that is alone and whose own sky nothing asks for.
    pairs : list of OverlapSamples
    """
    thumbs: list[Thumbnail] = []
    # A single tile, as all frames at once make it, is compared with none: it is not read for that.
    if len(tiles) > 1 or not plan.assembly.match_background or _equalises(plan):
        for tile in tiles:
            context.cancel.check()
            thumbs.append(_thumbnail(store, tile))
    # Gains from thousands of star fluxes are better than any from the contrast of an overlap, where a gradient and a
    # gain look much alike; overlaps are asked only when the stars could not tell.
    gains = np.ones((len(tiles), plan.n_channels))
    if plan.assembly.photometric_match and one_flux_scale:
        gains = np.array([tile.flux_gain for tile in tiles])
    scaled = [
        replace(thumb, medians=thumb.medians * gains[i][:, None, None].astype(np.float32))
        for i, thumb in enumerate(thumbs)
    ]
    pairs = [
        pair
        for i, j in combinations(range(len(scaled)), 2)
        if (pair := _pair(i, j, scaled, tiles)) is not None
    ]
    options = TileOptions(
        fit_gain=plan.assembly.photometric_match and not one_flux_scale,
        fit_plane=plan.assembly.match_background and plan.assembly.gradient and not one_sky,
        fit_surface=plan.assembly.match_background and plan.assembly.gradient_order > 1 and not one_sky,
    )
    solution = solve_tiles(len(tiles), pairs, plan.n_channels, options=options)
    terms = solution.terms.copy()
    terms[..., 0] *= gains
    solution = replace(solution, terms=terms)
    if not plan.assembly.match_background:
        solution = replace(
            solution, terms=_gains_only(solution.terms, thumbs, plan.assembly.photometric_match)
        )
    return solution, thumbs, pairs


def _gains_only(terms: np.ndarray, thumbs: Sequence[Thumbnail], use_gain: bool) -> np.ndarray:
    """Leave every sky where it is; a gain then turns about the tile's own sky."""
    kept = np.zeros_like(terms)
    kept[..., 0] = terms[..., 0] if use_gain else 1.0
    for i, thumb in enumerate(thumbs):
        kept[i, :, 1] = (1 - kept[i, :, 0]) * np.nanmedian(thumb.medians, axis=(1, 2))
    return kept


def _equalises(plan: RunPlan) -> bool:
    """Tell whether the channels are scaled to a common sky."""
    return plan.stack.equalise_rgb and plan.n_channels == 3


def _equalise(terms: np.ndarray, thumbs: Sequence[Thumbnail]) -> np.ndarray:
    """Scale the channels so that their median skies agree, all tiles alike: no colour step can appear."""
    levels = np.array(
        [
            [np.nanmedian(t.medians[c]) * terms[i, c, 0] + terms[i, c, 1] for c in range(terms.shape[1])]
            for i, t in enumerate(thumbs)
        ]
    )
    sky = np.nanmedian(levels, axis=0)
    scale = np.where(sky > 0, np.median(sky) / np.where(sky > 0, sky, 1.0), 1.0)
    return terms * scale[None, :, None]


def _well_covered(
    tiles: Sequence[MasterTile], store: TileStore, canvas: Canvas, *, inscribed: bool
) -> Canvas:
    """Return the part of a canvas that most frames cover, to a few pixels; the canvas where there is none."""
    depth = TileDepth(tiles, store, canvas)
    step = 1 if max(canvas.shape_hw) < 1000 else 4
    rows = [depth.rows(y, y + 1)[0, ::step] for y in range(0, canvas.shape_hw[0], step)]
    y0, y1, x0, x1 = covered_part(np.stack(rows), inscribed=inscribed)
    if y1 <= y0:
        return canvas
    # Between two rows that are covered all are, but not beyond the last.
    shape = ((y1 - y0 - 1) * step + 1, (x1 - x0 - 1) * step + 1)
    return Canvas((canvas.origin_yx[0] + y0 * step, canvas.origin_yx[1] + x0 * step), shape)


def _sky_cards(behind: SkySolution, plan: RunPlan) -> dict[str, Any]:
    """Return what is known about the sky behind the frames; errors are those of the worst channel."""
    # The full model may be wanted and not possible; then frames are compared by planes.
    model = "planes" if plan.sky.model == "full" and behind.model is None else plan.sky.model
    cards: dict[str, Any] = {
        "ROUTE": (plan.route.route, "all frames at once, or by panels"),
        "SKYMODEL": (model, "sky behind the frames"),
    }
    if behind.model is None:
        return cards
    gauges = [channel.gauge.sigma_data for channel in behind.model.channels]
    tilt, bowl = max(float(s[:2].max()) for s in gauges), max(float(s[2:].max()) for s in gauges)
    worst = max(ASSURANCES.index(channel.assurance) for channel in behind.model.channels)
    cards["SKYGRAD"] = (plan.sky.remove_gradient, "glow of the whole mosaic removed")
    cards["SKYFROM"] = (ASSURANCES[worst], "where tilt and bowl come from")
    if np.isfinite(tilt):
        cards["SKYTILT"] = (rounded_light(tilt, 2), "[adu] error of the tilt, edge, frames alone")
        cards["SKYBOWL"] = (rounded_light(bowl, 2), "[adu] error of the bowl, edge, frames alone")
    if behind.model.flat_applied:
        cards["VIGNET"] = (round(100 * (1 - behind.model.flat.corner), 3), "[%] vignetting taken out, corner")
        cards["VIGNERR"] = (round(100 * behind.model.flat.corner_sigma, 3), "[%] its standard error")
    return cards


def _mosaic_cards(
    tiles: Sequence[MasterTile],
    n_frames: int,
    plan: RunPlan,
    wcs_cards: dict[str, Any],
    approximate: bool,
    behind: SkySolution,
) -> dict[str, Any]:
    stack = plan.stack
    cards: dict[str, Any] = {
        **wcs_cards,
        "SOFTWARE": (f"ZeMosaic {__version__}", "made by"),
        "NMASTILE": (len(tiles), "master tiles combined"),
        "NRAWINIT": (n_frames, "frames found"),
        "NRAWPROC": (sum(len(tile.frames) for tile in tiles), "frames combined"),
        "STK_NORM": (stack.normalise, "normalisation of frames"),
        "STK_WGHT": (stack.weighting, "weighting of frames"),
        "STK_REJ": (stack.rule.rejection, "rejection of outliers"),
        "STK_COMB": (stack.rule.combine, "combination of frames"),
        "STK_KERN": (stack.kernel, "resampling kernel"),
        "STK_RADW": (stack.radial is not None, "radial weight applied"),
        "HIERARCH ZMASMBMTH": (plan.assembly.method, "assembly of tiles"),
        "STACKCNT": (
            sum(tile.n_exposures for tile in tiles),
            "exposures, those inside stacked frames counted",
        ),
        **_sky_cards(behind, plan),
        "EXPTOTAL": (sum(tile.exposure_s for tile in tiles), "[s] exposure of all frames"),
        "BUNIT": ("adu", "counts of the reference frames"),
        "WCSAPPRX": (approximate, "position rests on the mount alone"),
    }
    calibrated = set.intersection(*(set(tile.calibrated) for tile in tiles))
    if calibrated:
        cards["CALSTAT"] = ("".join(sorted(calibrated)), "bias, dark, flat of all frames")
    if stack.rule.rejection in ("kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"):
        cards["STK_KLO"] = (stack.rule.kappa_low, "sigma below the centre")
        cards["STK_KHI"] = (stack.rule.kappa_high, "sigma above the centre")
    return cards


def _saturation_cards(tiles: Sequence[MasterTile], terms: np.ndarray) -> dict[str, Any]:
    """Return from which level on light may have been cut off; nothing where it nowhere was."""
    levels = terms[:, :, 0] * np.array([tile.saturate_adu for tile in tiles])[:, None] + terms[:, :, 1]
    known = levels[np.isfinite(levels)]
    if not known.size:
        return {}
    return {
        "SATURATE": (
            rounded_light(float(known.min()), 1, 4),
            "[adu] least level of clipped light, see CLIPPED",
        )
    }


def _history(plan: RunPlan, photometry: TilePhotometry) -> list[tuple[str, str]]:
    lines = [
        f"ZeMosaic {__version__}: frames resampled once onto this grid ({plan.stack.kernel})",
        f"frames: normalise={plan.stack.normalise} weight={plan.stack.weighting} reject={plan.stack.rule.rejection}",
        f"tiles: gain={plan.assembly.photometric_match} background={plan.assembly.match_background}"
        f" gradient={plan.assembly.gradient} order={plan.assembly.gradient_order if plan.assembly.gradient else 0},"
        f" curved tiles {np.count_nonzero(photometry.surface_freed.any(axis=1))},"
        f" anchor tile(s) {photometry.anchors.tolist()}",
    ]
    if plan.stack.equalise_rgb:
        lines.append("channels scaled to a common median sky (poststack_equalize_rgb)")
    return [("HISTORY", line) for line in lines]


# Room in the header for what the finished pixels tell about colours.
COLOUR_CARDS = 16

BASE_PATTERN = r"zemosaic_MT\d+_R(?P<frames>\d+)(?=[_.])"
"""What `base_name` makes."""


def base_name(n_tiles: int, n_frames: int, part: str = "") -> str:
    """Return the name every output file begins with; `part` is the filter where each has a mosaic of its own."""
    return f"zemosaic_MT{n_tiles}_R{n_frames}" + (f"_{part}" if part else "")


def run(
    tiles: Sequence[MasterTile],
    n_frames_found: int,
    approximate: bool,
    one_flux_scale: bool,
    behind: SkySolution,
    light: StarLight,
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    n_unconfirmed: int = 0,
    part: str = "",
) -> Mosaic:
    """Solve the tiles' photometry and write science image and coverage.

    Parameters
    ----------
    part : str
        The filter, where each has a mosaic of its own.
    behind : SkySolution
        The sky behind the frames. Its glow over the whole mosaic, which the frames have lost already, goes to a file of
        its own, or back into the image where `SkyOptions.remove_gradient` is off.
    light : StarLight
        What the frames tell about stars, for the colours of the mosaic.
    n_unconfirmed : int
        Frames whose place no star of the catalogue confirms; stated in the header.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    store = TileStore({tile.tile_id: Path(tile.path) for tile in tiles})
    one_sky = behind.is_one_sky
    solution, thumbs, pairs = tile_photometry(tiles, store, one_flux_scale, plan, context, one_sky=one_sky)
    _tell_photometry(tiles, solution, context)
    terms = _equalise(solution.terms, thumbs) if _equalises(plan) else solution.terms
    canvas = canvas_of(tiles, grid, plan.assembly.crop != "none")
    if plan.assembly.crop_science and plan.assembly.crop in ("coverage", "rectangle"):
        canvas = _well_covered(tiles, store, canvas, inscribed=plan.assembly.crop == "rectangle")
    wcs_cards = canvas.wcs_cards(grid)
    n_used = sum(len(tile.frames) for tile in tiles)
    base = context.results.folder / base_name(len(tiles), n_used, part)
    science, coverage = Path(f"{base}.fits"), Path(f"{base}_coverage.fits")
    run_card = {"ZMRUNID": (context.run_id, "run that made this file")}
    cards = _mosaic_cards(tiles, n_frames_found, plan, wcs_cards, approximate, behind) | run_card
    cards |= _saturation_cards(tiles, terms)
    noise = mosaic_noise(tiles, store, terms[:, :, 0], canvas.origin_yx, canvas.shape_hw)
    if plan.output.alpha:
        cards["ALPHAEXT"] = (1, "an extension ALPHA follows")
    cards["WCSUNCNF"] = (n_unconfirmed, "frames placed without a catalogue star")
    if part:
        cards["FILTER"] = (part, "of all frames")
    shape = (plan.n_channels, *canvas.shape_hw)
    coverage_cards = {
        **wcs_cards,
        "EXTNAME": ("COVERAGE", "frames per pixel"),
        "BUNIT": ("count", ""),
        **run_card,
    }
    depth = TileDepth(tiles, store, canvas)
    glow = _MosaicGlow(behind, canvas, terms[0, :, 0] / solution.terms[0, :, 0])
    variance_path = Path(f"{base}_variance.fits") if plan.output.variance else None
    sky_path = Path(f"{base}_sky.fits") if glow.known and plan.sky.remove_gradient else None
    with ExitStack() as files:
        history = _history(plan, solution)
        out = files.enter_context(
            StreamingFits(
                science,
                shape,
                [*cards.items(), *history],
                extensions=[("ALPHA", canvas.shape_hw, np.uint8)] if plan.output.alpha else [],
                spare_cards=COLOUR_CARDS,
                durable=False,
            )
        )
        clipped = ("CLIPPED", canvas.shape_hw, np.uint8)
        cells = ("NOISE", noise.sigma.shape, np.float32)
        out_coverage = files.enter_context(
            StreamingFits(
                coverage, canvas.shape_hw, coverage_cards, extensions=[clipped, cells], durable=False
            )
        )
        out_coverage.write_rows(0, noise.sigma, ext="NOISE")
        out_variance = None
        if variance_path is not None:
            variance_cards = {
                **cards,
                "EXTNAME": ("VARIANCE", "variance of the mosaic"),
                "BUNIT": ("adu**2", ""),
            }
            out_variance = files.enter_context(
                StreamingFits(variance_path, shape, variance_cards, durable=False)
            )

        out_sky = None
        if sky_path is not None:
            sky_cards = {
                **cards,
                "EXTNAME": ("SKY", "glow removed; add it to have it back"),
            }
            out_sky = files.enter_context(StreamingFits(sky_path, shape, sky_cards, durable=False))

        def sink(y0: int, y1: int, block: CoaddBlock) -> None:
            if out_sky is not None:
                out_sky.write_rows(y0, glow.rows(y0, y1))
            kept = glow.known and out_sky is None
            out.write_rows(y0, block.image + glow.rows(y0, y1) if kept else block.image)
            if plan.output.alpha:
                seen = np.isfinite(block.image).any(axis=0)
                out.write_rows(y0, np.where(seen, 255, 0).astype(np.uint8), ext="ALPHA")
            out_coverage.write_rows(y0, depth.rows(y0, y1))
            out_coverage.write_rows(y0, block.clipped_bits(), ext="CLIPPED")
            if out_variance is not None:
                out_variance.write_rows(y0, depth.variance_rows(y0, y1, terms, block.weight))

        def on_rows(done: int, total: int) -> None:
            context.progress(done, total)

        combine = coadd_incremental if plan.assembly.method == "incremental" else coadd_on_grid
        combine(
            with_surfaces(store, tiles, solution),
            tile_sources(tiles, terms, canvas),
            canvas.shape_hw,
            plan.n_channels,
            MEAN,
            plan.stack.kernel,
            sink=sink,
            budget_bytes=plan.block_budget_bytes,
            policy=context.policy,
            op="assemble",
            threads=plan.threads,
            on_rows=on_rows,
            cancel=context.cancel,
            restart=lambda: None,  # every row is written to its place
        )
        colour = calibrate(out.read_rows, shape, wcs_cards, light, canvas.origin_yx, plan.output.colour)
        out.add_cards(colour.cards())
        out.commit()
        out_coverage.commit()
        for extra in (out_variance, out_sky):
            if extra is not None:
                extra.commit()
    _tell_colour(colour, context)
    return Mosaic(
        science_path=str(science),
        coverage_path=str(coverage),
        grid=replace(grid, wcs_cards=wcs_cards, shape_hw=canvas.shape_hw),
        origin_yx=canvas.origin_yx,
        photometry=_photometry_facts(tiles, pairs, solution, terms),
        colour=colour,
        outputs={
            kind: str(path)
            for kind, path in (("variance", variance_path), ("sky", sky_path))
            if path is not None
        },
    )


class _MosaicGlow:
    """The glow that the frames lost over the whole mosaic, row by row of the canvas; zero without a model."""

    def __init__(self, behind: SkySolution, canvas: Canvas, scale: np.ndarray) -> None:
        self._channels = () if behind.model is None else behind.model.channels
        self._canvas = canvas
        self._scale = scale

    @property
    def known(self) -> bool:
        """True when there is a model."""
        return bool(self._channels)

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """Return canvas rows (C, y1 - y0, W), float32 ADU."""
        top, left = self._canvas.origin_yx
        width = self._canvas.shape_hw[1]
        rows = np.empty((len(self._channels), y1 - y0, width), np.float32)
        for plane, channel, scale in zip(rows, self._channels, self._scale, strict=True):
            np.multiply(
                np.float32(scale), channel.removed_rows(top + y0, top + y1, left, left + width), out=plane
            )
        return rows


def _rms(per_channel: np.ndarray) -> np.ndarray:
    """Combine the channels of each overlap (P, C) into one number (P,)."""
    return np.sqrt(np.nanmean(per_channel**2, axis=1))


def _tell_photometry(tiles: Sequence[MasterTile], solution: TilePhotometry, context: RunContext) -> None:
    if len(solution.anchors) > 1:
        context.say("tiles_disconnected", "WARN", parts=len(solution.anchors))
    if len(solution.n_used):
        context.say(
            "run_info_photometry",
            overlaps=len(solution.n_used),
            before=rounded_light(float(np.nanmedian(_rms(solution.pair_rms_before))), 2),
            after=rounded_light(float(np.nanmedian(_rms(solution.pair_rms_after))), 2),
        )


def _tell_colour(colour: MosaicColour, context: RunContext) -> None:
    if colour.key == "colour_off":
        return
    solution = colour.solution
    if solution is None:
        context.say(colour.key, stars=colour.n_stars, needed=MIN_STARS)
        return
    context.say(
        colour.key,
        stars=solution.n_stars,
        error_percent=round(100.0 * solution.gain_error, 1),
        limit_mag=round(float(np.nanmax(colour.limit_mag)), 1),
    )


def _photometry_facts(
    tiles: Sequence[MasterTile], pairs: Sequence[OverlapSamples], solution: TilePhotometry, terms: np.ndarray
) -> dict[str, Any]:
    before, after = _rms(solution.pair_rms_before), _rms(solution.pair_rms_after)
    bends = (
        solution.surface * terms[..., :1] / solution.terms[..., :1]
    )  # terms may carry the scale of a channel
    return {
        "anchors": [tiles[int(i)].tile_id for i in solution.anchors],
        "parts": len(solution.anchors),
        "terms": {tile.tile_id: np.round(terms[i], 6).tolist() for i, tile in enumerate(tiles)},
        "curved_tiles": [tile.tile_id for i, tile in enumerate(tiles) if solution.surface_freed[i].any()],
        "surfaces": {
            tile.tile_id: np.round(bends[i], 6).tolist()
            for i, tile in enumerate(tiles)
            if solution.surface_freed[i].any()
        },
        "cell_sigma_adu": [
            rounded_light(float(sigma), 4) if np.isfinite(sigma) else None for sigma in solution.sigma
        ],
        "overlaps": [
            {
                "tiles": [tiles[pair.i].tile_id, tiles[pair.j].tile_id],
                "cells": int(solution.n_used[k].max()),
                "rms_before_adu": rounded_light(float(before[k]), 4),
                "rms_after_adu": rounded_light(float(after[k]), 4),
            }
            for k, pair in enumerate(pairs)
        ],
    }
