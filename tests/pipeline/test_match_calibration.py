"""Which calibration frames are taken for which light frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io.calibration_frames import CalibrationFrame, frames_at, read_calibration_frame
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.match_calibration import choose_calibration

CARDS = {
    "INSTRUME": "Seestar S50", "TELESCOP": "S50", "EXPTIME": 10.0, "GAIN": 80, "CCD-TEMP": 20.0, "BAYERPAT": "GRBG",
    "FILTER": "IRCUT", "DATE-OBS": "2025-10-18T22:00:00", "IMAGETYP": "Light",
}  # fmt: skip


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    path = tmp_path_factory.mktemp("lights") / "light.fit"
    header = fits.Header()
    for key, value in CARDS.items():
        header[key] = value
    fits.PrimaryHDU(np.zeros((20, 30), np.uint16), header).writeto(path)
    return read_frame_info(path)


@pytest.fixture
def made(light):
    """Calibration frames that differ from the light frame in what is given."""
    count = iter(range(10_000))

    def make(kind, n=3, is_master=False, **changes):
        return [
            CalibrationFrame(
                replace(light, path=Path(f"/{kind}_{next(count):04d}.fit"), image_type=kind, **changes),
                kind,
                is_master,
            )
            for _ in range(n)
        ]

    return make


def paths(recipe):
    return [] if recipe is None else [frame.info.path for frame in recipe.frames]


def test_what_agrees_is_used(light, made):
    darks, flats, biases = (
        made("dark", 5),
        made("flat", 4, exposure_s=0.1, gain=0.0),
        made("bias", exposure_s=0.001),
    )
    biases_of_flats = made("bias", exposure_s=0.001, gain=0.0)
    choice = choose_calibration([light, light], darks + flats + biases + biases_of_flats, 5.0)
    assert len(choice.recipes) == 2
    recipe = choice.recipes[0]
    assert paths(recipe.dark) == [frame.info.path for frame in darks]
    assert recipe.dark_scale == 1.0
    assert recipe.bias is None
    assert paths(recipe.flat) == [frame.info.path for frame in flats]
    assert paths(recipe.flat.pedestal) == [frame.info.path for frame in biases_of_flats]
    assert choice.used == "DARK 10 s 20 C (5), FLAT IRCUT (4), BIAS (3)"
    assert choice.n_sets == 1
    # Those with the light frame's gain are needed for nothing.
    assert choice.unused == "BIAS (3)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instrument": "ASI 533"}, "INSTRUME Seestar S50/ASI 533"),
        ({"gain": 120.0}, "GAIN 80/120"),
        ({"binning": 2}, "XBINNING 1/2"),
        ({"shape_hw": (20, 40)}, "NAXIS 30x20/40x20"),
        ({"cfa_pattern": "RGGB"}, "BAYERPAT GRBG/RGGB"),
        ({"exposure_s": 30.0}, "EXPTIME 10/30"),
        ({"sensor_celsius": 31.5}, "CCD-TEMP 20/31.5"),
    ],
)
def test_darks_that_differ_are_not_used_and_it_is_said_why(light, made, change, said):
    choice = choose_calibration([light], made("dark", 4, **change), 5.0)
    assert not choice.recipes
    assert choice.used == ""
    assert choice.unused.endswith(f"(4): {said}")
    assert choice.unused.startswith("DARK ")


@pytest.mark.parametrize(
    "change",
    [
        {"instrument": ""}, {"gain": None}, {"sensor_celsius": None}, {"exposure_s": None}, {"cfa_pattern": ""},
        {"exposure_s": 10.1}, {"sensor_celsius": 15.5}, {"instrument": "SEESTAR_S50"}, {"filter_name": "LP"},
    ],
)  # fmt: skip
def test_what_a_header_does_not_say_is_no_difference(light, made, change):
    assert choose_calibration([light], made("dark", **change), 5.0).recipes[0].dark is not None


def test_the_nearest_temperature_is_taken(light, made):
    cold, near, warm = (made("dark", sensor_celsius=t) for t in (16.0, 22.0, 28.0))
    lights = [replace(light, sensor_celsius=t) for t in (15.0, 21.0, 26.0)]
    choice = choose_calibration(lights, [*warm, *cold, *near], 4.0)
    found = [paths(choice.recipes[i].dark) for i in range(3)]
    assert found == [[frame.info.path for frame in group] for group in (cold, near, warm)]
    assert choice.n_sets == 3


def test_darks_of_another_exposure_are_scaled_only_with_a_bias(light, made):
    longer, much_longer = made("dark", exposure_s=20.0), made("dark", exposure_s=60.0)
    assert not choose_calibration([light], longer, 5.0).recipes
    biases = made("bias", exposure_s=0.0)
    recipe = choose_calibration([light], longer + much_longer + biases, 5.0).recipes[0]
    assert paths(recipe.dark) == [frame.info.path for frame in longer]
    assert recipe.dark_scale == 0.5
    assert paths(recipe.bias) == [frame.info.path for frame in biases]
    alone = choose_calibration([light], much_longer + biases, 5.0).recipes[0]
    assert alone.dark is None
    assert alone.bias is not None


def test_flats_of_the_filter_and_the_nearest_night(light, made):
    ircut, lp = made("flat", exposure_s=0.2), made("flat", exposure_s=0.2, filter_name="LP")
    old = made("flat", exposure_s=0.2, night="2025-08-01")
    other = made("flat", exposure_s=0.2, telescope="S30")
    rest = made("dark") + made("bias", exposure_s=0.0)
    lights = [light, replace(light, filter_name="LP"), replace(light, filter_name="SII")]
    choice = choose_calibration(lights, old + lp + ircut + other + rest, 5.0)
    assert paths(choice.recipes[0].flat) == [frame.info.path for frame in ircut]
    assert paths(choice.recipes[1].flat) == [frame.info.path for frame in lp]
    assert choice.recipes[2].flat is None
    assert "FLAT IRCUT (3): TELESCOP S50/S30" in choice.unused


def test_a_flat_without_pedestal_is_not_used(light, made):
    flats = made("flat", exposure_s=2.0)
    assert choose_calibration([light], flats, 5.0).unused == "FLAT IRCUT (3): BIAS -"
    # Known for the light frames only, or for the flats only.
    assert choose_calibration([light], flats + made("dark"), 5.0).recipes[0].flat is None
    dark_flats = made("dark", exposure_s=2.0)
    assert not choose_calibration([light], flats + dark_flats, 5.0).recipes
    recipe = choose_calibration([light], flats + made("dark") + dark_flats, 5.0).recipes[0]
    assert paths(recipe.flat.pedestal) == [frame.info.path for frame in dark_flats]
    master = made("flat", 1, is_master=True, bitpix=-32, exposure_s=2.0)
    recipe = choose_calibration([light], master + made("dark"), 5.0).recipes[0]
    assert recipe.flat.pedestal is None


def test_what_was_done_before_is_not_done_again(light, made):
    found = made("dark") + made("bias", exposure_s=0.0) + made("flat", exposure_s=0.1)
    done = replace(light, calibrated="BDF")
    assert not choose_calibration([done], found, 5.0).recipes
    recipe = choose_calibration([replace(light, calibrated="D")], found, 5.0).recipes[0]
    assert recipe.dark is None
    assert recipe.flat is not None
    stack = replace(light, stack_count=40)
    picture = replace(light, kind="rgb", axes="chw")
    assert not choose_calibration([stack, picture], found, 5.0).recipes


def write_frame(path, **cards):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = fits.Header()
    for key, value in cards.items():
        header[key] = value
    fits.PrimaryHDU(np.arange(600, dtype=np.uint16).reshape(20, 30), header).writeto(path)
    return path


def test_names_tell_what_headers_do_not(tmp_path):
    path = write_frame(
        tmp_path / "CALI_FRAME" / "dark" / "cam_0" / "dark_exp_15.5_gain_60_bin_2_-8C_stack_5.fits"
    )
    frame = read_calibration_frame(path, None, root=tmp_path)
    assert (frame.kind, frame.is_master) == ("dark", True)
    info = frame.info
    assert (info.exposure_s, info.gain, info.binning, info.sensor_celsius) == (15.5, 60.0, 2, -8.0)
    path = write_frame(
        tmp_path / "DWARF_DARK" / "tele_exp_10_gain_60_bin_1" / "raw_10s_60_0001_20C.fits", GAIN=80
    )
    info = read_calibration_frame(path, None, root=tmp_path).info
    # The header comes first.
    assert (info.exposure_s, info.gain, info.binning, info.sensor_celsius) == (10.0, 80.0, 1, 20.0)


def test_a_folder_given_holds_what_it_was_given_for_unless_a_file_says_otherwise(tmp_path):
    write_frame(tmp_path / "lib" / "a.fit")
    write_frame(tmp_path / "lib" / "b.fit", IMAGETYP="Flat Field")
    write_frame(tmp_path / "lib" / "c.fit", IMAGETYP="Light")
    write_frame(tmp_path / "lib" / "deep" / "masterBias.fit")
    (tmp_path / "lib" / "junk.fit").write_bytes(b"no FITS file")
    found, refused = frames_at(tmp_path / "lib", "dark")
    assert {frame.info.path.name: frame.kind for frame in found} == {
        "a.fit": "dark",
        "b.fit": "flat",
        "masterBias.fit": "bias",
    }
    assert sorted(skip.key for skip in refused) == ["calibration_no_kind", "frame_not_fits"]
    found, _ = frames_at(tmp_path / "lib" / "a.fit", "flat")
    assert [frame.kind for frame in found] == ["flat"]
    with pytest.raises(SkipItem, match="no dark, flat or bias"):
        read_calibration_frame(tmp_path / "lib" / "a.fit", None, root=tmp_path / "lib")
