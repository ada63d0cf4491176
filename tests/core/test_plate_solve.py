from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.errors import SkipItem
from zemosaic_core.plate_fit import CatalogueStars, PlateFit, fit_plate, from_plane, stereographic
from zemosaic_core.plate_solve import MIN_LOG10_ODDS, SolveHint, solve_plate, verify_wcs
from zemosaic_core.sphere import gnomonic, separation_deg, tan_wcs, unit_vectors

SHAPE = (1920, 1080)
SCALE = 2.4


class ListedSky:
    """A catalogue that compares every star with every question: the slow twin of the real one."""

    def __init__(self, ra, dec, mag):
        order = np.argsort(mag)
        self.ra, self.dec, self.mag = ra[order], dec[order], mag[order]
        self._vectors = unit_vectors(self.ra, self.dec)

    def near(self, ra_deg, dec_deg, radius_deg, max_stars=None):
        chord = 2 * math.sin(math.radians(radius_deg) / 2)
        rows = np.flatnonzero(((self._vectors - unit_vectors(ra_deg, dec_deg)) ** 2).sum(axis=1) <= chord**2)[
            :max_stars
        ]
        return CatalogueStars(self.ra[rows], self.dec[rows], self.mag[rows])


def make_sky(rng, centre, radius_deg, per_deg2):
    """Random stars in a cap around a point."""
    n = rng.poisson(per_deg2 * math.pi * radius_deg**2)
    cos_c = rng.uniform(math.cos(math.radians(radius_deg)), 1.0, n)
    t = np.rad2deg(2 * np.tan(np.arccos(cos_c) / 2))
    angle = rng.uniform(0, 2 * np.pi, n)
    ra, dec = from_plane(t * np.sin(angle), t * np.cos(angle), *centre, conformal=True)
    return ListedSky(ra, dec, 12.5 - rng.exponential(1.2, n))


def observe(rng, sky, wcs, *, noise=0.15, lost=0.1, extra=1.5, bend=None):
    """Detect the sky's stars in a frame: some are lost, fainter ones come on top, order only nearly by light."""
    height, width = SHAPE
    ra, dec = wcs.wcs.crval
    near = sky.near(ra, dec, 1.0)
    x, y = wcs.all_world2pix(near.ra_deg, near.dec_deg, 0)
    if bend is not None:
        x, y = bend(x, y)
    keep = (x > 2) & (x < width - 3) & (y > 2) & (y < height - 3) & (rng.uniform(size=len(x)) > lost)
    n_extra = int(extra * keep.sum()) + 5
    xs = np.concatenate([x[keep], rng.uniform(0, width, n_extra)])
    ys = np.concatenate([y[keep], rng.uniform(0, height, n_extra)])
    mag = np.concatenate(
        [near.mag[keep] + rng.normal(0, 0.3, keep.sum()), 12.5 + rng.uniform(-0.7, 2, n_extra)]
    )
    order = np.argsort(mag)
    return SimpleNamespace(
        x=xs[order] + rng.normal(0, noise, len(xs)), y=ys[order] + rng.normal(0, noise, len(xs))
    )


def frame_at(centre, rotation=0.0, parity=-1, scale=SCALE):
    return tan_wcs(centre, scale / 3600, SHAPE, rotation, parity)


def errors_arcsec(solution, wcs, n=5):
    """Distance between found and true sky positions on a lattice over the frame; the centre first."""
    height, width = SHAPE
    gx, gy = np.meshgrid(np.linspace(0, width - 1, n), np.linspace(0, height - 1, n))
    x = np.concatenate([[(width - 1) / 2], gx.ravel()])
    y = np.concatenate([[(height - 1) / 2], gy.ravel()])
    return 3600 * separation_deg(*solution.fit.sky(x, y), *wcs.all_pix2world(x, y, 0))


@pytest.fixture(scope="module")
def sky():
    return make_sky(np.random.default_rng(1), (50.0, 20.0), 9.0, 22.0)


@pytest.mark.parametrize(("rotation", "parity"), [(0.5, 1), (33, -1), (181.3, -1), (262, 1), (111, -1)])
def test_any_rotation_and_handedness_is_found(sky, rotation, parity):
    rng = np.random.default_rng(int(rotation))
    wcs = frame_at((50.3, 19.8), rotation, parity)
    solution = solve_plate(observe(rng, sky, wcs), SHAPE, sky, SolveHint(50.0, 20.0, scale_arcsec=2.39))
    errors = errors_arcsec(solution, wcs)
    assert errors[0] < 0.3
    assert errors.max() < 1.2
    assert solution.parity == parity
    assert solution.rotation_deg == pytest.approx(rotation, abs=0.05)
    assert solution.scale_arcsec == pytest.approx(SCALE, rel=3e-4)
    assert solution.log10_odds >= MIN_LOG10_ODDS
    assert solution.rms_px < 0.3
    assert 0.7 * solution.n_expected < solution.n_matched <= solution.n_expected


def test_matched_stars_are_the_right_ones(sky):
    wcs = frame_at((49.5, 20.5), 77)
    stars = observe(np.random.default_rng(2), sky, wcs)
    solution = solve_plate(stars, SHAPE, sky, SolveHint(49.0, 20.0, scale_arcsec=SCALE))
    x, y = wcs.all_world2pix(solution.matched.ra_deg, solution.matched.dec_deg, 0)
    assert np.hypot(x - stars.x[solution.star_index], y - stars.y[solution.star_index]).max() < 1.0


@pytest.mark.parametrize("centre", [(0.02, 1.0), (359.9, -45.0), (123.0, 89.8), (10.0, -89.9)])
def test_meridian_and_poles_are_ordinary_places(centre):
    rng = np.random.default_rng(3)
    sky = make_sky(rng, centre, 2.5, 25.0)
    wcs = frame_at(centre, 200)
    hint = SolveHint(centre[0] + 0.2, centre[1], scale_arcsec=SCALE)
    assert errors_arcsec(solve_plate(observe(rng, sky, wcs), SHAPE, sky, hint), wcs)[0] < 0.3


def test_search_grows_outwards_to_the_radius_and_no_farther(sky):
    wcs = frame_at((50.0, 25.5), 10)
    stars = observe(np.random.default_rng(4), sky, wcs)
    found = solve_plate(stars, SHAPE, sky, SolveHint(50.0, 20.0, 7.0, SCALE))
    assert errors_arcsec(found, wcs)[0] < 0.3
    with pytest.raises(SkipItem, match="beyond doubt") as caught:
        solve_plate(stars, SHAPE, sky, SolveHint(50.0, 20.0, 2.0, SCALE))
    assert caught.value.key == "solve_no_match"


def test_scale_may_be_unknown_or_badly_stated(sky):
    wcs = frame_at((50.2, 20.1), 300, scale=3.3)
    stars = observe(np.random.default_rng(5), sky, wcs)
    for stated in (None, 2.75):
        solution = solve_plate(stars, SHAPE, sky, SolveHint(50.0, 20.0, 1.0, stated))
        assert solution.scale_arcsec == pytest.approx(3.3, rel=1e-3)


def test_no_hint_at_all_searches_the_whole_sky():
    rng = np.random.default_rng(6)
    sky = make_sky(rng, (210.0, -33.0), 12.0, 2.0)
    wcs = frame_at((211.0, -34.0), 15, scale=9.0)
    near = sky.near(211.0, -34.0, 3.0)
    x, y = wcs.all_world2pix(near.ra_deg, near.dec_deg, 0)
    inside = (x > 0) & (x < 1079) & (y > 0) & (y < 1919)
    stars = SimpleNamespace(x=x[inside], y=y[inside])
    solution = solve_plate(stars, SHAPE, sky, SolveHint(scale_arcsec=9.0))
    assert errors_arcsec(solution, wcs)[0] < 0.5


def test_few_stars_and_a_stop_say_so(sky):
    five = SimpleNamespace(x=np.arange(5.0), y=np.arange(5.0) ** 2)
    with pytest.raises(SkipItem) as caught:
        solve_plate(five, SHAPE, sky, SolveHint(50.0, 20.0, scale_arcsec=SCALE))
    assert caught.value.key == "solve_too_few_stars"
    stars = observe(np.random.default_rng(7), sky, frame_at((50.0, 20.0)))
    with pytest.raises(SkipItem) as caught:
        solve_plate(stars, SHAPE, sky, SolveHint(50.0, 20.0), should_stop=lambda: True)
    assert caught.value.key == "solve_stopped"


def bend_barrel(x, y):
    """Third-order distortion of 3 px in the corners."""
    dx, dy = x - 539.5, y - 959.5
    r2 = (dx**2 + dy**2) / (539.5**2 + 959.5**2)
    return x + 3.0 * r2 * dx / 1100, y + 3.0 * r2 * dy / 1100


def test_distortion_is_fitted_only_when_it_is_there():
    rng = np.random.default_rng(8)
    sky = make_sky(rng, (120.0, 40.0), 2.0, 80.0)
    wcs = frame_at((120.0, 40.0), 50)
    hint = SolveHint(120.1, 40.1, scale_arcsec=SCALE)
    straight = solve_plate(observe(rng, sky, wcs), SHAPE, sky, hint)
    assert straight.fit.order == 1
    assert straight.wcs_cards()["CTYPE1"] == "RA---TAN"
    bent = solve_plate(observe(rng, sky, wcs, bend=bend_barrel), SHAPE, sky, hint)
    assert bent.fit.order == 3
    assert bent.rms_px < 0.3
    # The bent frame's pixel of a place is not the straight one's: compare through the bend.
    x, y = np.array([539.5, 5.0, 1074.0, 5.0]), np.array([959.5, 5.0, 5.0, 1914.0])
    ra, dec = wcs.all_pix2world(x, y, 0)
    assert (3600 * separation_deg(*bent.fit.sky(*bend_barrel(x, y)), ra, dec)).max() < 1.2


@pytest.mark.parametrize("bend", [None, bend_barrel])
def test_cards_mean_the_same_to_astropy(bend):
    rng = np.random.default_rng(9)
    sky = make_sky(rng, (300.0, -60.0), 2.0, 80.0)
    stars = observe(rng, sky, frame_at((300.0, -60.0), 140), bend=bend)
    solution = solve_plate(stars, SHAPE, sky, SolveHint(300.0, -60.0, scale_arcsec=SCALE))
    wcs = WCS(solution.wcs_cards())
    x, y = rng.uniform(0, 1079, 50), rng.uniform(0, 1919, 50)
    ra, dec = solution.fit.sky(x, y)
    assert (3600 * separation_deg(ra, dec, *wcs.all_pix2world(x, y, 0))).max() < 1e-6
    np.testing.assert_allclose(solution.fit.pixels(ra, dec), (x, y), atol=1e-5)
    np.testing.assert_allclose(wcs.all_world2pix(ra, dec, 0), (x, y), atol=1e-3)
    if bend is not None:
        # The inverse polynomials of the cards, which other programs use instead of iterating.
        cards = solution.wcs_cards()
        middle = np.array([[539.5], [959.5]])
        u, v = np.stack(wcs.wcs_world2pix(ra, dec, 0)) - middle
        for target, name, start in ((x, "AP", u + 539.5), (y, "BP", v + 959.5)):
            powers = [(i, j) for i in range(5) for j in range(5) if i + j > 0 and f"{name}_{i}_{j}" in cards]
            back = start + sum(cards[f"{name}_{i}_{j}"] * u**i * v**j for i, j in powers)
            np.testing.assert_allclose(back, target, atol=0.01)


def test_fit_plate_recovers_an_exact_plate():
    rng = np.random.default_rng(10)
    wcs = frame_at((80.0, -20.0), 12)
    x, y = rng.uniform(0, 1079, 20), rng.uniform(0, 1919, 20)
    ra, dec = wcs.all_pix2world(x, y, 0)
    fit, keep = fit_plate(x, y, ra, dec, SHAPE, near=(80.2, -20.1), scale_deg=SCALE / 3600)
    assert keep.all()
    np.testing.assert_allclose((fit.ra_deg, fit.dec_deg), (80.0, -20.0), atol=1e-9)
    np.testing.assert_allclose(fit.cd, wcs.pixel_scale_matrix, rtol=0, atol=1e-10)


def test_plain_plate_projects_like_astropy():
    cd = frame_at((80.0, -20.0), 12).pixel_scale_matrix
    table = [np.array([[0.0, c[1]], [c[0], 0.0]]) * 960 for c in cd]
    fit = PlateFit(80.0, -20.0, 539.5, 959.5, 960.0, *table, 1)
    x, y = np.array([0.0, 700.0]), np.array([3.0, 1500.0])
    np.testing.assert_allclose(fit.sky(x, y), frame_at((80.0, -20.0), 12).all_pix2world(x, y, 0), atol=1e-11)


def test_projections_are_undone():
    rng = np.random.default_rng(11)
    ra, dec = rng.uniform(0, 360, 200), rng.uniform(-89, 89, 200)
    for project, conformal in ((stereographic, True), (gnomonic, False)):
        for centre in ((0.0, 0.0), (200.0, 85.0)):
            near = separation_deg(ra, dec, *centre) < 80
            back = from_plane(*project(ra[near], dec[near], *centre), *centre, conformal=conformal)
            assert (3600 * separation_deg(*back, ra[near], dec[near])).max() < 1e-6


class TestVerify:
    @pytest.fixture(scope="class")
    @classmethod
    def field(cls, sky):
        wcs = frame_at((51.0, 21.0), 66)
        return wcs, observe(np.random.default_rng(12), sky, wcs)

    def test_true_wcs_is_confirmed(self, sky, field):
        wcs, stars = field
        check = verify_wcs(wcs, stars, sky)
        assert check.confirmed
        assert not check.contradicts
        assert not check.is_shifted
        assert check.rms_px < 0.4
        assert check.n_matched >= 0.7 * check.n_expected
        assert check.offset_px < 0.2

    @pytest.mark.parametrize("shift", [(0.5, 0.5), (-1.0, 0.4), (6.0, -3.0)])
    def test_common_shift_is_measured(self, sky, field, shift):
        _, stars = field
        moved = frame_at((51.0, 21.0), 66)
        moved.wcs.crpix -= np.array(shift)
        check = verify_wcs(moved, stars, sky)
        assert check.confirmed
        assert check.is_shifted
        assert check.shift_x_px == pytest.approx(shift[0], abs=0.15)
        assert check.shift_y_px == pytest.approx(shift[1], abs=0.15)
        assert check.offset_px == pytest.approx(math.hypot(*shift), abs=0.2)

    def test_wrong_place_is_contradicted(self, sky, field):
        _, stars = field
        for wrong in (
            frame_at((49.0, 19.0), 66),
            frame_at((51.0, 21.0), 70),
            frame_at((51.0, 21.0), 66, parity=1),
        ):
            check = verify_wcs(wrong, stars, sky)
            assert check.contradicts
            assert not check.confirmed
            assert math.isnan(check.offset_px)

    def test_few_stars_prove_nothing(self, sky, field):
        wcs, stars = field
        few = SimpleNamespace(x=stars.x[:3], y=stars.y[:3])
        none = SimpleNamespace(x=np.empty(0), y=np.empty(0))
        for some in (few, none):
            check = verify_wcs(wcs, some, sky)
            assert not check.confirmed
            assert not check.contradicts

    def test_other_axes_are_not_judged(self, sky, field):
        _, stars = field
        galactic = frame_at((51.0, 21.0), 66)
        galactic.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
        galactic.wcs.set()
        check = verify_wcs(galactic, stars, sky)
        assert not check.confirmed
        assert not check.contradicts

    def test_size_must_be_known(self, sky, field):
        wcs, stars = field
        bare = wcs.deepcopy()
        bare.array_shape = None
        with pytest.raises(ValueError, match="shape_hw"):
            verify_wcs(bare, stars, sky)
