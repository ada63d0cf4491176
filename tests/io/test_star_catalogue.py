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


def test_built_in_catalogue_is_tycho_2():
    catalogue = open_built_in_catalogue()
    assert len(catalogue) == 1_871_011
    assert BUILT_IN_CATALOGUE.stat().st_size < 12e6
    assert catalogue.origin["reference"] == "Hog E. et al. 2000, A&A 355, L27"
    assert catalogue.origin["epoch"] == "J2000.0"
    assert (BUILT_IN_CATALOGUE.parent / "LICENSE-Tycho2.txt").is_file()


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


@pytest.mark.skipif(not DEBIAN_INDEX.is_file(), reason="astrometry-data-tycho2-07 is not installed")
def test_tool_builds_the_same_file(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "build_star_catalogue", ROOT / "tools" / "build_star_catalogue.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(DEBIAN_INDEX), str(tmp_path / "new.stars")]) == 0
    assert (tmp_path / "new.stars").read_bytes() == BUILT_IN_CATALOGUE.read_bytes()
