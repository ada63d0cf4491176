"""Tiles whose sky bends must meet in the mosaic, and what all of them see alike must stay."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_core.sources import CombineRule
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline import phase5_assemble as assemble
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.records import MasterTile
from zemosaic_pipeline.tile_canvas import Canvas, tile_sources, with_surfaces
from zemosaic_utils import coadd_on_grid

SIZE, PITCH = 640, 448
GRID = (SIZE + PITCH, SIZE + PITCH)


def true_sky():
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    spread = 2 * (0.15 * GRID[0]) ** 2
    return 1000 + 300 * np.exp(-((x - GRID[1] / 2) ** 2 + (y - GRID[0] / 2) ** 2) / spread)


def surfaces():
    found = np.random.default_rng(5).normal(0, 12, (4, 3))
    return found - found.mean(axis=0)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    sky, rng = true_sky(), np.random.default_rng(1)
    t, u = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    made = []
    for k, (a, b, c) in enumerate(surfaces()):
        y0, x0 = PITCH * (k // 2), PITCH * (k % 2)
        image = sky[y0 : y0 + SIZE, x0 : x0 + SIZE] - 40 * k + 10 * u - 5 * t
        image = image + a * (u * u - 1 / 3) + b * u * t + c * (t * t - 1 / 3)
        path = folder / f"{k}.fits"
        frames = np.full((SIZE, SIZE), 10, np.uint16)
        # A rim where one bad frame is alone must not bend the tile.
        frames[:, :40] = 1
        image[:, :40] += 60
        shape = (SIZE, SIZE)
        extensions = [("COVERAGE", shape, np.uint16), ("WEIGHT", shape, np.float32)]
        with StreamingFits(path, (1, *shape), {}, extensions=extensions) as out:
            out.write_rows(0, (image + rng.normal(0, 15, shape)).astype(np.float32)[None])
            out.write_rows(0, frames, ext="COVERAGE")
            out.write_rows(0, np.where(frames > 1, 1.0, 1e-3).astype(np.float32), ext="WEIGHT")
            out.commit()
        made.append(
            MasterTile(
                tile_id=10 + k,
                path=str(path),
                origin_yx=(y0, x0),
                shape_hw=shape,
                frames=tuple(range(10)),
                exposure_s=100.0,
                n_exposures=10,
                noise_adu=(15.0,),
                rejected_fraction=0.0,
                core_rejected_fraction=None,
                median_coverage=10.0,
                map_error_px=0.0,
                covered_bbox=(0, SIZE, 0, SIZE),
                flux_gain=(1.0,),
                saturate_adu=float("nan"),
            )
        )
    return made


def assembled(tiles, order):
    plan = SimpleNamespace(
        n_channels=1,
        assembly=SimpleNamespace(
            photometric_match=True, match_background=True, gradient=True, gradient_order=order
        ),
    )
    store = TileStore({tile.tile_id: tile.path for tile in tiles})
    context = SimpleNamespace(cancel=CancelToken())
    solution, _, pairs = assemble.tile_photometry(tiles, store, True, plan, context)
    image = np.full((1, *GRID), np.nan, np.float32)

    def sink(y0, y1, block):
        image[:, y0:y1] = block.image

    coadd_on_grid(
        with_surfaces(store, tiles, solution),
        tile_sources(tiles, solution.terms, Canvas((0, 0), GRID)),
        GRID,
        1,
        CombineRule(rejection="none", combine="mean"),
        "lanczos3",
        sink=sink,
        budget_bytes=1 << 26,
    )
    return image[0], solution, assemble._photometry_facts(tiles, pairs, solution, solution.terms)


def residual(image):
    """Smooth difference from the truth, without its plane, away from the rims."""
    smooth = ndimage.uniform_filter(image - true_sky(), 24)[60:-60:8, 60:-60:8]
    y, x = np.mgrid[: smooth.shape[0], : smooth.shape[1]]
    design = np.column_stack([np.ones(smooth.size), x.ravel(), y.ravel()])
    return smooth.ravel() - design @ np.linalg.lstsq(design, smooth.ravel(), rcond=None)[0]


def test_curved_tiles_become_one_sky(tiles):
    straight, _, told_straight = assembled(tiles, 1)
    curved, solution, told = assembled(tiles, 2)
    assert np.std(residual(curved)) < 0.6 * np.std(residual(straight))
    # A difference of two cells is good to 0.85 ADU; the fifth of them at spoiled rims is in these numbers too.
    assert told["cell_sigma_adu"][0] < 2.2
    assert told_straight["cell_sigma_adu"][0] > 1.5 * told["cell_sigma_adu"][0]
    assert told_straight["curved_tiles"] == []
    assert told["curved_tiles"] == [10, 11, 12, 13]
    np.testing.assert_allclose(told["surfaces"][11], solution.surface[1], atol=1e-5)


def test_the_scale_of_a_channel_scales_what_is_told(tiles):
    _, solution, _ = assembled(tiles, 2)
    facts = assemble._photometry_facts(tiles, [], solution, 1.5 * solution.terms)
    np.testing.assert_allclose(facts["surfaces"][12], 1.5 * solution.surface[2], atol=1e-5)


def test_cells_at_thin_rims_count_little():
    weight = assemble._cell_weights(np.array([12.0, 12, 1, 6, 0]), np.array([12.0, 1, 1, 6, 0]), 12.0)
    np.testing.assert_allclose(weight, [1.0, (2 / 13) ** 2, 1 / 144, 0.25, 1 / 144])


def test_a_tile_alone_is_not_read_to_be_compared(tiles):
    class Unread(TileStore):
        def read(self, *_):
            raise AssertionError("read although there is nothing to compare")

    def photometry(store_class, match_background):
        plan = SimpleNamespace(
            n_channels=1,
            stack=SimpleNamespace(equalise_rgb=False),
            assembly=SimpleNamespace(
                photometric_match=True, match_background=match_background, gradient=True, gradient_order=2
            ),
        )
        store = store_class({tiles[0].tile_id: tiles[0].path})
        context = SimpleNamespace(cancel=CancelToken())
        return assemble.tile_photometry(tiles[:1], store, True, plan, context)

    solution, thumbs, pairs = photometry(Unread, True)
    assert thumbs == []
    assert pairs == []
    # Where its own sky is asked for it is read; there is nothing else to know about it either.
    with pytest.raises(AssertionError):
        photometry(Unread, False)
    read, seen, _ = photometry(TileStore, False)
    assert len(seen) == 1
    assert np.array_equal(read.terms, solution.terms)
