"""Build the list of named objects that comes with the program from OpenNGC and the star names of Stellarium.

    python tools/build_sky_objects.py ONGC.db STELLARIUM [OUTPUT.tsv]

`ONGC.db` is the database in the package PyOngc (1.2.2: `pyongc/ongc.db`), 14 033 objects of the New General and Index
catalogues and some others. Left out are duplicates, what was never found again, single and double stars without a
Messier number, and the parts of pairs that have an entry of their own. `STELLARIUM` is `/usr/share/stellarium` of the
Debian package `stellarium-data` (0.22.2): Bayer and Flamsteed names by Hipparcos number, the names that the IAU
adopted, and the places, motions and magnitudes of these stars.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.build_star_catalogue import read_moving_stars
from zemosaic_io.atomic import atomic_path
from zemosaic_io.sky_objects import BUILT_IN_OBJECTS, COLUMNS

KINDS = {
    "*Ass": "asterism",
    "**": "double_star",
    "OCl": "open_cluster",
    "GCl": "globular_cluster",
    "Cl+N": "cluster_nebula",
    "G": "galaxy",
    "GPair": "galaxies",
    "GTrpl": "galaxies",
    "GGroup": "galaxies",
    "PN": "planetary_nebula",
    "HII": "nebula",
    "EmN": "nebula",
    "Neb": "nebula",
    "RfN": "nebula",
    "DrkN": "dark_nebula",
    "SNR": "supernova_remnant",
    "Other": "asterism",
}
# Kept only with a Messier number: stars that somebody once took for a nebula.
ONLY_MESSIER = {"**", "Other"}
PREFIXES = {"Cl": "Cr", "MWSC": "MWSC", "HCG": "HCG", "ESO": "ESO", "PGC": "PGC", "UGC": "UGC", "Mel": "Mel"}
# The list is alphabetical; these come first by use. The name of NGC 2024 stands at its neighbour.
TITLES = {
    "IC0434": "",
    "NGC0650": "Little Dumbbell Nebula",
    "NGC1976": "Orion Nebula",
    "NGC2024": "Flame Nebula",
    "NGC6618": "Omega Nebula",
    "NGC6705": "Wild Duck Cluster",
}
GREEK = {"chi": "χ", "eta": "η", "gam": "γ", "lam": "λ", "omi": "ο", "rho": "ρ", "tet": "θ"}
OF_THE_IAU = {"6", "12", "36"}


def main(arguments: list[str]) -> int:
    """Build the file; returns the exit code."""
    database, stellarium = Path(arguments[0]), Path(arguments[1])
    output = Path(arguments[2]) if len(arguments) > 2 else BUILT_IN_OBJECTS
    objects, stars = deep_sky(database), named_stars(stellarium)
    lines = ["\t".join(COLUMNS), *("\t".join(row) for row in (*objects, *stars))]
    with atomic_path(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"{output}: {len(objects)} objects, {len(stars)} stars, {output.stat().st_size / 1e6:.2f} MB")
    return 0


def deep_sky(database: Path) -> list[tuple[str, ...]]:
    """Return the rows of nebulae, clusters and galaxies, by right ascension."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as base:
        found = base.execute(
            "select name, type, messier, commonnames, identifiers, ra, dec, majax, minax, pa, vmag, bmag from objects"
        ).fetchall()
    rows: list[tuple[str, ...]] = []
    for name, kind, messier, titles, others, ra, dec, major, minor, angle, v_mag, b_mag in found:
        if kind not in KINDS or " NED" in name or (kind in ONLY_MESSIER and not messier):
            continue
        title = TITLES.get(name, _title(titles))
        names = [f"M {int(messier)}"] if messier else []
        caldwell = re.search(r"\bC (\d{3})\b", others or "")
        names += [label(name)] if not name.startswith("M0") else []
        names += [f"C {int(caldwell[1])}"] if caldwell else []
        names += [f"Sh2-{m[1]}" for m in re.finditer(r"\bSH 2-(\d+)", others or "")]
        mag = v_mag if v_mag is not None else b_mag
        sizes = (_number(major, 2), _number(minor if minor is not None else major, 2), _number(angle, 0))
        place = (f"{np.rad2deg(ra) % 360.0:.5f}", f"{np.rad2deg(dec):.5f}")
        rows.append(
            (KINDS[kind], names[0], ", ".join(names[1:]), title, *place, *sizes, _number(mag, 2), "", "")
        )
    return sorted(rows, key=lambda row: (float(row[4]), float(row[5]), row[1]))


def label(name: str) -> str:
    """Return a name of the database as it is written: ``NGC0040`` is NGC 40."""
    parts = re.fullmatch(r"([A-Za-z]+)0*(\d+)(.*)", name)
    if parts is None:
        raise ValueError(f"{name!r} is no designation with a number")
    prefix, number, rest = parts.groups()
    return f"{PREFIXES.get(prefix, prefix)} {number}{re.sub('-0*', '-', rest)}"


def _title(titles: str) -> str:
    first = (titles or "").split(",")[0].strip().removeprefix("the ")
    head, _, rest = first.partition(" ")
    return f"{GREEK.get(head, head)} {rest}".strip()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def named_stars(stellarium: Path) -> list[tuple[str, ...]]:
    """Return the rows of stars with a Bayer or Flamsteed name or one of the IAU, brightest first."""
    folder = stellarium / "stars" / "default"
    stars = read_moving_stars(folder)
    row_of = {int(hip): row for row, hip in enumerate(stars.hip) if hip}
    names: dict[int, list[str]] = {}
    for line in (folder / "name.fab").read_text(encoding="utf-8").splitlines():
        hip, _, name = line.partition("|")
        if name.strip():
            names.setdefault(int(hip), []).append(name.strip().replace("_", " "))
    titles: dict[int, str] = {}
    western = stellarium / "skycultures" / "western" / "star_names.fab"
    for line in western.read_text(encoding="utf-8").splitlines():
        found = re.match(r'\s*(\d+)\|_\("([^"]+)"\)\s*([\d,]*)', line)
        if found and OF_THE_IAU & set(found[3].split(",")):
            titles.setdefault(int(found[1]), found[2])
    rows: list[tuple[str, ...]] = []
    for star in sorted({*names, *titles} & set(row_of), key=lambda hip: (stars.v[row_of[hip]], hip)):
        k = row_of[star]
        # Greek letters before numbers, as in the source, without the second of two components.
        called = names.get(star, [])
        title = titles.get(star, "")
        first, *rest = [*called[:1], *(n for n in called[1:] if n[0].isdigit())] or [title]
        moving = (f"{stars.pm_ra[k]:.0f}", f"{stars.pm_dec[k]:.0f}")
        place = (f"{stars.ra[k]:.5f}", f"{stars.dec[k]:.5f}")
        title = "" if title == first else title
        rows.append(("star", first, ", ".join(rest), title, *place, "", "", "", f"{stars.v[k]:.2f}", *moving))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
