"""Derive the built-in star catalogue from the Tycho-2 index of the Debian package astrometry-data-tycho2-07.

    python tools/build_star_catalogue.py [INDEX.fits] [OUTPUT.stars]

The index holds unit vectors (32-bit integers) and VT magnitudes of 1 871 011 stars: Tycho-2 thinned to the
brightest of each cell of 22.6 arcmin. It holds no proper motions and no colours. Positions are of epoch J2000.0
(Barnard's star stands where it was in 2000), except stars of Supplement 1, which stand at J1991.25 (Arcturus, 20
arcsec from its place in 2000); a few of the very brightest, Sirius and Vega among them, are missing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zemosaic_io.star_catalogue import BUILT_IN_CATALOGUE, encode_catalogue

DEFAULT_INDEX = Path("/usr/share/astrometry/index-tycho2-07.littleendian.fits")

ORIGIN = {
    "catalogue": "Tycho-2",
    "reference": "Hog E. et al. 2000, A&A 355, L27",
    "source": "Debian package astrometry-data-tycho2-07, index-tycho2-07 (star positions and MAG_VT only)",
    "frame": "ICRS",
    "epoch": "J2000.0",
    "epoch_of_supplement_1": "J1991.25",
    "proper_motion": "none in the source",
    "magnitude": "VT",
    "licence": "BSD-2-Clause, see LICENSE-Tycho2.txt",
}


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


def main(arguments: list[str]) -> int:
    """Build the file; returns the exit code."""
    index = Path(arguments[0]) if arguments else DEFAULT_INDEX
    output = Path(arguments[1]) if len(arguments) > 1 else BUILT_IN_CATALOGUE
    ra, dec, mag = read_index(index)
    data = encode_catalogue(ra, dec, mag, {**ORIGIN, "stars": len(ra)})
    part = output.with_name(output.name + ".part")
    part.write_bytes(data)
    os.replace(part, output)
    print(f"{output}: {len(ra)} stars, VT {mag.min():.2f} to {mag.max():.2f}, {len(data) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
