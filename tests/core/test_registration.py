from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from zemosaic_core.registration import RegistrationOptions, register_globally
from zemosaic_core.sphere import tan_wcs

SHAPE = (1920, 1080)
SCALE = 2.4 / 3600
PANELS = ((1000, 1300), (1800, 1300), (1000, 2900), (1800, 2900))
GRID = tan_wcs((100, 60), SCALE, (4400, 3000))


@dataclass
class Scene:
    star_xy: list
    star_flux: list
    initial: list
    truth: list
    sky: np.ndarray

    def run(self, **keywords):
        return register_globally(self.star_xy, self.star_flux, self.initial, shapes_hw=SHAPE, **keywords)


def _distort(x, y, strength):
    """Radial distortion of the optics, `strength` px at the corner."""
    u, v = (x - 540) / 1101, (y - 960) / 1101
    r2 = u * u + v * v
    return x + strength * u * r2, y + strength * v * r2


def make_scene(
    *, seed=1, frames_per_panel=30, n_stars=200, noise=0.1, wcs_error=0.3, false_stars=0.03, distortion=0.0
) -> Scene:
    rng = np.random.default_rng(seed)
    n_sky = int(n_stars * 3400 * 4800 / (SHAPE[0] * SHAPE[1]))
    sky = rng.uniform([-200, -200], [3200, 4600], (n_sky, 2))
    ra, dec = GRID.all_pix2world(sky[:, 0], sky[:, 1], 0)
    brightness = np.exp(rng.normal(7, 1, n_sky))
    scene = Scene([], [], [], [], sky)
    for x0, y0 in PANELS:
        for k in range(frames_per_panel):
            centre = GRID.all_pix2world(x0 + rng.normal(0, 50), y0 + rng.normal(0, 50), 0)
            wcs = tan_wcs(
                (float(centre[0]), float(centre[1])), SCALE, SHAPE, rng.uniform(-10, 10) + 180 * (k % 2)
            )
            x, y = _distort(*wcs.all_world2pix(ra, dec, 0), distortion)
            inside = (x > 0) & (x < SHAPE[1] - 1) & (y > 0) & (y < SHAPE[0] - 1) & (rng.random(n_sky) < 0.85)
            xy = np.column_stack([x, y])[inside]
            xy += rng.normal(0, noise, xy.shape)
            n_false = int(false_stars * len(xy))
            xy[:n_false] = rng.uniform([0, 0], [SHAPE[1], SHAPE[0]], (n_false, 2))
            shift, turn, stretch = rng.normal(0, wcs_error, 2), *rng.normal(0, wcs_error / 1101, 2)
            scene.star_xy.append(xy)
            scene.star_flux.append(np.stack([brightness[inside]] * 3))
            scene.initial.append(_chain(wcs, shift, turn, 1 + stretch))
            scene.truth.append(_chain(wcs, np.zeros(2), 0.0, 1.0))
    return scene


def _chain(wcs, shift, turn, stretch):
    def to_plane(x, y):
        dx, dy = np.asarray(x) - 540, np.asarray(y) - 960
        c, s = stretch * np.cos(turn), stretch * np.sin(turn)
        ra, dec = wcs.all_pix2world(c * dx - s * dy + 540 + shift[0], s * dx + c * dy + 960 + shift[1], 0)
        return GRID.all_world2pix(ra, dec, 0)

    return to_plane


def _errors(scene, result):
    """Distances from the truth on a lattice of each frame, after and before a global affine is removed."""
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 1079, 5), np.linspace(0, 1919, 7)))
    got = np.concatenate([np.column_stack(f.to_plane.apply(x, y)) for f in result.frames])
    true = np.concatenate([np.column_stack(t(x, y)) for t in scene.truth])
    design = np.column_stack([np.ones(len(got)), got])
    fitted = design @ np.linalg.lstsq(design, true, rcond=None)[0]
    return np.hypot(*(fitted - true).T), np.hypot(*(got - true).T)


@pytest.fixture(scope="module")
def scene():
    return make_scene()


@pytest.fixture(scope="module")
def result(scene):
    return scene.run()


def test_relative_errors_are_far_below_the_initial_ones(scene, result):
    relative, absolute = _errors(scene, result)
    assert np.median(relative) < 0.03
    assert relative.max() < 0.15
    # The mosaic as a whole stays where the mean of 120 initial maps puts it, also in scale and rotation.
    assert np.median(absolute) < 0.08
    assert all(f.ok for f in result.frames)
    assert (result.component == 0).all()


def test_both_directions_agree(result):
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 1079, 5), np.linspace(0, 1919, 7)))
    for f in result.frames[::17]:
        back = np.column_stack(f.to_frame.apply(*f.to_plane.apply(x, y)))
        np.testing.assert_allclose(back, np.column_stack([x, y]), atol=0.005)


def test_star_list_and_flux_table(scene, result):
    seen = result.n_seen >= 5
    distance = np.sqrt(((result.star_xy[seen][:, None] - scene.sky[None]) ** 2).sum(-1)).min(axis=1)
    assert np.percentile(distance, 95) < 0.2
    assert result.flux.shape == (len(result.frame_index), 3)
    for k in (0, len(result.frame_index) // 2, len(result.frame_index) - 1):
        i, d = result.frame_index[k], result.detection_index[k]
        np.testing.assert_array_equal(result.flux[k], scene.star_flux[i][:, d])
        x, y = result.frames[i].to_plane.apply(*scene.star_xy[i][d])
        assert (
            np.hypot(x - result.star_xy[result.star_index[k], 0], y - result.star_xy[result.star_index[k], 1])
            < 1.5
        )
    np.testing.assert_array_equal(
        np.bincount(result.star_index, minlength=len(result.star_xy)), result.n_seen
    )
    assert result.scatter_px == pytest.approx(0.1, rel=0.1)


def test_scale_is_not_shrunk_by_noise():
    # With noisy positions as regressors, the residuals would be minimised by a smaller plane.
    scene = make_scene(noise=0.4, wcs_error=0.05, frames_per_panel=6, seed=3)
    result = scene.run()
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 1079, 5), np.linspace(0, 1919, 7)))
    got = np.concatenate([np.column_stack(f.to_plane.apply(x, y)) for f in result.frames])
    true = np.concatenate([np.column_stack(t(x, y)) for t in scene.truth])
    slope = np.polyfit(true[:, 1] - true[:, 1].mean(), got[:, 1] - true[:, 1], 1)[0]
    assert abs(slope) * 4000 < 0.15


def test_large_initial_errors_converge():
    scene = make_scene(wcs_error=1.0, frames_per_panel=8)
    result = scene.run()
    relative, _ = _errors(scene, result)
    assert all(f.ok for f in result.frames)
    assert np.median(relative) < 0.05


def test_distortion_the_initial_maps_do_not_know_is_fitted():
    scene = make_scene(distortion=4.0, frames_per_panel=8, seed=5)
    result = scene.run()
    kinds = [f.kind for f in result.frames]
    assert kinds.count("poly3") > 0.6 * len(kinds)
    # sqrt(2) times the noise of 0.1 per axis: hardly anything of the 4 px is left in the residuals.
    assert np.median([f.rms_px for f in result.frames]) < 0.16
    simple = scene.run(options=RegistrationOptions(max_kind="affine"))
    assert np.median([f.rms_px for f in result.frames]) < 0.9 * np.median([f.rms_px for f in simple.frames])


def test_bad_frames_are_marked_and_do_not_harm_the_others():
    scene = make_scene(frames_per_panel=5, seed=7)
    rng = np.random.default_rng(0)
    scene.star_xy[3] = rng.uniform([0, 0], [1080, 1920], (150, 2))
    scene.star_flux[3] = np.ones((3, 150))
    scene.star_xy[8], scene.star_flux[8] = scene.star_xy[8][:3], scene.star_flux[8][:, :3]
    scene.star_xy[9], scene.star_flux[9] = np.empty((0, 2)), np.empty((3, 0))
    good = scene.initial[12]
    scene.initial[12] = lambda x, y: (good(x, y)[0] * np.nan, good(x, y)[1])
    result = scene.run()
    bad = {3, 8, 9, 12}
    assert [i for i, f in enumerate(result.frames) if not f.ok] == sorted(bad)
    assert result.frames[3].reason in ("registration_too_few_matches", "registration_poor_fit")
    assert result.frames[8].reason == "registration_too_few_matches"
    assert result.frames[12].reason == "transform_not_finite"
    assert result.frames[12].to_plane is None
    # The initial map is kept.
    for i in (3, 8, 9):
        x, y = result.frames[i].to_plane.apply(200.0, 900.0)
        x0, y0 = scene.initial[i](np.array([200.0]), np.array([900.0]))
        assert abs(x - x0[0]) < 1e-3
        assert abs(y - y0[0]) < 1e-3
    for i in set(range(20)) - bad:
        assert result.frames[i].rms_px < 0.25


def test_a_frame_far_off_is_found_again():
    scene = make_scene(frames_per_panel=6, seed=9)
    original = scene.initial[4]

    def off(x, y):
        px, py = original(x, y)
        return px + 14.0, py - 9.0

    scene.initial[4] = off
    result = scene.run()
    assert result.frames[4].ok
    assert result.frames[4].shift_px == pytest.approx(np.hypot(14, 9), abs=1.5)
    relative, absolute = _errors(scene, result)
    assert np.median(relative) < 0.06
    # And it does not drag the gauge along.
    assert np.median(absolute) < 0.35
    kept = scene.run(options=RegistrationOptions(recover_radius_px=0))
    assert not kept.frames[4].ok


@pytest.mark.parametrize("shifted", [range(15, 20), range(0, 20, 2)])
def test_groups_of_frames_that_are_off_together_are_brought_back(shifted):
    # A whole panel, or every frame of a second night: they agree with each other, so no single frame looks bad.
    scene = make_scene(frames_per_panel=5, seed=17)
    for i in shifted:
        scene.initial[i] = lambda x, y, m=scene.initial[i]: (m(x, y)[0] + 7.0, m(x, y)[1] - 3.0)
    result = scene.run()
    relative, _ = _errors(scene, result)
    assert all(f.ok for f in result.frames)
    assert np.median(relative) < 0.06
    assert relative.max() < 0.25
    assert (result.component == 0).all()


def test_anchors_set_the_absolute_frame():
    scene = make_scene(frames_per_panel=4, seed=11)
    moved = [(lambda x, y, m=m: (m(x, y)[0] + 0.8, m(x, y)[1] - 0.6)) for m in scene.initial]
    scene.initial = moved
    free = _errors(scene, scene.run())[1]
    rng = np.random.default_rng(0)
    anchors = scene.sky[::3] + rng.normal(0, 0.1, scene.sky[::3].shape)
    anchored = _errors(scene, scene.run(anchors_xy=anchors))[1]
    assert np.median(free) > 0.8
    assert np.median(anchored) < 0.06


def test_panels_without_overlap_are_separate_components():
    scene = make_scene(frames_per_panel=3, seed=13)
    # Keep the first panel and move the last one's sky away.
    for name in ("star_xy", "star_flux", "initial", "truth"):
        setattr(scene, name, getattr(scene, name)[:3] + getattr(scene, name)[9:])
    scene.initial[3:] = [(lambda x, y, m=m: (m(x, y)[0] + 9000.0, m(x, y)[1])) for m in scene.initial[3:]]
    result = scene.run()
    assert all(f.ok for f in result.frames)
    assert result.component.tolist() == [0, 0, 0, 1, 1, 1]


def test_result_does_not_depend_on_the_order_of_stars():
    scene = make_scene(frames_per_panel=3, seed=15)
    first = scene.run()
    rng = np.random.default_rng(0)
    for i in range(len(scene.star_xy)):
        order = rng.permutation(len(scene.star_xy[i]))
        scene.star_xy[i], scene.star_flux[i] = scene.star_xy[i][order], scene.star_flux[i][:, order]
    second = scene.run()
    for a, b in zip(first.frames, second.frames, strict=True):
        assert a.kind == b.kind
        np.testing.assert_allclose(a.to_plane.apply(500, 500), b.to_plane.apply(500, 500), atol=1e-4)


def test_no_stars_at_all_keeps_every_initial_map():
    scene = make_scene(frames_per_panel=1)
    n = len(scene.initial)
    result = register_globally([np.empty((0, 2))] * n, [np.empty((3, 0))] * n, scene.initial, shapes_hw=SHAPE)
    assert not any(f.ok for f in result.frames)
    assert all(f.to_plane is not None for f in result.frames)
    assert len(result.star_xy) == 0
    assert result.component.tolist() == [-1] * n


def test_mismatched_lists_are_refused():
    with pytest.raises(ValueError, match="one star list"):
        register_globally([np.empty((0, 2))], [], [], shapes_hw=SHAPE)
