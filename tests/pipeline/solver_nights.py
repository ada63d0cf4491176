"""Nights for solvers: the stars of frames are real, pixels there are none."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_io.headers import read_frame_info
from zemosaic_io.sealed_arrays import save_sealed
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_pipeline.measure import STAR_COLUMNS
from zemosaic_pipeline.records import Frame, FrameMeasure

SHAPE_HW = (640, 480)
# Many bright stars, so that the catalogue can speak; and a place where it knows next to none in such a field.
RICH, POOR = (83.0, 22.0), (193.0, 27.5)


class Night:
    """Frames of one field with their stars, as phase 1 hands them on; no pixels."""

    def __init__(self, folder, centre):
        self.folder, self.centre = folder, centre
        rng = np.random.default_rng(5)
        ra, dec, magnitude = catalogue_stars_near(*centre, 1.0)
        n_faint = 4000
        self.ra = np.concatenate([ra, centre[0] + rng.uniform(-1, 1, n_faint)])
        self.dec = np.concatenate([dec, centre[1] + rng.uniform(-1, 1, n_faint)])
        self.flux = np.concatenate([1e9 * 10 ** (-0.4 * magnitude), rng.uniform(1e3, 1e4, n_faint)])
        self.frames: list[tuple[Frame, FrameMeasure]] = []
        self.cards: dict[str, dict] = {}

    def add(self, name, *, offset_deg=(0.0, 0.0), hint_deg=None, is_cloudy=False, times_wider=1.0):
        """Add a frame that points beside the centre; of a cloudy one the stars mean nothing.

        ``times_wider`` is the field of another telescope over that of the others.
        """
        ra, dec = self.centre[0] + offset_deg[0], self.centre[1] + offset_deg[1]
        cards = tan_cards(ra, dec, rotation_deg=2.0 * len(self.frames), shape_hw=SHAPE_HW)
        cards |= {key: times_wider * value for key, value in cards.items() if key.startswith("CD")}
        self.cards[name] = cards
        x, y = WCS(cards).all_world2pix(self.ra, self.dec, 0)
        inside = (x > 5) & (x < SHAPE_HW[1] - 5) & (y > 5) & (y < SHAPE_HW[0] - 5)
        order = np.argsort(-self.flux[inside])[:120]
        x, y, flux = x[inside][order], y[inside][order], self.flux[inside][order]
        rng = np.random.default_rng(len(self.frames))
        if is_cloudy:
            x, y = rng.uniform(5, SHAPE_HW[1], 40), rng.uniform(5, SHAPE_HW[0], 40)
            flux = np.sort(rng.uniform(1e3, 1e5, 40))[::-1]
        path = self.folder / name
        header = fits.Header()
        told = (ra, dec) if hint_deg is None else hint_deg
        for key, value in {
            "RA": told[0], "DEC": told[1], "FOCALLEN": 250 / times_wider, "XPIXSZ": 2.877, "INSTRUME": "Test camera",
            "EXPTIME": 10.0, "BAYERPAT": "GRBG", "DATE-OBS": f"2025-10-18T20:{len(self.frames):02d}:00",
        }.items():  # fmt: skip
            header[key] = value
        fits.PrimaryHDU(np.zeros(SHAPE_HW, np.uint16), header).writeto(path)
        arrays_path = self.folder / f"{path.stem}.npz"
        columns = {c: np.ones(len(x), np.float32) for c in STAR_COLUMNS}
        columns |= {"x": x, "y": y, "flux": flux.astype(np.float32), "saturated": np.zeros(len(x), bool)}
        save_sealed(
            arrays_path, path.stem, {}, {**columns, "row_sums": np.zeros((1, SHAPE_HW[0]), np.uint32)}
        )
        measure = FrameMeasure(name, (1.0,), (1.0,), len(x), 3.0, 1.0, str(arrays_path))
        self.frames.append((Frame(len(self.frames), read_frame_info(path)), measure))
        return self

    def wrong(self, name, by_deg):
        """Cards of a place beside the true one."""
        ra, dec = self.cards[name]["CRVAL1"], self.cards[name]["CRVAL2"] + by_deg
        return tan_cards(ra, dec, rotation_deg=10.0, shape_hw=SHAPE_HW)


def places_are_right(night, found) -> bool:
    x, y = (SHAPE_HW[1] - 1) / 2, (SHAPE_HW[0] - 1) / 2
    for name, solution in found.items():
        ra, dec = WCS(solution.wcs_cards).all_pix2world(x, y, 0)
        back_x, back_y = WCS(night.cards[name]).all_world2pix(ra, dec, 0)
        if np.hypot(back_x - x, back_y - y) > 1.5:
            return False
    return True
