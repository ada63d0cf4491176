from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.cfa import luminance
from zemosaic_core.errors import Cancelled, SkipItem
from zemosaic_core.plate_solve import SolveHint, solve_plate
from zemosaic_core.sphere import separation_deg, tan_wcs
from zemosaic_core.stars import detect_stars
from zemosaic_core.synthetic_sky import FrameSetup, make_sky, pixel_to_sky, render_frame, tan_cards
from zemosaic_io.headers import read_frame_info
from zemosaic_io.solvers.base import SolveRequest
from zemosaic_io.solvers.embedded import EmbeddedSolver, check_wcs
from zemosaic_io.star_catalogue import (
    StarCatalogue,
    catalogue_stars_near,
    encode_catalogue,
    open_built_in_catalogue,
)

SHAPE = (1920, 1080)
SCALE = 2.374
NOMINAL_SCALE = 2.392  # what FOCALLEN and XPIXSZ of a Seestar S50 say
M94 = (192.72, 41.12)


def frame_over(rng, ra, dec, *, lost=0.1, extra=1.5, noise=0.15):
    """Detect stars of the real catalogue in a frame at random rotation, with losses and faint extra stars."""
    height, width = SHAPE
    wcs = tan_wcs((ra, dec), SCALE / 3600, SHAPE, rng.uniform(0, 360), int(rng.choice([-1, 1])))
    near = open_built_in_catalogue().near(ra, dec, 0.75)
    x, y = wcs.all_world2pix(near.ra_deg, near.dec_deg, 0)
    keep = (x > 3) & (x < width - 4) & (y > 3) & (y < height - 4) & (rng.uniform(size=len(x)) > lost)
    n = int(extra * keep.sum()) + 8
    mag = np.concatenate([near.mag[keep] + rng.normal(0, 0.35, keep.sum()), 12 + rng.uniform(-1, 2, n)])
    xs = np.concatenate([x[keep], rng.uniform(0, width, n)]) + rng.normal(0, noise, len(mag))
    ys = np.concatenate([y[keep], rng.uniform(0, height, n)]) + rng.normal(0, noise, len(mag))
    order = np.argsort(mag)
    return SimpleNamespace(x=xs[order], y=ys[order]), wcs, int(keep.sum())


def somewhere(rng):
    return rng.uniform(0, 360), math.degrees(math.asin(rng.uniform(-1, 1)))


def request_for(stars, tmp_path, ra, dec, **changes):
    values = {
        "path": tmp_path / "frame.fit", "shape_hw": SHAPE, "ra_deg": ra, "dec_deg": dec,
        "scale_arcsec": NOMINAL_SCALE, "radius_deg": 3.0, "stars": stars, "image_provider": None,
        "work_dir": tmp_path, "timeout_s": 60.0,
    }  # fmt: skip
    return SolveRequest(**{**values, **changes})


def test_frames_all_over_the_sky_are_solved():
    rng = np.random.default_rng(1)
    catalogue = open_built_in_catalogue()
    solved, worth = 0, 0
    for _ in range(100):
        ra, dec = somewhere(rng)
        stars, wcs, n = frame_over(rng, ra, dec)
        worth += n >= 9
        angle, off = rng.uniform(0, 2 * np.pi), 0.9 * math.sqrt(rng.uniform())
        hint_dec = float(np.clip(dec + off * math.cos(angle), -90, 90))
        hint_ra = ra + off * math.sin(angle) / max(math.cos(math.radians(dec)), 0.02)
        try:
            found = solve_plate(stars, SHAPE, catalogue, SolveHint(hint_ra, hint_dec, 1.5, NOMINAL_SCALE))
        except SkipItem:
            assert n < 9
            continue
        solved += 1
        middle = wcs.all_pix2world(539.5, 959.5, 0)
        assert separation_deg(*found.fit.sky(539.5, 959.5), *middle) * 3600 < 0.5
    assert solved >= worth >= 95


@pytest.mark.slow
def test_wrong_fields_are_never_solved():
    """Two thousand star lists that belong nowhere near: frames of other places, random and shuffled ones."""
    rng = np.random.default_rng(2)
    catalogue = open_built_in_catalogue()
    for trial in range(2000):
        if trial % 20 == 0:  # one real star list serves many wrong places
            real, _, _ = frame_over(rng, *somewhere(rng))
        ra, dec = somewhere(rng)
        kind = trial % 4
        if kind == 0:
            n = int(rng.integers(7, 150))
            stars = SimpleNamespace(x=rng.uniform(0, 1080, n), y=rng.uniform(0, 1920, n))
        elif kind == 1:
            stars, _, _ = frame_over(rng, ra, dec)
            stars = SimpleNamespace(x=stars.x, y=rng.permutation(stars.y))
        else:
            stars = real
        with pytest.raises(SkipItem):
            solve_plate(stars, SHAPE, catalogue, SolveHint(ra, dec, 0.15, NOMINAL_SCALE))


def test_grids_and_lines_are_never_solved():
    rng = np.random.default_rng(3)
    catalogue = open_built_in_catalogue()
    gy, gx = (g.ravel() + rng.normal(0, 0.2, g.size) for g in np.mgrid[20:1920:150.0, 20:1080:150.0])
    t = rng.uniform(0, 1, 60)
    patterns = [(gx, gy), (1080 * t, 1300 * t), (np.full(60, 400.0), 1900 * t)]
    for x, y in patterns:
        for _ in range(10):
            with pytest.raises(SkipItem):
                solve_plate(
                    SimpleNamespace(x=x, y=y),
                    SHAPE,
                    catalogue,
                    SolveHint(*somewhere(rng), 1.05, NOMINAL_SCALE),
                )


@pytest.mark.parametrize(("centre", "seed"), [(M94, 1), ((300.0, 35.0), 2), ((11.0, -25.3), 3)])
def test_rendered_frames_are_placed_to_a_tenth_of_an_arcsecond(centre, seed, tmp_path):
    rng = np.random.default_rng(seed)
    sky = make_sky(centre, 2.2, seed=seed, catalogue=catalogue_stars_near(*centre, 1.1))
    truth = tan_cards(centre[0] + 0.05, centre[1] - 0.1, rotation_deg=rng.uniform(0, 360), shape_hw=SHAPE)
    raw = render_frame(sky, FrameSetup(truth, SHAPE, seed=(seed,)))
    request = request_for(None, tmp_path, *centre, image_provider=lambda: (luminance(raw), (0.5, 0.5)))
    outcome = EmbeddedSolver().solve(request)
    assert outcome.ok
    assert outcome.solver == "EMBEDDED"
    assert outcome.n_matched >= 10
    assert outcome.rms_px < 0.15
    assert outcome.values["log10_odds"] > 9
    x, y = np.array([539.5, 0, 1079, 0, 1079]), np.array([959.5, 0, 0, 1919, 1919])
    found = WCS(outcome.wcs_cards).all_pix2world(x, y, 0)
    errors = separation_deg(*found, *pixel_to_sky(truth, x, y)) * 3600
    assert errors[0] < 0.1
    assert errors.max() < 0.3


def test_real_frames_are_solved(real_frames, tmp_path):
    solver = EmbeddedSolver()
    assert len(real_frames) == 16
    for path in real_frames[::3]:
        info = read_frame_info(path)
        stars = detect_stars(luminance(fits.getdata(path)), offset=(0.5, 0.5))
        outcome = solver.solve(
            request_for(stars, tmp_path, info.ra_deg, info.dec_deg, scale_arcsec=info.scale_arcsec)
        )
        assert outcome.ok, (path.name, outcome.key)
        assert outcome.n_matched >= 10
        assert outcome.rms_px / math.sqrt(2.0) < 0.25  # per axis; proper motions since 2000 are most of it
        assert 2.36 < outcome.values["scale_arcsec"] < 2.39
        assert outcome.values["parity"] == -1
        check = check_wcs(outcome.wcs_cards, stars, info.shape_hw)
        assert check.confirmed
        assert not check.is_shifted


@pytest.mark.solver
def test_real_frame_agrees_with_solve_field(real_frames, tmp_path):
    from zemosaic_io.solvers.astrometry_net import SolveFieldSolver

    other = SolveFieldSolver()
    if not other.find().ok:
        pytest.skip("solve-field is not installed")
    info = read_frame_info(real_frames[6])
    stars = detect_stars(luminance(fits.getdata(info.path)), offset=(0.5, 0.5))
    request = request_for(stars, tmp_path, info.ra_deg, info.dec_deg, scale_arcsec=info.scale_arcsec)
    ours, theirs = EmbeddedSolver().solve(request), other.solve(request)
    assert ours.ok
    assert theirs.ok
    middle = [WCS(o.wcs_cards, relax=True).all_pix2world(539.5, 959.5, 0) for o in (ours, theirs)]
    assert separation_deg(*middle[0], *middle[1]) * 3600 < 0.5


class TestOutcomes:
    @pytest.fixture(scope="class")
    @classmethod
    def frame(cls):
        return frame_over(np.random.default_rng(4), *M94)

    def test_no_solution_is_not_worth_repeating(self, frame, tmp_path):
        rng = np.random.default_rng(5)
        nowhere = SimpleNamespace(x=rng.uniform(0, 1080, 60), y=rng.uniform(0, 1920, 60))
        outcome = EmbeddedSolver().solve(request_for(nowhere, tmp_path, *M94, timeout_s=0.3))
        assert not outcome.ok
        assert outcome.kind == "no_solution"
        assert outcome.key in ("solver_no_solution", "solver_timeout")
        assert outcome.values["solver"] == "EMBEDDED"

    def test_few_stars_are_told(self, frame, tmp_path):
        stars = SimpleNamespace(x=frame[0].x[:5], y=frame[0].y[:5])
        outcome = EmbeddedSolver().solve(request_for(stars, tmp_path, *M94))
        assert (outcome.kind, outcome.key, outcome.values["stars"]) == (
            "too_few_stars",
            "solver_too_few_stars",
            5,
        )

    def test_neither_stars_nor_picture(self, tmp_path):
        outcome = EmbeddedSolver().solve(request_for(None, tmp_path, *M94))
        assert (outcome.kind, outcome.key) == ("unavailable", "solver_needs_image")

    def test_cancel_is_obeyed(self, frame, tmp_path):
        stop = threading.Event()
        stop.set()
        with pytest.raises(Cancelled):
            EmbeddedSolver().solve(request_for(frame[0], tmp_path, *M94), stop)

    def test_position_without_scale_and_scale_off_by_a_reducer(self, frame, tmp_path):
        for scale in (None, SCALE * 1.2):
            outcome = EmbeddedSolver().solve(request_for(frame[0], tmp_path, *M94, scale_arcsec=scale))
            assert outcome.ok
            assert outcome.values["scale_arcsec"] == pytest.approx(SCALE, rel=1e-3)

    def test_threads_may_share_one_solver(self, frame, tmp_path):
        solver = EmbeddedSolver()
        cards = []

        def work():
            cards.append(solver.solve(request_for(frame[0], tmp_path, *M94)).wcs_cards)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cards) == 4
        assert all(c == cards[0] for c in cards)


def test_availability(tmp_path, monkeypatch):
    found = EmbeddedSolver().find()
    assert found.ok
    assert "Tycho-2" in found.version
    broken = EmbeddedSolver()
    monkeypatch.setattr(
        "zemosaic_io.solvers.embedded.open_built_in_catalogue", lambda: StarCatalogue(tmp_path / "gone")
    )
    missing = broken.find()
    assert not missing.ok
    assert missing.key == "solver_no_catalogue"
    outcome = broken.solve(request_for(None, tmp_path, *M94))
    assert (outcome.kind, outcome.key) == ("unavailable", "solver_no_catalogue")


def test_another_catalogue_may_be_given(tmp_path):
    path = tmp_path / "m94.stars"
    path.write_bytes(encode_catalogue(*catalogue_stars_near(*M94, 2.0), {"catalogue": "part"}))
    stars, _, _ = frame_over(np.random.default_rng(6), *M94)
    solver = EmbeddedSolver(StarCatalogue(path))
    assert solver.find().version == "part"
    assert solver.solve(request_for(stars, tmp_path, *M94)).ok


def test_how_far_it_looks_at_least_may_be_given(tmp_path):
    stars, _, _ = frame_over(np.random.default_rng(6), *M94)
    far = (M94[0], M94[1] - 4.0)
    assert EmbeddedSolver().solve(request_for(stars, tmp_path, *far, radius_deg=1.0)).ok
    near = EmbeddedSolver(least_radius_deg=1.0).solve(request_for(stars, tmp_path, *far, radius_deg=1.0))
    assert (near.ok, near.key) == (False, "solver_no_solution")


def test_check_wcs_finds_the_half_pixel_of_a_careless_solver():
    stars, wcs, _ = frame_over(np.random.default_rng(7), 83.0, 22.0)
    cards = dict(wcs.to_header())
    good = check_wcs(cards, stars, SHAPE)
    assert good.confirmed
    assert not good.is_shifted
    bad = check_wcs({**cards, "CRPIX1": cards["CRPIX1"] - 0.5, "CRPIX2": cards["CRPIX2"] - 0.5}, stars, SHAPE)
    assert bad.is_shifted
    assert bad.offset_px == pytest.approx(math.sqrt(0.5), abs=0.15)
    elsewhere = check_wcs({**cards, "CRVAL1": cards["CRVAL1"] + 5.0}, stars, SHAPE)
    assert elsewhere.contradicts


def test_a_radius_that_is_a_limit_is_not_searched_beyond(tmp_path):
    """Another one is only what slower programs are told."""
    rng = np.random.default_rng(31)
    ra, dec = M94
    stars, _, _ = frame_over(rng, ra, dec, extra=0.5)
    asked = request_for(stars, tmp_path, ra, dec - 2.5, radius_deg=1.0)
    assert EmbeddedSolver().solve(asked).ok
    limited = request_for(stars, tmp_path, ra, dec - 2.5, radius_deg=1.0, radius_is_limit=True)
    assert not EmbeddedSolver().solve(limited).ok
    near = request_for(stars, tmp_path, ra, dec - 0.5, radius_deg=1.0, radius_is_limit=True)
    assert EmbeddedSolver().solve(near).ok
