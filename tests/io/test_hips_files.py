"""Tiles on the sphere show the picture where it lies in the sky."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zemosaic_core.errors import Cancelled
from zemosaic_core.sphere import tan_wcs
from zemosaic_io.hips_files import write_hips
from zemosaic_io.preview import write_png

healpix = pytest.importorskip("astropy_healpix")
pytest.importorskip("reproject.hips")

SHAPE_HW = (80, 100)


def picture(folder):
    rgba = np.full((*SHAPE_HW, 4), 20, np.uint8)
    rgba[..., 3] = 255
    # A light that is not in the middle, so that a mirrored or upside-down picture shows.
    rgba[60:63, 20:23, :3] = 250
    return write_png(folder / "p.png", rgba)


def wcs_of(rotation_deg=30.0):
    return tan_wcs((187.3, 12.4), 60.0 / 3600.0, SHAPE_HW, rotation_deg)


@pytest.mark.parametrize("rotation_deg", [0.0, 30.0, 200.0])
def test_a_light_is_in_the_tile_of_its_place(tmp_path, rotation_deg):
    pytest.importorskip("pyavm")
    wcs = wcs_of(rotation_deg)
    folder = write_hips(tmp_path / "m_hips", picture(tmp_path), wcs, "m", tmp_path / "work", lambda: None)
    text = (folder / "properties").read_text()
    assert "obs_title            = m" in text
    order = int(text.split("hips_order")[1].split("=")[1].split()[0])
    ra, dec = (float(v) for v in wcs.all_pix2world(21, 61, 0))
    tile_px = 512
    fine = int(healpix.lonlat_to_healpix(*_degrees(ra, dec), 2**order * tile_px, order="nested"))
    tile = fine // tile_px**2
    with Image.open(folder / f"Norder{order}" / f"Dir{tile // 10000 * 10000}" / f"Npix{tile}.png") as image:
        brightness = np.asarray(image)[..., 0]
    # Even and odd bits of the index count rows and columns of the tile.
    row, column = (sum((fine >> (2 * k + axis) & 1) << k for k in range(9)) for axis in (0, 1))
    assert brightness[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].max() > 200
    # Few pixels of the tile are light.
    assert (brightness > 200).mean() < 0.02
    assert not list((tmp_path / "work").iterdir())


def _degrees(*values):
    from astropy import units

    return [value * units.deg for value in values]


def test_it_can_be_stopped(tmp_path):
    pytest.importorskip("pyavm")

    def stop():
        raise Cancelled("run_cancelled", "stopped")

    with pytest.raises(Cancelled):
        write_hips(tmp_path / "m_hips", picture(tmp_path), wcs_of(), "m", tmp_path / "work", stop)
    assert not list((tmp_path / "work").iterdir())
