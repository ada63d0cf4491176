from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sources import CoaddSource, CombineRule
from zemosaic_core.tile_photometry import OverlapSamples, TileOptions, solve_tiles
from zemosaic_core.tile_surfaces import TileSurfaces, add_surface
from zemosaic_utils import coadd_on_grid

CURVED = TileOptions(fit_gain=False, fit_surface=True)
FLAT = TileOptions(fit_gain=False)
STEP = 1.6


def basis(u, t):
    return np.stack([u * u - 1 / 3, u * t, t * t - 1 / 3], axis=-1)


class Pictures:
    """Images in memory that know where they were asked."""

    def __init__(self, images, weights=None):
        self.images, self.weights = images, weights

    def read(self, key, y0, y1, x0, x1):
        return self.images[key][:, y0:y1, x0:x1]

    def read_weight(self, key, y0, y1, x0, x1):
        return None if self.weights is None else self.weights[key][y0:y1, x0:x1]

    def read_raw(self, key, y0, y1):
        return ("raw", key, y0, y1)


def slow(image, surface):
    _, height, width = image.shape
    out = image.astype(np.float64)
    for y in range(height):
        for x in range(width):
            out[:, y, x] += surface @ basis(2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1)
    return out


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    images = {k: rng.normal(1000, 20, (3, 31, 47)).astype(np.float32) for k in range(3)}
    images[0][1, 5, 7] = np.nan
    return images, {0: rng.normal(0, 10, (3, 3)), 1: rng.normal(0, 10, (3, 3)), 2: np.zeros((3, 3))}


def test_the_surface_equals_a_plain_loop_in_any_window():
    images, surfaces = pictures()
    source = TileSurfaces(Pictures(images), {k: (31, 47) for k in images}, surfaces)
    for key in (0, 1):
        whole = source.read(key, 0, 31, 0, 47)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, slow(images[key], surfaces[key]), rtol=2e-7)
        np.testing.assert_array_equal(source.read(key, 4, 19, 6, 40), whole[:, 4:19, 6:40])
    assert np.isnan(source.read(0, 0, 31, 0, 47)[1, 5, 7])


def test_what_has_no_surface_passes_unchanged():
    images, surfaces = pictures()
    weights = {k: np.full((31, 47), k, np.float32) for k in images}
    source = TileSurfaces(Pictures(images, weights), {k: (31, 47) for k in images}, surfaces)
    np.testing.assert_array_equal(source.read(2, 3, 9, 0, 47), images[2][:, 3:9])
    assert source.read_raw(2, 0, 4) == ("raw", 2, 0, 4)
    # Raw rows have no surface: an engine must ask for the decoded window.
    assert source.read_raw(0, 0, 4) is None
    np.testing.assert_array_equal(source.read_weight(1, 0, 4, 2, 9), weights[1][0:4, 2:9])
    assert TileSurfaces(Pictures(images), {0: (31, 47)}, {0: surfaces[0]}).read_weight(0, 0, 4, 2, 9) is None


def test_the_image_below_is_not_touched():
    images, surfaces = pictures()
    before = images[1].copy()
    images[1].setflags(write=False)
    add_surface(images[1], surfaces[1], (31, 47), 0, 0)
    np.testing.assert_array_equal(images[1], before)


def test_gain_plane_and_surface_come_together_in_the_coadd():
    images, surfaces = pictures()
    image, gain = images[1], 1.2
    terms = np.array([[gain, 5, -3, 2]] * 3, np.float32)
    source = CoaddSource(
        1,
        (31, 47),
        build_pixel_map(lambda x, y: (x, y), (0, 31, 0, 47)),
        (0, 31, 0, 47),
        terms,
        np.ones(3, "f4"),
    )
    bent = TileSurfaces(Pictures(images), {1: (31, 47)}, {1: surfaces[1] / gain})
    got = np.full((3, 31, 47), np.nan)

    def sink(y0, y1, block):
        got[:, y0:y1] = block.image

    coadd_on_grid(
        bent,
        [source],
        (31, 47),
        3,
        CombineRule(rejection="none", combine="mean"),
        "lanczos3",
        sink=sink,
        budget_bytes=1 << 24,
    )
    t, u = np.meshgrid(np.linspace(-1, 1, 31), np.linspace(-1, 1, 47), indexing="ij")
    expected = gain * image + 5 - 3 * u + 2 * t + np.einsum("ck,yxk->cyx", surfaces[1], basis(u, t))
    np.testing.assert_allclose(got, expected, atol=2e-3)


def mosaic(nx=3, ny=3, *, curve=15.0, shared=0.0, plane=20.0, noise=3.0, galaxy=400.0, seed=0, pitch=0.06):
    """Tiles of width 2 every 1.6; tile k shows ``sky - offset - plane - surface``. One channel."""
    rng = np.random.default_rng(seed)
    n = nx * ny
    cx, cy = (np.arange(n) % nx) * STEP, (np.arange(n) // nx) * STEP
    offsets, planes = rng.normal(0, 100, n), rng.normal(0, plane, (n, 2))
    surfaces = rng.normal(0, curve, (n, 3))
    surfaces += shared - surfaces.mean(axis=0)
    overlaps = []
    for i in range(n):
        for j in range(i + 1, n):
            x0, x1 = max(cx[i], cx[j]) - 1, min(cx[i], cx[j]) + 1
            y0, y1 = max(cy[i], cy[j]) - 1, min(cy[i], cy[j]) + 1
            if x1 - x0 < 0.05 or y1 - y0 < 0.05:
                continue
            x, y = (v.ravel() for v in np.meshgrid(np.arange(x0, x1, pitch), np.arange(y0, y1, pitch)))
            sky = 1000 + galaxy * np.exp(-((x - cx.mean()) ** 2) - (y - cy.mean()) ** 2)

            def observe(k, x=x, y=y, sky=sky):
                u, t = x - cx[k], y - cy[k]
                value = sky - offsets[k] - planes[k, 0] * u - planes[k, 1] * t - basis(u, t) @ surfaces[k]
                return np.column_stack([u, t]), (value + rng.normal(0, noise, len(x)))[None]

            uv_i, m_i = observe(i)
            uv_j, m_j = observe(j)
            overlaps.append(OverlapSamples(i, j, uv_i, uv_j, m_i, m_j, np.ones(len(x))))
    return overlaps, n, (offsets, planes, surfaces), (cx, cy)


def correction(result, k, u, t):
    _, c0, a, b = result.terms[k, 0]
    return c0 + a * u + b * t + basis(u, t) @ result.surface[k, 0]


def seams(result, overlaps, truth):
    """Rms of what is left between neighbours without noise, and how much of it there was."""
    offsets, planes, surfaces = truth
    left = []
    for o in overlaps:
        sides = []
        for k, uv in ((o.i, o.uv_i), (o.j, o.uv_j)):
            true = offsets[k] + uv @ planes[k] + basis(uv[:, 0], uv[:, 1]) @ surfaces[k]
            sides.append(correction(result, k, uv[:, 0], uv[:, 1]) - true)
        left.append(sides[0] - sides[1])
    return float(np.sqrt(np.mean(np.concatenate(left) ** 2)))


def test_curved_tiles_meet():
    overlaps, n, truth, _ = mosaic()
    flat, curved = solve_tiles(n, overlaps, 1, options=FLAT), solve_tiles(n, overlaps, 1, options=CURVED)
    assert seams(flat, overlaps, truth) > 4.0
    assert seams(curved, overlaps, truth) < 1.2
    assert np.nanmax(curved.pair_rms_after) < 1.3 * 3 * np.sqrt(2)
    assert curved.surface_freed.all()


def test_terms_and_surface_mean_what_is_added_to_the_tiles():
    overlaps, n, *_ = mosaic(seed=3)
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    for k, o in enumerate(overlaps):
        a = o.values_i[0] + correction(result, o.i, *o.uv_i.T)
        b = o.values_j[0] + correction(result, o.j, *o.uv_j.T)
        assert np.sqrt(np.mean((a - b) ** 2)) == pytest.approx(result.pair_rms_after[k, 0], rel=1e-9)


def test_without_surfaces_nothing_changes():
    overlaps, n, *_ = mosaic()
    result = solve_tiles(n, overlaps, 1, options=FLAT)
    assert not result.surface.any()
    assert not result.surface_freed.any()
    # Bending needs tilting.
    level = TileOptions(fit_gain=False, fit_plane=False, fit_surface=True)
    result = solve_tiles(n, overlaps, 1, options=level)
    assert not result.surface.any()
    assert not result.terms[..., 2:].any()


def test_straight_tiles_are_hardly_bent():
    overlaps, n, truth, _ = mosaic(curve=0.0)
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    assert np.abs(result.surface).max() < 4.0
    assert seams(result, overlaps, truth) < 1.0


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (8, 1)])
def test_no_bowl_is_made_over_the_mosaic(shape):
    """Tilted and curved tiles by chance: what is put on the whole mosaic is no larger than with planes alone."""
    excess = []
    for seed in range(6):
        overlaps, n, truth, (cx, cy) = mosaic(*shape, seed=seed)
        rms = []
        for options in (FLAT, CURVED):
            result = solve_tiles(n, overlaps, 1, options=options)
            u, t = (v.ravel() for v in np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)))
            error, x, y = [], [], []
            for k in range(n):
                true = truth[0][k] + truth[1][k] @ np.stack([u, t]) + basis(u, t) @ truth[2][k]
                error.append(correction(result, k, u, t) - true)
                x.append(cx[k] + u)
                y.append(cy[k] + t)
            error, x, y = (np.concatenate(v) for v in (error, x, y))
            design = np.column_stack([np.ones_like(x), x, y])
            rms.append(float(np.std(error - design @ np.linalg.lstsq(design, error, rcond=None)[0])))
        excess.append(rms[1] / rms[0])
    assert np.median(excess) < 1.0


def test_the_mean_of_the_surfaces_is_held_near_zero():
    overlaps, n, *_ = mosaic(2, 2, shared=10.0)
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    assert np.abs(result.surface[:, 0].mean(axis=0)).max() < 0.3 * np.abs(result.surface).max()


def test_a_galaxy_all_tiles_see_alike_bends_nothing():
    overlaps, n, *_ = mosaic(2, 2, curve=0.0, plane=0.0, noise=1.0, galaxy=5000.0)
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    assert np.abs(result.surface).max() < 1.0


def test_few_cells_bend_no_tile():
    overlaps, n, *_ = mosaic(2, 1, pitch=0.3)
    assert sum(len(o.weight) for o in overlaps) < 60
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    assert not result.surface_freed.any()
    assert not result.surface.any()


def test_a_small_overlap_has_no_lever():
    # Many cells, but all in one corner: there a surface looks like a plane.
    overlaps, *_ = mosaic(2, 2)
    corner = [o for o in overlaps if (o.i, o.j) == (0, 3)]
    o = corner[0]
    many = OverlapSamples(
        0,
        1,
        np.repeat(o.uv_i, 30, axis=0),
        np.repeat(o.uv_j, 30, axis=0),
        np.repeat(o.values_i, 30, axis=1),
        np.repeat(o.values_j, 30, axis=1),
        np.ones(30 * len(o.weight)),
    )
    assert len(many.weight) > 1000
    result = solve_tiles(2, [many], 1, options=CURVED)
    assert not result.surface_freed.any()


def test_separate_parts_are_bent_separately():
    overlaps, n, *_ = mosaic(2, 2)
    second = [
        OverlapSamples(o.i + n, o.j + n, o.uv_i, o.uv_j, o.values_i, o.values_j, o.weight) for o in overlaps
    ]
    one = solve_tiles(n, overlaps, 1, options=CURVED)
    both = solve_tiles(2 * n + 1, overlaps + second, 1, options=CURVED)
    np.testing.assert_allclose(both.surface[:n], both.surface[n : 2 * n], atol=1e-6)
    np.testing.assert_allclose(both.surface[:n], one.surface, atol=0.5)
    assert not both.surface[2 * n].any()
    assert not both.surface_freed[2 * n].any()


def test_many_tiles_are_bent_together():
    overlaps, n, truth, _ = mosaic(12, 10, pitch=0.15)
    result = solve_tiles(n, overlaps, 1, options=CURVED)
    assert seams(result, overlaps, truth) < 2.0
