"""Build the star catalogue that comes with the program from two Debian packages.

    python tools/build_star_catalogue.py [INDEX.fits [STELLARIUM_STARS [OUTPUT.stars]]]

`astrometry-data-tycho2-07` holds unit vectors (32-bit integers) and VT magnitudes of 1 871 011 stars: Tycho-2
thinned to the brightest of each cell of 22.6 arcmin, without motions and colours. Positions are of epoch J2000.0
(Barnard's star stands where it was in 2000), except stars of Supplement 1, which stand at J1991.25 (Arcturus, 20
arcsec from its place in 2000); a few of the very brightest, Sirius and Vega among them, are missing.

`stellarium-data` (0.22.2) holds 603 418 stars to V 10.5 with V, B-V and proper motions, made from Hipparcos, Tycho-2
and NOMAD. Where both list a star, the place is that of the first and the rest that of the second; those of
Supplement 1 are put to J2000.0, and stars that only the second lists are added. For the fainter stars without
motion, the mean motion of the faintest ones with motion is fitted over the sky.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zemosaic_core.proper_motion import fit_drift, moved
from zemosaic_core.sphere import ra_dec, unit_vectors
from zemosaic_io.star_catalogue import BUILT_IN_CATALOGUE, encode_catalogue

DEFAULT_INDEX = Path("/usr/share/astrometry/index-tycho2-07.littleendian.fits")
DEFAULT_STELLARIUM = Path("/usr/share/stellarium/stars/default")
HIPPARCOS_MOTIONS = "hip_pm.dat"
LEVELS = ("stars_0_0v0_8.cat", "stars_1_0v0_8.cat", "stars_2_0v0_8.cat", "stars_3_1v0_4.cat")

ORIGIN = {
    "catalogue": "Tycho-2, Hipparcos, NOMAD",
    "reference": "Hog E. et al. 2000, A&A 355, L27",
    "source": "Debian packages astrometry-data-tycho2-07 (positions, MAG_VT), stellarium-data 0.22.2 (the rest)",
    "frame": "ICRS",
    "epoch": "J2000.0",
    "magnitude": "VT",
    "licence": "BSD-2-Clause, see LICENSE-Tycho2.txt; GPL-2.0-or-later, see LICENSE-Stellarium.txt",
}

# Both packages took their places from the same catalogues; farther apart it is another star, or one that moved.
SAME_STAR_ARCSEC = 1.5
# Nearer than this a second entry is the companion of a star already listed, which no small telescope tells apart.
COMPANION_ARCSEC = 4.0
SUPPLEMENT_EPOCH = 1991.25
# VT of a star of Johnson V and B-V (Tycho-2, guide to the catalogue).
VT_PER_B_V = 0.09
# Stars whose mean motion stands for that of fainter ones, cells in which it is taken, and how it shrinks: medians
# over 10 degree cells are 7.85, 7.10 and 6.61 mas/yr rms per axis at V 9.1, 9.8 and 10.3.
DRIFT_V, DRIFT_CELL_DEG, DRIFT_MIN_STARS, DRIFT_PER_MAG = 9.5, 10.0, 50, 0.876


@dataclass(frozen=True)
class MovingStars:
    """Stars of `stellarium-data`: degrees at J2000.0, mas/yr, magnitudes, Hipparcos numbers (0: none); (n,) each."""

    ra: np.ndarray
    dec: np.ndarray
    pm_ra: np.ndarray
    pm_dec: np.ndarray
    v: np.ndarray
    b_v: np.ndarray
    hip: np.ndarray


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read RA, Dec (degrees) and magnitude of all stars of an astrometry.net index.

    The kd-tree stores each coordinate of the unit vector as ``(value - low) * scale`` in 32 bits; its range
    table holds the three lows, the three highs and the scale.
    """
    with fits.open(path, memmap=True) as hdus:
        tables = {hdu.columns.names[0]: hdu for hdu in hdus[1:]}
        span = np.frombuffer(tables["kdtree_range_stars"].data.tobytes(), dtype="<f8")
        codes = np.frombuffer(tables["kdtree_data_stars"].data.tobytes(), dtype="<u4").reshape(-1, 3)
        mag = np.array(tables["MAG_VT"].data["MAG_VT"], dtype=np.float64)
    xyz = codes / span[6] + span[:3]
    ra = np.rad2deg(np.arctan2(xyz[:, 1], xyz[:, 0])) % 360.0
    dec = np.rad2deg(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    return ra, dec, mag


def read_moving_stars(folder: Path) -> MovingStars:
    """Read the levels of a Stellarium star folder."""
    listed = np.loadtxt(folder / HIPPARCOS_MOTIONS, comments="#", usecols=(0, 1, 2))
    motions = np.full((2**24, 2), np.nan)
    motions[listed[:, 0].astype(np.int64)] = listed[:, 1:]
    parts = [_read_level(folder / name, motions) for name in LEVELS]
    return MovingStars(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _read_level(path: Path, motions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Decode one file: triangles of an icosahedron cut `level` times, places relative to each one's centre.

    `motions` are those of Hipparcos by number, (2^24, 2) mas/yr, NaN where there is no such star.
    """
    data = path.read_bytes()
    kind, level, mag_min, mag_range, mag_steps = struct.unpack_from("<4xI8xIiII", data)
    n_zones = 20 * 4**level
    counts = np.frombuffer(data, "<u4", n_zones, 32)
    rows = np.frombuffer(data, "u1", offset=32 + 4 * n_zones)
    n = int(counts.sum())
    if kind == 0:
        fields = np.dtype(
            {
                "names": ["hip", "x", "y", "b_v", "mag", "dx", "dy"],
                "formats": ["<u4", "<i4", "<i4", "u1", "u1", "<i4", "<i4"],
                "offsets": [0, 4, 8, 12, 13, 16, 20],
                "itemsize": 28,
            }
        )
        star = rows[: 28 * n].view(fields)
        x, y, dx, dy, b_v, mag = (star[k].astype(np.int64) for k in ("x", "y", "dx", "dy", "b_v", "mag"))
        hip = (star["hip"] & 0xFFFFFF).astype(np.int64)
        full_scale = 2**31 - 1
    else:
        words = np.zeros((n, 16), np.uint8)
        words[:, :10] = rows[: 10 * n].reshape(n, 10)
        low, high = words.view("<u8").astype(np.uint64).T
        x, y = _bits(low, 0, 20), _bits(low, 20, 20)
        dx = _bits(low, 40, 14)
        dy = _signed(((low >> np.uint64(54)) | (high << np.uint64(10))) & np.uint64(0x3FFF), 14)
        b_v = ((high >> np.uint64(4)) & np.uint64(0x7F)).astype(np.int64)
        mag = ((high >> np.uint64(11)) & np.uint64(0x1F)).astype(np.int64)
        full_scale = 2**19 - 1
        hip = np.zeros(n, np.int64)
    centre, axis_x, axis_y, reach = _zones(level)
    zone = np.repeat(np.arange(n_zones), counts)
    centre, axis_x, axis_y = centre[zone], axis_x[zone], axis_y[zone]
    unit = reach / full_scale
    x, y = unit * x, unit * y
    place = centre + x[:, None] * axis_x + y[:, None] * axis_y
    ra, dec = ra_dec(place / np.linalg.norm(place, axis=1)[:, None])
    # Tenths of mas/yr along parallel and meridian of the star (found by comparing with Hipparcos), stretched as on the
    # plane that touches the sphere at the zone's centre: by 1/cos^2 away from the centre, by 1/cos across.
    cos2 = 1.0 / (1.0 + x * x + y * y)
    reach2 = np.maximum(x * x + y * y, 1e-30)
    outward = cos2 * (dx * x + dy * y) / reach2
    across = np.sqrt(cos2) * (dy * x - dx * y) / reach2
    pm_ra, pm_dec = 0.1 * (outward * x - across * y), 0.1 * (outward * y + across * x)
    known = motions[hip]
    better = np.isfinite(known[:, 0])
    pm_ra, pm_dec = np.where(better, known[:, 0], pm_ra), np.where(better, known[:, 1], pm_dec)
    return (
        ra,
        dec,
        pm_ra,
        pm_dec,
        (mag_min + mag * (mag_range / mag_steps)) / 1000.0,
        b_v * (4.0 / 127.0) - 0.5,
        hip,
    )


def _bits(word: np.ndarray, first: int, count: int) -> np.ndarray:
    return _signed((word >> np.uint64(first)) & np.uint64(2**count - 1), count)


def _signed(value: np.ndarray, count: int) -> np.ndarray:
    value = value.astype(np.int64)
    return np.where(value >= 2 ** (count - 1), value - 2**count, value)


def _zones(level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Centres and axes (east, north) of the triangles, and the largest coordinate of a corner."""
    b = 1.0 / math.sqrt(1.0 + ((1.0 + math.sqrt(5.0)) / 2.0) ** 2)
    a = b * (1.0 + math.sqrt(5.0)) / 2.0
    corner = np.array(
        [
            *((a, -b, 0), (a, b, 0), (-a, b, 0), (-a, -b, 0), (0, a, -b), (0, a, b)),
            *((0, -a, b), (0, -a, -b), (-b, 0, a), (b, 0, a), (b, 0, -a), (-b, 0, -a)),
        ]
    )
    order = [(1, 0, 10), (0, 1, 9), (0, 9, 6), (9, 8, 6), (0, 7, 10), (6, 7, 0), (7, 6, 3), (6, 8, 3)]
    order += [(11, 10, 7), (7, 3, 11), (3, 2, 11), (2, 3, 8), (10, 11, 4), (2, 4, 11), (5, 4, 2), (2, 8, 5)]
    order += [(4, 1, 10), (4, 5, 1), (5, 9, 1), (8, 9, 5)]
    triangles = corner[np.array(order)]
    for _ in range(level):
        c0, c1, c2 = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        e0, e1, e2 = (_unit(p + q) for p, q in ((c1, c2), (c2, c0), (c0, c1)))
        parts = [(c0, e2, e1), (e2, c1, e0), (e1, e0, c2), (e0, e1, e2)]
        triangles = np.stack([np.stack(part, axis=1) for part in parts], axis=1).reshape(-1, 3, 3)
    centre = _unit(triangles.sum(axis=1))
    axis_x = _unit(np.cross([0.0, 0.0, 1.0], centre))
    axis_y = np.cross(centre, axis_x)
    offset = triangles - centre[:, None]
    x, y = (offset * axis_x[:, None]).sum(axis=2), (offset * axis_y[:, None]).sum(axis=2)
    stretch = 1.0 / np.sqrt(1.0 - x * x - y * y)
    return centre, axis_x, axis_y, float(max(np.abs(x * stretch).max(), np.abs(y * stretch).max()))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def join(
    ra: np.ndarray, dec: np.ndarray, mag: np.ndarray, moving: MovingStars
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give the stars of Tycho-2 the motions and colours of the others; returns RA, Dec, VT and (n, 4) motions."""
    tree = cKDTree(unit_vectors(ra, dec))
    motions = np.full((len(ra), 4), np.nan)
    further = np.column_stack([moving.pm_ra, moving.pm_dec, moving.v, moving.b_v])
    ra, dec = ra.copy(), dec.copy()
    open_rows = np.arange(len(moving.ra))
    years = SUPPLEMENT_EPOCH - 2000.0
    for epoch, limit in ((0.0, SAME_STAR_ARCSEC), (years, SAME_STAR_ARCSEC), (0.0, COMPANION_ARCSEC)):
        place = moved(*(c[open_rows] for c in (moving.ra, moving.dec, moving.pm_ra, moving.pm_dec)), epoch)
        chord, row = tree.query(unit_vectors(*place))
        near = np.rad2deg(chord) * 3600.0 < limit
        # The nearest first, the brightest of equals: each star of the index gets one set of data.
        found = np.flatnonzero(near)[np.lexsort((moving.v[open_rows[near]], chord[near]))]
        _, first = np.unique(row[found], return_index=True)
        took, rows = found[first], row[found[first]]
        free = np.isnan(motions[rows, 0])
        motions[rows[free]] = further[open_rows[took[free]]]
        if epoch:
            ra[rows[free]], dec[rows[free]] = (
                moving.ra[open_rows[took[free]]],
                moving.dec[open_rows[took[free]]],
            )
        open_rows = open_rows[~near]
    added = further[open_rows]
    return (
        np.concatenate([ra, moving.ra[open_rows]]),
        np.concatenate([dec, moving.dec[open_rows]]),
        np.concatenate([mag, added[:, 2] + VT_PER_B_V * added[:, 3]]),
        np.vstack([motions, added]),
    )


def drift_of(moving: MovingStars) -> dict[str, object]:
    """Fit the drift of the faintest stars with known motion from their medians in cells of equal size."""
    faint = np.flatnonzero(moving.v >= DRIFT_V)
    band = ((moving.dec[faint] + 90.0) // DRIFT_CELL_DEG).astype(np.int64)
    middle = (band + 0.5) * DRIFT_CELL_DEG - 90.0
    per_band = np.maximum(np.round(360.0 / DRIFT_CELL_DEG * np.cos(np.deg2rad(middle))), 1.0)
    cell = 1000 * band + (moving.ra[faint] / 360.0 * per_band).astype(np.int64)
    places = []
    for members in (faint[cell == k] for k in np.unique(cell)):
        if len(members) >= DRIFT_MIN_STARS:
            direction = unit_vectors(moving.ra[members], moving.dec[members]).mean(axis=0)
            place = ra_dec(direction / np.linalg.norm(direction))
            places.append([*place, np.median(moving.pm_ra[members]), np.median(moving.pm_dec[members])])
    terms = fit_drift(*np.array(places, dtype=np.float64).T)
    mag = moving.v[faint] + VT_PER_B_V * moving.b_v[faint]
    return {
        "terms": [round(float(term), 3) for term in terms],
        "mag": round(float(mag.mean()), 2),
        "per_mag": DRIFT_PER_MAG,
    }


def main(arguments: list[str]) -> int:
    """Build the file; returns the exit code."""
    index, stellarium, output = (
        Path(given) if given else default
        for given, default in zip(
            [*arguments, None, None, None],
            (DEFAULT_INDEX, DEFAULT_STELLARIUM, BUILT_IN_CATALOGUE),
            strict=False,
        )
    )
    moving = read_moving_stars(stellarium)
    ra, dec, mag, motions = join(*read_index(index), moving)
    known = int(np.isfinite(motions[:, 0]).sum())
    origin = {**ORIGIN, "stars": len(ra), "moving_stars": known, "drift": drift_of(moving)}
    data = encode_catalogue(ra, dec, mag, origin, motions)
    part = output.with_name(output.name + ".part")
    part.write_bytes(data)
    os.replace(part, output)
    print(
        f"{output}: {len(ra)} stars, {known} with motion, "
        f"VT {mag.min():.2f} to {mag.max():.2f}, {len(data) / 1e6:.2f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
