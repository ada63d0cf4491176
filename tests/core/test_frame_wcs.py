"""A WCS made of the same cards again is a copy, and belongs to who asked for it; cards are small and never change."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.wcs_cards import WcsCards

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


def cards_of_a_frame(kinds, rng):
    """Cards of a frame somewhere in the sky, with the matrices named."""
    scale, turn = 7e-4, rng.uniform(0, 2 * np.pi)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = {"CRVAL1": rng.uniform(0, 360), "CRVAL2": rng.uniform(-90, 90), "CRPIX1": rng.normal(540, 30)}
    cards = {**CARDS, **middle, "RADESYS": "ICRS"}
    cards |= {"A_2_0": rng.normal() * 1e-7, "B_0_2": rng.normal() * 1e-7} if "sip" in kinds else {}
    for i, j in np.ndindex(2, 2):
        del cards[f"CD{i + 1}_{j + 1}"]
        cards |= {f"CD{i + 1}_{j + 1}": scale * matrix[i, j]} if "cd" in kinds else {}
        cards |= {f"PC{i + 1}_{j + 1}": matrix[i, j]} if "pc" in kinds else {}
    if "sip" not in kinds:
        cards = {name: value for name, value in cards.items() if name[:2] not in ("A_", "B_")}
        cards |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    cards |= {"CDELT1": -scale, "CDELT2": scale * rng.uniform(0.9, 1.1)} if "steps" in kinds else {}
    cards |= {"CROTA1": 57 * turn, "CROTA2": 57 * turn} if "turn" in kinds else {}
    return {name: float(v) if isinstance(v, np.floating) else v for name, v in cards.items()}


@pytest.mark.parametrize(
    "kinds",
    ["cd", "cd sip", "pc steps", "pc steps sip", "steps turn", "steps", "cd steps turn", "cd pc steps"],
)
def test_it_is_the_same_bit_by_bit_however_many_frames_were_asked_for(kinds):
    rng = np.random.default_rng(5)
    frames = [WcsCards(cards_of_a_frame(kinds.split(), rng)) for _ in range(20)]
    for cards in [*frames, *frames]:
        ours, plain = wcs_of(cards), WCS(dict(cards)).deepcopy()
        for a, b in (
            (ours.all_pix2world(PIXELS, 0), plain.all_pix2world(PIXELS, 0)),
            (
                ours.wcs_world2pix([[cards["CRVAL1"], 40.0]], 0),
                plain.wcs_world2pix([[cards["CRVAL1"], 40.0]], 0),
            ),
            (ours.pixel_scale_matrix, plain.pixel_scale_matrix),
        ):
            np.testing.assert_array_equal(a, b)
        assert repr(ours.to_header(relax=True)) == repr(plain.to_header(relax=True))
        assert ours.wcs.compare(plain.wcs)
        assert (ours.sip is None) == (plain.sip is None)


def test_cards_are_those_they_were_made_of():
    cards = WcsCards(CARDS)
    assert cards == CARDS
    assert dict(cards) == CARDS
    assert list(cards) == list(CARDS)
    assert pickle.loads(pickle.dumps(cards)) == cards
    assert deepcopy(cards) is cards
    assert WcsCards.of(cards) is cards
    assert cards.get("PV1_1") is None
    assert hash(WcsCards(dict(reversed(CARDS.items())))) == hash(cards)
    assert WcsCards({**CARDS, "CRVAL1": 12.0}) != cards
