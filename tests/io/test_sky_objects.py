"""The list of named objects that comes with the program."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from zemosaic_core.errors import RunFailed
from zemosaic_core.sphere import separation_deg
from zemosaic_io.sky_objects import BUILT_IN_OBJECTS, built_in_objects, read_objects
from zemosaic_io.star_catalogue import open_built_in_catalogue

ROOT = Path(__file__).resolve().parents[2]

# From the catalogues of Messier objects and of bright stars in any handbook: degrees at J2000.0.
KNOWN = {
    "M 31": (10.685, 41.269, "Andromeda Galaxy", 178.0),
    "M 42": (83.82, -5.39, "Orion Nebula", 90.0),
    "M 45": (56.87, 24.11, "Pleiades", 150.0),
    "M 94": (192.721, 41.120, "", 7.7),
    "NGC 7000": (314.82, 44.53, "North America Nebula", 120.0),
    "B 33": (85.246, -2.458, "Horsehead Nebula", 6.0),
    "α Lyr": (279.2347, 38.7837, "Vega", None),
    "α UMi": (37.9546, 89.2641, "Polaris", None),
}


@pytest.mark.parametrize(("name", "known"), KNOWN.items())
def test_well_known_objects(name, known):
    ra, dec, title, size = known
    (found,) = [o for o in built_in_objects() if o.name == name]
    assert float(separation_deg(found.ra_deg, found.dec_deg, ra, dec)) < 0.012
    assert found.title == title
    assert size is None or found.major_arcmin == pytest.approx(size, rel=0.02)


def test_each_messier_number_but_one_is_there_once():
    named = [o.name for o in built_in_objects() if o.name.startswith("M ") and o.kind != "star"]
    numbers = sorted(int(name[2:]) for name in named)
    # M 102 is M 101 seen twice.
    assert numbers == [n for n in range(1, 111) if n != 102]


def test_named_stars_stand_on_stars_of_the_catalogue():
    stars = [o for o in built_in_objects() if o.kind == "star" and o.mag < 5.0][::40]
    assert len(stars) > 20
    for star in stars:
        near = open_built_in_catalogue().near(star.ra_deg, star.dec_deg, 0.05)
        off = separation_deg(near.ra_deg, near.dec_deg, star.ra_deg, star.dec_deg) * 3600.0
        assert off.min() < 4.0, star.name


def test_rows_are_possible():
    for o in built_in_objects():
        assert 0.0 <= o.ra_deg < 360.0, o.name
        assert -90.0 <= o.dec_deg <= 90.0, o.name
        assert o.name
        assert o.kind
        assert not o.minor_arcmin > o.major_arcmin, o.name
        assert np.isnan(o.angle_deg) or 0.0 <= o.angle_deg <= 180.0, o.name


@pytest.mark.parametrize("damage", ["", "wrong\thead\n", "row"])
def test_a_damaged_list_is_named(tmp_path, damage):
    path = tmp_path / "objects.tsv"
    if damage == "row":
        head = BUILT_IN_OBJECTS.read_text(encoding="utf-8").splitlines()[0]
        damage = f"{head}\ngalaxy\tM 1\n"
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(RunFailed) as failed:
        read_objects(path)
    assert failed.value.key == "objects_unreadable"
    assert str(path) in str(failed.value)


def test_the_wheel_carries_the_list_and_its_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "CC-BY-SA-4.0" in project["project"]["license"]
    assert "zemosaic_io/data/LICENSE-*.txt" in project["project"]["license-files"]
    assert project["tool"]["setuptools"]["package-data"]["zemosaic_io"] == ["data/*"]
    licence = (BUILT_IN_OBJECTS.parent / "LICENSE-OpenNGC.txt").read_text(encoding="utf-8")
    assert "Attribution-ShareAlike 4.0 International" in licence
    assert "Mattia Verga" in licence
