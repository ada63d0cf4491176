"""Write a small star database that ASTAP reads, for tests.

Layout (described in the comments of ASTAP's own sources): the sky is cut into 36 declination rings of about
5.14 degrees, 1476 areas in all, one file each. A file has a header of 110 bytes whose last byte is the record
size 5. Records are sorted from bright to faint; a group record ``FF FF FF, dec high + 128, magnitude * 10 + 16``
precedes the stars that share both; a star is RA as 24 bits (2**24 - 1 = 360 degrees) and the two low bytes of
the signed 24-bit declination (2**23 - 1 = 90 degrees).
"""

from __future__ import annotations

import numpy as np

_HALF = (1, 3, 9, 15, 21, 27, 33, 38, 43, 48, 52, 56, 60, 63, 65, 67, 68, 69)
AREAS_PER_RING = (*_HALF, *reversed(_HALF))
_RING_DEG = 180.0 / 35.0


def area_of(ra, dec):
    """Ring (0 = south) and area of each position."""
    # The polar caps are half as high as the other rings.
    ring = np.clip(np.floor((dec + 90.0 + _RING_DEG / 2) / _RING_DEG).astype(int), 0, 35)
    cells = np.array(AREAS_PER_RING)[ring]
    return ring, np.floor((ra % 360.0) / 360.0 * cells).astype(int)


def encode_area(ra, dec, mag):
    """Records of one area."""
    ra24 = np.rint((ra % 360.0) / 360.0 * (2**24 - 1)).astype(np.int64)
    dec24 = np.rint(dec / 90.0 * (2**23 - 1)).astype(np.int64)
    mag10 = np.rint(mag * 10).astype(np.int64)
    dec_high = dec24 >> 16
    out, group = bytearray(), None
    for i in np.lexsort((dec_high, mag10)):
        if group != (mag10[i], dec_high[i]):
            group = (mag10[i], dec_high[i])
            out += bytes((255, 255, 255, int(dec_high[i]) + 128, int(mag10[i]) + 16))
        out += int(ra24[i]).to_bytes(3, "little") + bytes((int(dec24[i]) & 255, (int(dec24[i]) >> 8) & 255))
    return bytes(out)


def write_database(folder, ra, dec, mag, name="h18"):
    """Write all 1476 files; areas without stars have a header only."""
    folder.mkdir(parents=True)
    ra, dec, mag = (np.asarray(v, float) for v in (ra, dec, mag))
    ring, cell = area_of(ra, dec)
    header = b"stars of a test".ljust(109) + bytes((5,))
    for r, count in enumerate(AREAS_PER_RING):
        for c in range(count):
            inside = (ring == r) & (cell == c)
            body = encode_area(ra[inside], dec[inside], mag[inside]) if inside.any() else b""
            (folder / f"{name}_{r + 1:02d}{c + 1:02d}.1476").write_bytes(header + body)
