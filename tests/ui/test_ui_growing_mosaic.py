"""The growing picture of a run: tiles lie where their headers say."""

from __future__ import annotations

import time

import numpy as np
from astropy.io import fits

from zemosaic_ui.growing_mosaic import GrowingMosaic
from zemosaic_ui.qt.live_preview import LivePreview
from zemosaic_ui.run_state import RunState, TileState


def write_tile(path, value, x0, y0):
    rng = np.random.default_rng(1)
    image = (value + rng.normal(0, 1, (3, 200, 300))).astype(np.float32)
    image[:, 90:110, 140:160] += 500
    header = fits.Header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 41.0})
    header.update({"CDELT1": -0.001, "CDELT2": 0.001, "CRPIX1": 300.0 - x0, "CRPIX2": 200.0 - y0})
    fits.writeto(path, image, header)
    return str(path)


def wait_picture(growing):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = growing.take()
        if found is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("no picture came")


def test_tiles_lie_where_their_headers_say(tmp_path):
    growing = GrowingMosaic()
    growing.add(write_tile(tmp_path / "a.fits", 100.0, 0, 0))
    first = wait_picture(growing)
    assert (first.width, first.height) == (300, 200)
    growing.add(write_tile(tmp_path / "b.fits", 900.0, 250, 100))
    picture = wait_picture(growing)
    assert (picture.width, picture.height) == (550, 300)
    rgba = np.frombuffer(picture.rgba, np.uint8).reshape(300, 550, 4)
    assert rgba[10, 10, 3] == 0  # top left: beside tile b, above tile a
    assert rgba[290, 10, 3] == 255  # bottom left: tile a, whose first row is the lowest
    assert rgba[100, 400, :3].mean() > 2 * rgba[40, 300, :3].mean()  # the bright patch of tile b
    growing.reset()
    assert growing.take() is None
    growing.close()


def test_the_preview_shows_tiles_without_pictures_of_their_own(tmp_path, session, qtbot):
    preview = LivePreview(session)
    qtbot.addWidget(preview)
    state = RunState()
    preview.refresh(state)
    assert not preview.has_picture
    state.tiles.append(TileState(1, write_tile(tmp_path / "a.fits", 100.0, 0, 0), 5, ""))
    state.tiles.append(TileState(2, str(tmp_path / "missing.fits"), 5, ""))

    def grown():
        preview.refresh(state)
        return preview.has_picture

    qtbot.waitUntil(grown, timeout=60_000)
    preview.close_loader()
