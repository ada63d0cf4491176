"""A WCS made of the same cards again is a copy, and belongs to who asked for it."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.frame_wcs import wcs_of

CARDS = {
    "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": 11.0, "CRVAL2": 41.0, "CRPIX1": 540.5,
    "CRPIX2": 960.5,
    "CD1_1": -6e-4, "CD1_2": 1e-4, "CD2_1": -1e-4, "CD2_2": -6e-4, "WCSAXES": 2, "A_ORDER": 2, "A_2_0": 1e-6,
    "B_ORDER": 2, "B_0_2": 2e-6,
}  # fmt: skip
PIXELS = np.array([[0.0, 0.0], [1079.0, 3.0], [500.0, 1919.0]])


def test_it_is_what_astropy_makes_of_the_cards():
    for _ in range(2):
        ours = wcs_of(CARDS)
        np.testing.assert_array_equal(ours.all_pix2world(PIXELS, 0), WCS(CARDS).all_pix2world(PIXELS, 0))
        assert ours.sip is not None


def test_who_changes_it_changes_nobody_elses():
    changed = wcs_of(CARDS)
    changed.wcs.crpix += 100
    changed.wcs.set()
    np.testing.assert_array_equal(wcs_of(CARDS).wcs.crpix, [540.5, 960.5])


def test_other_cards_make_another_one():
    moved = wcs_of({**CARDS, "CRVAL1": 12.0})
    np.testing.assert_array_equal(moved.wcs.crval, [12.0, 41.0])
