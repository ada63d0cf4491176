from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.errors import SettingsError
from zemosaic_core.normalize import best_frames, mesh_uv, normalise_group, solve_group

NY, NX = 15, 9
UV = mesh_uv(NY, NX)


class Group:
    """Frames of one tile: common sky with a nebula and a real gradient, frame offsets and planes, gains."""

    def __init__(self, n=30, channels=3, seed=0, noise=1.0, plane=30.0, offset=200.0, step=0.0, gain=0.15):
        rng = np.random.default_rng(seed)
        angle = np.deg2rad(rng.uniform(-20, 20, n))[:, None, None]
        px, py = UV[..., 0] * 540, UV[..., 1] * 960
        x = 1500 + rng.normal(0, 60, n)[:, None, None] + px * np.cos(angle) - py * np.sin(angle)
        y = (
            2000
            + (rng.normal(0, 60, n) + step * np.arange(n))[:, None, None]
            + px * np.sin(angle)
            + py * np.cos(angle)
        )
        self.nodes = np.stack([x, y], axis=-1)
        self.sky_truth = (
            2000
            + 400 * np.exp(-((x - 1500) ** 2 + (y - 2000) ** 2) / 400**2)
            + 0.05 * (x - 1500)
            - 0.03 * (y - 2000)
        )
        self.gains = np.exp(np.abs(rng.normal(0, gain, (n, 1)))) * np.ones((1, channels))
        self.offsets = rng.normal(0, offset, (n, channels))
        self.planes = rng.normal(0, plane, (n, channels, 2))
        self.clean = self.observe(self.sky_truth)
        self.meshes = self.clean + rng.normal(0, noise, self.clean.shape)
        self.meshes[rng.random(self.meshes.shape) < 0.05] = np.nan
        self.meshes[rng.random(self.meshes.shape) < 0.02] += 300
        self.sky = np.nanmedian(self.meshes, axis=(2, 3))
        self.noise = 100 * (1 + 0.2 * rng.random((n, channels)))

    def observe(self, sky):
        frame_plane = np.einsum("ncr,yxr->ncyx", self.planes, UV)
        return (sky[:, None] - self.offsets[..., None, None] - frame_plane) / self.gains[..., None, None]

    def solve(self, method="linear_fit", **keywords):
        return solve_group(self.gains, self.sky, self.meshes, self.nodes, self.noise, method, **keywords)

    def corrected(self, terms, values=None):
        values = self.clean if values is None else values
        t = terms.astype(np.float64)
        return (
            t[..., 0, None, None] * values
            + t[..., 1, None, None]
            + np.einsum("ncr,yxr->ncyx", t[..., 2:], UV)
        )

    def disagreement(self, terms):
        """Rms of corrected frames against the true sky, a plane on the tile (the gauge) taken out."""
        out = []
        for c in range(self.gains.shape[1]):
            d = (self.corrected(terms)[:, c] - self.sky_truth).ravel()
            design = np.column_stack([np.ones(d.size), self.nodes.reshape(-1, 2) / 1000])
            out.append((d - design @ np.linalg.lstsq(design, d, rcond=None)[0]).std())
        return np.array(out)


def test_frames_agree_on_one_sky_and_the_nebula_stays():
    group = Group()
    result = group.solve()
    assert result.solved.all()
    assert result.terms.dtype == np.float32
    assert group.disagreement(result.terms).max() < 0.4
    assert np.nanmedian(result.rms_before) > 2 * np.nanmedian(result.rms_after)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_small_groups(n):
    group = Group(n=n, seed=n)
    assert group.disagreement(group.solve().terms).max() < 1.0


def test_a_group_spread_over_several_fields():
    group = Group(n=20, step=150.0, seed=4)
    assert group.disagreement(group.solve().terms).max() < 1.0


def test_level_and_gradient_of_the_best_frames_are_preserved():
    group = Group(seed=2)
    result = group.solve()
    change = group.corrected(result.terms) - group.gains[..., None, None] * group.clean
    for c in range(3):
        fits = []
        for i in np.flatnonzero(result.best):
            xy = (group.nodes[i] - group.nodes[i].mean(axis=(0, 1))).reshape(-1, 2) / 1000
            design = np.column_stack([np.ones(len(xy)), xy])
            fits.append(np.linalg.lstsq(design, change[i, c].ravel(), rcond=None)[0])
        np.testing.assert_allclose(np.median(fits, axis=0), 0, atol=0.01)


def test_offsets_of_frames_side_by_side_make_no_slope():
    # The median of the offsets of ten frames must not leak into a gradient over the tile.
    group = Group(n=10, plane=0.0, seed=1)
    assert np.abs(group.solve().terms[..., 2:]).max() < 2.0


def test_a_gradient_shared_by_all_frames_is_not_removed():
    group = Group(plane=0.0, offset=0.0, seed=3, gain=0.0)
    result = group.solve()
    assert np.abs(group.corrected(result.terms) - group.sky_truth[:, None]).max() < 1.5
    assert np.abs(result.terms[..., 1:]).max() < 1.5


def test_identical_frames_get_the_identity():
    group = Group(n=5, plane=0.0, offset=0.0, noise=0.0, gain=0.0)
    group.nodes = np.broadcast_to(group.nodes[:1], group.nodes.shape)
    group.meshes = np.broadcast_to(group.clean[:1], group.clean.shape)
    terms = group.solve().terms
    np.testing.assert_allclose(terms[..., 0], 1)
    np.testing.assert_allclose(terms[..., 1:], 0, atol=0.02)


def test_none_is_the_identity_whatever_comes_in():
    group = Group(n=3)
    group.meshes[:] = np.nan
    terms = group.solve("none").terms
    np.testing.assert_array_equal(terms, np.tile(np.float32([1, 0, 0, 0]), (3, 3, 1)))


def test_sky_mean_only_moves_levels():
    group = Group(n=9)
    result = group.solve("sky_mean")
    np.testing.assert_array_equal(result.terms[..., 0], 1)
    np.testing.assert_array_equal(result.terms[..., 2:], 0)
    level = group.sky + result.terms[..., 1]
    np.testing.assert_allclose(
        level, np.broadcast_to(np.median(group.sky[result.best], axis=0), level.shape), rtol=1e-6
    )


def test_a_frame_without_mesh_falls_back_to_its_sky_level():
    group = Group(n=10)
    group.meshes[4] = np.nan
    result = group.solve()
    assert not result.solved[4].any()
    assert result.solved[[0, 9]].all()
    assert np.isnan(result.rms_after[4]).all()
    np.testing.assert_allclose(result.terms[4, :, 0], group.gains[4], rtol=1e-6)
    np.testing.assert_array_equal(result.terms[4, :, 2:], 0)
    # Within the size of the planes (30 ADU) the level fits.
    assert np.abs(group.corrected(result.terms)[4].mean() - group.sky_truth[4].mean()) < 150


def test_a_frame_with_few_cells_gets_an_offset_only_from_the_common_sky():
    group = Group(n=10, plane=0.0)
    few = np.full_like(group.meshes[6], np.nan)
    few[:, 7, 3:6] = group.clean[6][:, 7, 3:6]
    group.meshes[6] = few
    result = group.solve()
    assert result.solved[6].all()
    difference = (group.corrected(result.terms) - group.corrected(result.terms)[:, :, 7:8, 4:5])[6]
    truth = group.sky_truth[6] - group.sky_truth[6][7, 4]
    # No slope of its own beyond the one all frames share.
    assert np.abs(difference - truth).max() < 12
    assert group.disagreement(result.terms).max() < 1.0


def test_missing_gains_count_as_one_and_channels_are_independent():
    group = Group(n=6, gain=0.0)
    bad = group.gains.copy()
    bad[2] = np.nan
    bad[3] = 0
    terms = normalise_group(bad, group.sky, group.meshes, group.nodes, group.noise, "linear_fit")
    np.testing.assert_array_equal(terms[2:4, :, 0], 1)
    alone = normalise_group(
        group.gains[:, :1], group.sky[:, :1], group.meshes[:, :1], group.nodes, group.noise[:, :1], "none"
    )
    assert alone.shape == (6, 1, 4)


def test_best_frames_are_the_dark_and_clear_half():
    gains = np.array([[1.0], [1.5], [1.0], [1.0]])
    noise = np.array([[10.0], [10.0], [12.0], [30.0]])
    assert best_frames(gains, noise * 50, noise).tolist() == [True, False, True, False]
    nothing = np.full((4, 1), np.nan)
    assert best_frames(gains, noise * 50, nothing).tolist() == [True, False, True, False]
    assert best_frames(gains, nothing, nothing).all()


def test_order_of_frames_does_not_matter():
    group = Group(n=8, seed=6)
    order = np.random.default_rng(0).permutation(8)
    a = group.solve().terms
    b = normalise_group(
        group.gains[order],
        group.sky[order],
        group.meshes[order],
        group.nodes[order],
        group.noise[order],
        "linear_fit",
    )
    np.testing.assert_allclose(b, a[order], atol=0.3)


def test_unknown_method_is_refused():
    with pytest.raises(SettingsError, match="sky_median"):
        Group(n=2).solve("sky_median")


def test_empty_group():
    empty = np.empty((0, 3))
    terms = normalise_group(empty, empty, np.empty((0, 3, 4, 4)), np.empty((0, 4, 4, 2)), empty, "linear_fit")
    assert terms.shape == (0, 3, 4)
