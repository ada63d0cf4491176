"""Single files are solved, told of, and written only where it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

import run_zemosaic
from zemosaic_io.solvers.base import Availability, SolveOutcome
from zemosaic_io.wcs_write import solved_path, write_wcs
from zemosaic_pipeline import solve_files

CARDS = {
    "WCSAXES": 2,
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 10.0,
    "CRVAL2": 41.0,
    "CRPIX1": 32.5,
    "CRPIX2": 24.5,
    "CD1_1": -0.001,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 0.001,
}


class FakeSolver:
    name = "FAKE"

    def find(self):
        return Availability(True, "")

    def solve(self, request, cancel=None):
        if "bad" in request.path.name:
            return SolveOutcome(
                False, self.name, None, 0.1, key="solver_not_found", values={"solver": "FAKE"}
            )
        return SolveOutcome(True, self.name, dict(CARDS), 0.2, 17, 0.2)


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(solve_files, "make_solvers", lambda options: [FakeSolver()])


def frame(path, **cards):
    noise = np.random.default_rng(1).normal(1000, 10, (48, 64)).astype(np.uint16)
    header = fits.Header({"BAYERPAT": "GRBG", "CTYPE1": "LINEAR", "CD1_1": 0.0, "PC1_1": 1.0, **cards})
    fits.PrimaryHDU(noise, header).writeto(path)
    return path


def test_found_place_is_told_and_nothing_is_written(tmp_path, capsys):
    path = frame(tmp_path / "a.fit")
    before = path.read_bytes()
    assert run_zemosaic.main(["solve", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "RA 10.0000° Dec +41.0000°" in shown
    assert "3.600″" in shown
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*.fit*")] == ["a.fit"]


def test_copy_or_the_file_itself_gets_the_cards(tmp_path):
    path = frame(tmp_path / "a.fit", OBJECT="M 31")
    pixels = fits.getdata(path)
    assert run_zemosaic.main(["solve", "--write", str(path)]) == 0
    header = fits.getheader(solved_path(path))
    assert (header["CTYPE1"], header["CD1_1"], header["OBJECT"]) == ("RA---TAN", -0.001, "M 31")
    assert "PC1_1" not in header
    assert np.array_equal(fits.getdata(solved_path(path)), pixels)
    assert fits.getheader(path)["CTYPE1"] == "LINEAR"
    assert run_zemosaic.main(["solve", "--in-place", str(path)]) == 0
    assert fits.getheader(path)["CRVAL2"] == 41.0
    assert np.array_equal(fits.getdata(path), pixels)


def test_compressed_file_keeps_its_pixels(tmp_path):
    path = tmp_path / "c.fits.fz"
    pixels = np.arange(48 * 64, dtype=np.int16).reshape(48, 64)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels)]).writeto(path)
    write_wcs(path, path, 1, CARDS)
    with fits.open(path) as units:
        assert units[1].header["CRVAL1"] == 10.0
        assert np.array_equal(units[1].data, pixels)


def test_one_bad_file_does_not_stop_the_others(tmp_path, capsys):
    good, bad, broken = frame(tmp_path / "a.fit"), frame(tmp_path / "bad.fit"), tmp_path / "x.fit"
    broken.write_bytes(b"no FITS at all")
    assert run_zemosaic.main(["solve", str(broken), str(bad), str(good)]) == 1
    shown = capsys.readouterr().out
    assert "✖ x.fit" in shown
    assert "✖ bad.fit" in shown
    assert "✔ a.fit" in shown


@pytest.mark.parametrize("option", ["--hips", "--gpu=off", "--resume=off", "--executor=dask"])
def test_options_that_would_change_nothing_are_refused(tmp_path, option, capsys):
    assert run_zemosaic.main(["solve", option, str(tmp_path / "a.fit")]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
