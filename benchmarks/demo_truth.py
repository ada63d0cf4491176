"""The night of the demo as the judge of made-up nights knows nights: its truth, without rendering a frame."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from zemosaic_core.synthetic_sky import GLOW_STEP_PX, NOMINAL_SCALE_ARCSEC, FrameSetup
from zemosaic_io.demo_session import DEMO_CENTER_DEG, DEMO_EPOCH, DemoTruth, plan_demo_night
from zemosaic_io.glow_session import GlowFrame, GlowNight, NightSpec
from zemosaic_io.star_catalogue import open_built_in_catalogue
from zemosaic_ui.demo import CATALOGUE_RADIUS_DEG, PANELS, SEED

__all__ = ["as_glow_night", "truth_of_demo"]


def truth_of_demo(folder: Path, frames_per_panel: int) -> GlowNight:
    """Return the truth of what ``zemosaic demo`` writes, without its spoilt frames: no mosaic should hold them."""
    catalogue = open_built_in_catalogue().sky_near(*DEMO_CENTER_DEG, CATALOGUE_RADIUS_DEG, DEMO_EPOCH)
    return as_glow_night(
        plan_demo_night(
            folder, seed=SEED, panels=PANELS, frames_per_panel=frames_per_panel, catalogue=catalogue
        ),
        PANELS,
        frames_per_panel,
    )


def as_glow_night(truth: DemoTruth, panels: tuple[int, int], frames_per_panel: int) -> GlowNight:
    """Return the good frames of a demo night, each panel one visit; places in the sky of a site are unknown, NaN."""
    good = [frame for frame in truth.frames if frame.kind == "good"]
    frames = tuple(
        GlowFrame(
            name=frame.name,
            night=0,
            visit=frame.panel,
            panel=frame.panel,
            taken=datetime.strptime(Path(frame.name).stem.rsplit("_", 1)[1], "%Y%m%d-%H%M%S"),
            altitude_deg=np.nan,
            azimuth_deg=np.nan,
            hint_deg=frame.hint_deg,
            setup=replace(frame.setup, glow_adu=sky_nodes(frame.setup)),
        )
        for frame in good
    )
    spec = NightSpec(
        panels=panels,
        frames_per_panel=frames_per_panel,
        shape_hw=good[0].setup.shape_hw,
        binning=1,
        vignetting=good[0].setup.vignetting,
    )
    assert spec.scale_arcsec == NOMINAL_SCALE_ARCSEC
    return GlowNight(truth.folder, spec, truth.sky, frames, truth.hot_pixels)


def sky_nodes(setup: FrameSetup) -> np.ndarray:
    """Return the sky of a frame (level and surface of second order) at the nodes of a glow, shape (3, ny, nx)."""
    height, width = setup.shape_hw
    y, x = (np.arange(0, side + GLOW_STEP_PX, GLOW_STEP_PX) for side in (height, width))
    t, u = np.meshgrid(2.0 * y / (height - 1) - 1.0, 2.0 * x / (width - 1) - 1.0, indexing="ij")
    a, b, c, d, e = setup.sky_shape
    rise = 1.0 + a * u + b * t + c * u * u + d * u * t + e * t * t
    return np.asarray(np.asarray(setup.sky_adu)[:, None, None] * rise)
