from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.tile_photometry import OverlapSamples, TileOptions, solve_tiles

STEP = 1.6


def _mosaic(
    nx=4,
    ny=3,
    *,
    nebula=300.0,
    noise=3.0,
    seed=0,
    gain=0.08,
    offset=100.0,
    plane=20.0,
    channels=3,
    missing=(),
):
    """Tiles of width 2 every 1.6; truth: sky = gain * m + c + plane, plus block samples on a common raster."""
    rng = np.random.default_rng(seed)
    n = nx * ny
    cx, cy = (np.arange(n) % nx) * STEP, (np.arange(n) // nx) * STEP
    gains = 1 + rng.uniform(-gain, gain, (n, channels))
    offsets, planes = rng.normal(0, offset, (n, channels)), rng.normal(0, plane, (n, channels, 2))
    overlaps = []
    for i in range(n):
        for j in range(i + 1, n):
            x0, x1 = max(cx[i], cx[j]) - 1, min(cx[i], cx[j]) + 1
            y0, y1 = max(cy[i], cy[j]) - 1, min(cy[i], cy[j]) + 1
            if x1 - x0 < 0.05 or y1 - y0 < 0.05 or (i, j) in missing:
                continue
            x, y = (v.ravel() for v in np.meshgrid(np.arange(x0, x1, 0.06), np.arange(y0, y1, 0.06)))
            bright = nebula * np.exp(-((x - 2.4) ** 2 + (y - 1.6) ** 2)) + 0.5 * nebula * np.sin(
                3 * x
            ) * np.cos(2 * y)
            sky = 1000 + np.stack([bright * (1 - 0.2 * c) for c in range(channels)])

            def observe(k, x=x, y=y, sky=sky):
                u, t = x - cx[k], y - cy[k]
                value = sky - offsets[k][:, None] - planes[k][:, :1] * u - planes[k][:, 1:] * t
                return np.column_stack([u, t]), value / gains[k][:, None] + rng.normal(0, noise, sky.shape)

            uv_i, m_i = observe(i)
            uv_j, m_j = observe(j)
            overlaps.append(OverlapSamples(i, j, uv_i, uv_j, m_i, m_j, np.ones(len(x))))
    return overlaps, n, gains, offsets, planes


def test_seams_go_down_to_the_noise():
    overlaps, n, gains, *_ = _mosaic()
    result = solve_tiles(n, overlaps, 3)
    assert np.nanmedian(result.pair_rms_before) > 50
    # Two noisy blocks of sigma 3.
    assert np.nanmax(result.pair_rms_after) < 1.3 * 3 * np.sqrt(2)
    anchor = result.anchors[0]
    assert (result.terms[anchor, :, 0] == 1).all()
    assert (result.terms[anchor, :, 1] == 0).all()
    relative = gains / gains[anchor]
    assert np.abs(result.terms[..., 0] - relative).max() < 0.04
    assert result.component.tolist() == [0] * n
    assert result.n_used.min() > 20


def test_terms_mean_what_the_coadd_does_with_them():
    overlaps, n, *_ = _mosaic(seed=2)
    result = solve_tiles(n, overlaps, 3)
    for k, o in enumerate(overlaps):
        for c in range(3):

            def apply(tile, uv, m, c=c):
                g, c0, a, b = result.terms[tile, c]
                return g * m[c] + c0 + a * uv[:, 0] + b * uv[:, 1]

            difference = apply(o.i, o.uv_i, o.values_i) - apply(o.j, o.uv_j, o.values_j)
            assert np.sqrt(np.mean(difference**2)) == pytest.approx(result.pair_rms_after[k, c], rel=1e-9)


def test_blank_sky_frees_no_gain():
    overlaps, n, *_ = _mosaic(nebula=0.0, gain=0.0)
    result = solve_tiles(n, overlaps, 3)
    assert not result.gain_freed.any()
    assert (result.terms[..., 0] == 1).all()
    assert np.nanmax(result.pair_rms_after) < 1.3 * 3 * np.sqrt(2)


def test_noise_alone_does_not_shrink_gains():
    # Weak but real signal: regressors as noisy as the signal would pull all gains down together.
    overlaps, n, *_ = _mosaic(nebula=20.0, gain=0.0, noise=6.0)
    result = solve_tiles(n, overlaps, 3)
    assert np.abs(result.terms[..., 0] - 1).max() < 0.05
    assert abs(result.terms[..., 0].mean() - 1) < 0.01


def test_levels_do_not_tilt_a_long_row():
    overlaps, n, *_ = _mosaic(nx=12, ny=1, plane=0.0, gain=0.0, nebula=0.0)
    result = solve_tiles(n, overlaps, 3)
    # Single slopes, seen only through narrow overlaps, are noisy; together they must not lean to one side.
    assert np.abs(result.terms[..., 2:]).max() < 8.0
    assert np.abs(result.terms[..., 2:].mean(axis=0)).max() < 1.5


def test_a_slope_shared_by_all_tiles_does_not_become_a_staircase():
    overlaps, n, *_ = _mosaic(nx=12, ny=1, plane=0.0, offset=5.0, gain=0.0, nebula=0.0, channels=1)
    tilted = [
        OverlapSamples(
            o.i, o.j, o.uv_i, o.uv_j, o.values_i + 30 * o.uv_i[:, 0], o.values_j + 30 * o.uv_j[:, 0], o.weight
        )
        for o in overlaps
    ]
    result = solve_tiles(n, tilted, 1)
    assert np.nanmax(result.pair_rms_after) < 1.3 * 3 * np.sqrt(2)
    np.testing.assert_allclose(result.terms[:, 0, 2], -30, atol=8)
    assert result.terms[:, 0, 2].mean() == pytest.approx(-30, abs=3)
    assert np.abs(result.terms[:, 0, 1] - np.median(result.terms[:, 0, 1])).max() < 40


def test_only_offsets():
    overlaps, n, _, offsets, _ = _mosaic(gain=0.0, plane=0.0)
    result = solve_tiles(n, overlaps, 3, options=TileOptions(fit_gain=False, fit_plane=False))
    assert (result.terms[..., 0] == 1).all()
    assert (result.terms[..., 2:] == 0).all()
    relative = offsets - offsets[result.anchors[0]]
    np.testing.assert_allclose(result.terms[..., 1], relative, atol=1.0)


def test_offsets_equal_plain_least_squares_when_noise_is_gaussian():
    overlaps, n, *_ = _mosaic(nx=3, ny=2, gain=0.0, plane=0.0, channels=1)
    options = TileOptions(fit_gain=False, fit_plane=False, huber_sigma=1e9, bisquare_sigma=1e9)
    result = solve_tiles(n, overlaps, 1, options=options, anchor=0)
    rows, right = [], []
    for o in overlaps:
        for d in o.values_i[0] - o.values_j[0]:
            row = np.zeros(n)
            row[o.i], row[o.j] = 1, -1
            rows.append(row)
            right.append(-d)
    expected = np.linalg.lstsq(np.array(rows)[:, 1:], np.array(right), rcond=None)[0]
    np.testing.assert_allclose(result.terms[1:, 0, 1], expected, atol=1e-6)
    assert result.terms[0, 0, 1] == 0


def test_outlying_blocks_do_not_matter():
    overlaps, n, *_ = _mosaic(seed=4)
    clean = solve_tiles(n, overlaps, 3)
    rng = np.random.default_rng(0)
    spoiled = []
    for o in overlaps:
        values = o.values_i.copy()
        values[:, rng.random(values.shape[1]) < 0.05] += 800
        spoiled.append(OverlapSamples(o.i, o.j, o.uv_i, o.uv_j, values, o.values_j, o.weight))
    result = solve_tiles(n, spoiled, 3)
    u = np.linspace(-1, 1, 5)
    for t in range(n):
        for c in range(3):
            values = [
                s.terms[t, c, 0] * 1000 + s.terms[t, c, 1] + s.terms[t, c, 2] * u for s in (clean, result)
            ]
            np.testing.assert_allclose(*values, atol=6.0)


def test_gain_limits_hold():
    overlaps, n, *_ = _mosaic(gain=0.0, noise=1.0)
    # One tile three times too faint.
    faint = [
        OverlapSamples(
            o.i,
            o.j,
            o.uv_i,
            o.uv_j,
            o.values_i / (3 if o.i == 0 else 1),
            o.values_j / (3 if o.j == 0 else 1),
            o.weight,
        )
        for o in overlaps
    ]
    result = solve_tiles(n, faint, 3)
    np.testing.assert_allclose(result.terms[0, :, 0], 1.25)
    assert result.gain_limited[0].all()
    assert not result.gain_limited[1:].any()
    free = solve_tiles(n, faint, 3, options=TileOptions(gain_limits=(0.2, 5), gain_sigma=1.0))
    np.testing.assert_allclose(free.terms[0, :, 0], 3.0, rtol=0.1)


def test_separate_parts_and_lone_tiles():
    cut = {(0, 3), (1, 4), (2, 5), (0, 4), (1, 3), (1, 5), (2, 4)}
    overlaps, n, *_ = _mosaic(nx=3, ny=2, missing=cut)
    result = solve_tiles(n + 1, overlaps, 3)
    assert result.component.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert len(result.anchors) == 3
    for k, anchor in enumerate(result.anchors):
        assert result.component[anchor] == k
        assert (result.terms[anchor, :, 1] == 0).all()
    np.testing.assert_array_equal(result.terms[6], np.tile([1.0, 0, 0, 0], (3, 1)))
    assert np.nanmax(result.pair_rms_after) < 1.3 * 3 * np.sqrt(2)


def test_nan_blocks_and_empty_overlaps():
    overlaps, n, *_ = _mosaic(nx=2, ny=2)
    o = overlaps[0]
    values = o.values_i.copy()
    values[1] = np.nan
    overlaps[0] = OverlapSamples(o.i, o.j, o.uv_i, o.uv_j, values, o.values_j, o.weight)
    result = solve_tiles(n, overlaps, 3)
    assert result.n_used[0, 1] == 0
    assert np.isnan(result.pair_rms_after[0, 1])
    assert np.isfinite(result.terms).all()
    nothing = solve_tiles(3, [], 2)
    assert nothing.terms.shape == (3, 2, 4)
    assert nothing.component.tolist() == [0, 1, 2]


def test_bad_pair_is_refused():
    one = np.ones((1, 3))
    with pytest.raises(ValueError, match="overlap 0"):
        solve_tiles(2, [OverlapSamples(1, 1, np.zeros((3, 2)), np.zeros((3, 2)), one, one, np.ones(3))], 1)
