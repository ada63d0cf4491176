"""What headers tell of the size of a mosaic, and whether they tell it at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_core.sphere import tan_wcs
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.outline import Layout, outline_of_headers, spread_in_time
from zemosaic_pipeline.phase4_grid import header_cards

SHAPE = (300, 400)
SCALE = 2.4
LAYOUT = Layout("median", "north_up", exclude_outliers=True)


@pytest.fixture
def info(tmp_path):
    from astropy.io import fits

    cards = {"RA": 10.0, "DEC": 41.0, "FOCALLEN": 250, "XPIXSZ": 2.877, "DATE-OBS": "2025-10-18T20:00:00"}
    fits.writeto(tmp_path / "light.fit", np.ones(SHAPE, np.uint16), fits.Header(cards))
    return read_frame_info(tmp_path / "light.fit")


def frames(info, ra, dec, **more):
    return [
        replace(info, ra_deg=float(a), dec_deg=float(d), date_obs=f"2025-10-18T20:{i % 60:02d}:00", **more)
        for i, (a, d) in enumerate(np.broadcast(ra, dec))
    ]


def test_a_target_in_every_header_tells_only_the_least_size(info):
    told = outline_of_headers(frames(info, np.full(9, 10.0), 41.0), LAYOUT)
    assert (told.known_from, told.shape_hw) == ("targets", SHAPE)
    nothing = [replace(i, ra_deg=None, dec_deg=None) for i in frames(info, np.full(9, 10.0), 41.0)]
    assert outline_of_headers(nothing, LAYOUT).known_from == "targets"
    panels = frames(info, np.repeat([10.0, 10.2, 10.4], 6), 41.0)
    assert outline_of_headers(panels, LAYOUT).known_from == "targets"


def test_readings_of_the_mount_are_believed(info):
    rng = np.random.default_rng(1)
    told = outline_of_headers(frames(info, 10 + rng.normal(0, 0.003, 20), 41.0), LAYOUT)
    assert told.known_from == "positions"
    assert outline_of_headers(frames(info, [10.0], 41.0), LAYOUT).known_from == "positions"


def test_frames_with_a_wcs_are_laid_out_as_the_run_does(info):
    """Turned by 90 degrees, a frame is as wide as it was high: positions alone cannot know."""
    cards = dict(header_cards(tan_wcs((10.0, 41.0), SCALE / 3600, SHAPE, 90.0)))
    told = outline_of_headers(frames(info, np.full(5, 10.0), 41.0, wcs_cards=cards), LAYOUT)
    assert told.known_from == "wcs"
    np.testing.assert_allclose(told.shape_hw, SHAPE[::-1], atol=8)
    broken = frames(info, np.full(5, 10.0), 41.0, wcs_cards={**cards, "CDELT1": 0.0})
    assert outline_of_headers(broken, LAYOUT).known_from == "targets"


def test_strays_do_not_count_where_the_run_leaves_them_out(info):
    cards = [dict(header_cards(tan_wcs((ra, 41.0), SCALE / 3600, SHAPE))) for ra in (*[10.0] * 5, 95.0)]
    night = [
        replace(i, wcs_cards=c) for i, c in zip(frames(info, np.full(6, 10.0), 41.0), cards, strict=True)
    ]
    np.testing.assert_allclose(outline_of_headers(night, LAYOUT).shape_hw, SHAPE, atol=8)
    with_it = outline_of_headers(night[4:5] + night[5:], replace(LAYOUT, exclude_outliers=False))
    assert with_it.shape_hw[1] > 50_000


def test_frames_are_spread_over_the_exposures(info):
    night = frames(info, np.full(50, 10.0), 41.0)
    some = spread_in_time(night[::-1], 6)
    minutes = [int(i.date_obs[14:16]) for i in some]
    assert minutes[0] == 0
    assert minutes[-1] == 49
    assert np.ptp(np.diff(minutes)) <= 1
    assert len(spread_in_time(night, 80)) == 50
    assert len(spread_in_time(night, 1)) == 1


def test_frames_that_a_run_leaves_out_do_not_make_the_planned_mosaic_larger(info):
    """Two nights of another target in the folder: the plan was that of a strip across the sky."""
    rng = np.random.default_rng(7)
    ra = np.concatenate([10 + rng.normal(0, 0.05, 8), 192 + rng.normal(0, 0.05, 4)])
    night = frames(info, ra, 41.0)
    near = outline_of_headers(night[:8], LAYOUT)
    told = outline_of_headers(night, LAYOUT)
    assert (told.shape_hw, told.n_far, near.n_far) == (near.shape_hw, 4, 0)
    everything = outline_of_headers(night, replace(LAYOUT, exclude_outliers=False))
    assert everything.n_far == 0
    assert everything.shape_hw[1] > 50 * near.shape_hw[1]
