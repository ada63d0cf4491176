from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest

from zemosaic_core.errors import RunFailed
from zemosaic_core.sphere import separation_deg
from zemosaic_io.star_catalogue import (
    BUILT_IN_CATALOGUE,
    StarCatalogue,
    catalogue_stars_near,
    encode_catalogue,
    open_built_in_catalogue,
)

ROOT = Path(__file__).resolve().parents[2]
DEBIAN_INDEX = Path("/usr/share/astrometry/index-tycho2-07.littleendian.fits")
DEBIAN_STARS = Path("/usr/share/stellarium/stars/default")
# Half a step of the position code: 1 degree / 65536 / 2, in both axes.
ROUNDING_ARCSEC = 0.04


@pytest.fixture(scope="module")
def listed():
    rng = np.random.default_rng(1)
    n = 20000
    ra = np.concatenate([rng.uniform(0, 360, n), [0.0, 359.9999999, 12.0, 12.0, 180.0, 0.0]])
    dec = np.concatenate([np.rad2deg(np.arcsin(rng.uniform(-1, 1, n))), [0.0, 0.0, 90.0, -90.0, 45.0, -45.0]])
    return ra, dec, rng.uniform(-1, 13, len(ra))


@pytest.fixture(scope="module")
def written(listed, tmp_path_factory):
    path = tmp_path_factory.mktemp("catalogue") / "sky.stars"
    path.write_bytes(encode_catalogue(*listed, {"catalogue": "test"}))
    return StarCatalogue(path)


@pytest.mark.parametrize(
    ("ra", "dec", "radius"),
    [(10, 20, 3), (0.1, 0, 2), (359.9, -45, 4), (77, 89.5, 3), (200, -90, 5), (300, 60, 0.4), (5, 5, 120)],
)
def test_near_finds_what_a_look_at_every_star_finds(listed, written, ra, dec, radius):
    found = written.near(ra, dec, radius)
    distance = separation_deg(*listed[:2], ra, dec)
    edge = np.abs(distance - radius) < 1e-4
    expected = np.flatnonzero((distance <= radius) & ~edge)
    assert len(expected) <= len(found) <= len(expected) + edge.sum()
    assert (np.diff(found.mag) >= 0).all()
    for i in expected[:200]:
        apart = separation_deg(found.ra_deg, found.dec_deg, listed[0][i], listed[1][i]) * 3600
        best = np.argmin(apart)
        assert apart[best] < ROUNDING_ARCSEC
        assert abs(found.mag[best] - listed[2][i]) <= 0.036


def test_every_star_is_kept_once(listed, written):
    everything = written.all_sky()
    assert len(written) == len(everything) == len(listed[0])
    assert (everything.ra_deg >= 0).all()
    assert (everything.ra_deg < 360).all()


def test_brightest_come_first_and_alone(written):
    everything, five = written.near(100, 30, 10), written.near(100, 30, 10, 5)
    assert len(five) == 5
    np.testing.assert_array_equal(five.mag, everything.mag[:5])


def test_empty_sky_is_an_empty_list(tmp_path):
    path = tmp_path / "few.stars"
    path.write_bytes(encode_catalogue(np.array([10.0]), np.array([10.0]), np.array([5.0]), {}))
    assert len(StarCatalogue(path).near(200, -30, 5)) == 0
    assert len(StarCatalogue(path).near(10, 10, 1)) == 1


def test_order_of_the_stars_does_not_matter(listed):
    shuffle = np.random.default_rng(2).permutation(len(listed[0]))
    assert encode_catalogue(*listed, {}) == encode_catalogue(*(c[shuffle] for c in listed), {})


def test_origin_must_fit_its_place(listed):
    with pytest.raises(ValueError, match="origin"):
        encode_catalogue(*listed, {"note": "x" * 5000})


def test_missing_and_damaged_files_say_so(written, tmp_path):
    with pytest.raises(RunFailed, match="reinstall") as caught:
        StarCatalogue(tmp_path / "none.stars")
    assert caught.value.key == "catalogue_unreadable"
    whole = written.path.read_bytes()
    for bad in (whole[:-1], whole[:100], b"x" + whole[1:], b""):
        path = tmp_path / "bad.stars"
        path.write_bytes(bad)
        with pytest.raises(RunFailed) as caught:
            StarCatalogue(path)
        assert caught.value.key == "catalogue_damaged"


def test_workers_open_the_file_themselves(written):
    packed = pickle.dumps(written)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).near(50, 50, 5).ra_deg, written.near(50, 50, 5).ra_deg)


def test_built_in_catalogue_is_tycho_2_with_motions_and_colours():
    catalogue = open_built_in_catalogue()
    assert len(catalogue) == 1_882_299
    assert len(catalogue.coloured_near(0, 0, 180)) == 594_455
    assert BUILT_IN_CATALOGUE.stat().st_size < 14e6
    assert catalogue.origin["reference"] == "Hog E. et al. 2000, A&A 355, L27"
    assert catalogue.origin["epoch"] == "J2000.0"
    for name in ("LICENSE-Tycho2.txt", "LICENSE-Stellarium.txt"):
        assert (BUILT_IN_CATALOGUE.parent / name).is_file()


@pytest.mark.parametrize(
    ("ra", "dec", "mag"),
    [
        (78.63447, -8.20164, 0.3),  # Rigel
        (269.45208, 4.69339, 9.8),  # Barnard's star, J2000.0: 8.75 years earlier it was 90 arcsec away
        (165.83414, 35.96988, 7.7),  # Lalande 21185
        (77.91913, -45.01841, 9.1),  # Kapteyn's star
    ],
)
def test_well_known_stars_are_in_their_places(ra, dec, mag):
    ras, decs, mags = catalogue_stars_near(ra, dec, 0.1)
    apart = separation_deg(ras, decs, ra, dec) * 3600
    assert apart.min() < 1.0
    assert mags[apart.argmin()] == pytest.approx(mag, abs=0.15)


def test_thin_fields_have_enough_stars():
    assert len(catalogue_stars_near(192.72, 41.12, 0.6)[0]) >= 12  # M 94, far from the Milky Way


@pytest.mark.parametrize(
    ("ra", "dec", "ra_2025", "dec_2025", "v", "b_v"),
    [
        (77.91913, -45.01841, 77.98333, -45.05841, 8.9, 1.6),  # Kapteyn's star
        (279.23473, 38.78369, 279.23652, 38.78568, 0.0, 0.0),  # Vega, which Tycho-2 does not list
        (213.91530, 19.18241, 213.90725, 19.16853, 0.0, 1.2),  # Arcturus, of Supplement 1
        (180.0, 90.0, 180.0, 90.0, None, None),  # no star, but places at the pole must not fail
    ],
)
def test_stars_move_with_the_years(ra, dec, ra_2025, dec_2025, v, b_v):
    stars = open_built_in_catalogue().coloured_near(ra, dec, 0.1, epoch=2025.0)
    assert np.isfinite(stars.ra_deg).all()
    if v is None:
        return
    apart = separation_deg(stars.ra_deg, stars.dec_deg, ra_2025, dec_2025) * 3600
    nearest = apart.argmin()
    assert apart[nearest] < 1.5
    assert stars.v_mag[nearest] == pytest.approx(v, abs=0.2)
    assert stars.b_v[nearest] == pytest.approx(b_v, abs=0.45)


@pytest.fixture(scope="module")
def moving_rows(listed):
    rng = np.random.default_rng(3)
    rows = np.column_stack(
        [
            rng.normal(0, 500, (len(listed[0]), 2)),
            rng.uniform(-1.5, 14, len(listed[0])),
            rng.uniform(-0.4, 3, len(listed[0])),
        ]
    )
    rows[rng.uniform(size=len(rows)) < 0.4] = np.nan
    return rows


def test_motions_and_colours_come_back(listed, moving_rows, tmp_path):
    path = tmp_path / "moving.stars"
    path.write_bytes(encode_catalogue(*listed, {}, moving_rows))
    catalogue = StarCatalogue(path)
    near, later = catalogue.sky_near(10, 20, 5), catalogue.sky_near(10, 20, 5, 2040.0)
    plain = np.flatnonzero(separation_deg(*listed[:2], 10, 20) < 4.9)
    assert len(plain) > 20
    for row in plain:
        apart = separation_deg(near[0], near[1], listed[0][row], listed[1][row]) * 3600
        i = apart.argmin()
        assert apart[i] < ROUNDING_ARCSEC
        pm_ra, pm_dec, v, b_v = moving_rows[row]
        moved_by = (
            (later[0][i] - near[0][i]) * np.cos(np.deg2rad(near[1][i])) * 3600e3 / 40,
            (later[1][i] - near[1][i]) * 3600e3 / 40,
        )
        if np.isnan(pm_ra):
            assert np.isnan(near[3][i])
            assert near[2][i] == pytest.approx(listed[2][row], abs=0.036)
            np.testing.assert_allclose(moved_by, 0.0, atol=1e-3)
        else:
            assert near[2][i] == pytest.approx(v, abs=0.026)
            assert near[3][i] == pytest.approx(b_v, abs=0.017)
            np.testing.assert_allclose(moved_by, (pm_ra, pm_dec), atol=0.6)


def test_order_does_not_matter_with_motions_either(listed, moving_rows):
    shuffle = np.random.default_rng(4).permutation(len(moving_rows))
    mixed = encode_catalogue(*(c[shuffle] for c in listed), {}, moving_rows[shuffle])
    assert encode_catalogue(*listed, {}, moving_rows) == mixed


def test_stars_without_a_motion_drift_with_their_neighbours():
    """Medians of the faint stars that have one; the drift of the rest is fitted to the whole sky."""
    catalogue = open_built_in_catalogue()
    rng = np.random.default_rng(5)
    own, neighbours = [], []
    for ra, dec in zip(rng.uniform(0, 360, 24), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 24))), strict=True):
        now, later = (catalogue.sky_near(ra, dec, 6.0, epoch) for epoch in (2000.0, 2025.0))
        shift = [((later[0] - now[0] + 180) % 360 - 180) * np.cos(np.deg2rad(now[1])), later[1] - now[1]]
        shift = 3600.0 * np.array(shift)
        own.append(np.median(shift[:, np.isnan(now[3]) & (now[2] > 10.5)], axis=1))
        neighbours.append(np.median(shift[:, ~np.isnan(now[3]) & (now[2] > 9.5)], axis=1))
    own, neighbours = np.array(own), np.array(neighbours)
    assert np.sqrt(np.mean(neighbours**2)) > 0.14
    assert np.sqrt(np.mean((own - neighbours) ** 2)) < 0.06


@pytest.mark.skipif(
    not (DEBIAN_INDEX.is_file() and DEBIAN_STARS.is_dir()),
    reason="astrometry-data-tycho2-07 and stellarium-data are not both installed",
)
def test_tool_builds_the_same_file(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "build_star_catalogue", ROOT / "tools" / "build_star_catalogue.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(DEBIAN_INDEX), str(DEBIAN_STARS), str(tmp_path / "new.stars")]) == 0
    assert (tmp_path / "new.stars").read_bytes() == BUILT_IN_CATALOGUE.read_bytes()
