"""Darks, flats and bias frames of a made-up night: what of the sensor is left in the mosaic, against the truth."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, field_sky, pointings, run, write
from made_sensor import Sensor, write_calibration

from zemosaic_io.calibration_sets import stored_set
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.plan import make_plan
from zemosaic_settings import Settings

# One sky without gradients: nothing but calibration may hide what the sensor adds.
SETTINGS = {"solver_method": "EMBEDDED", "sky_model": "none", "route": "direct", "remove_gradient": False}
SKY_ADU = (600.0, 860.0, 540.0)


@pytest.fixture(scope="module")
def sky():
    return field_sky(size_deg=0.9)


@pytest.fixture(scope="module")
def sensor():
    return Sensor()


@pytest.fixture(scope="module")
def setups():
    return pointings(n=6, transparency=(1.0, 1.0, 1.0), sky_adu=SKY_ADU, sky_shape=(0.0,) * 5, fwhm_px=2.6)


@pytest.fixture(scope="module")
def night(sky, sensor, setups, tmp_path_factory):
    """A folder with lights, and beside it one with calibration frames."""
    folder = tmp_path_factory.mktemp("night")
    for i, setup in enumerate(setups):
        data = sensor.read_out(sensor.light(sky, setup), seconds=10.0, seed=i)
        write(folder / "raw" / f"light_{i}.fit", data, base_cards(setup, i))
    write_calibration(folder / "calibration", sensor, setups[0])
    return folder


@pytest.fixture(scope="module")
def plain(night):
    return run(night / "raw", night / "out_plain", **SETTINGS).load()


@pytest.fixture(scope="module")
def corrected(night):
    places = {
        f"{name}_dir": str(night / "calibration" / folder)
        for name, folder in (("darks", "darks"), ("flats", "flats"), ("bias", "biases"))
    }
    return run(night / "raw", night / "out", save_variance=True, **places, **SETTINGS).load()


def background_rms(result, sky):
    """What differs from one level in the sky away from stars, smoothed over 12 px; ADU in green."""
    truth = result.truth(sky)[1]
    inside = (result.coverage >= result.coverage.max()) & (truth < 4.0)
    image = np.where(inside, result.image[1], np.nan)
    cells = [
        np.nanmedian(image[y : y + 12, x : x + 12])
        for y in range(0, image.shape[0] - 11, 12)
        for x in range(0, image.shape[1] - 11, 12)
        if np.isfinite(image[y : y + 12, x : x + 12]).sum() > 60
    ]
    return float(np.std(cells))


def flux_scatter(result, sky):
    """Of stars bright enough that their photons scatter by less than 0.6 %."""
    ratio = result.stars(sky, min_frames=4, faintest=40_000.0)["ratio"][1]
    ratio = ratio[np.isfinite(ratio)]
    return float(np.std(ratio) / np.mean(ratio))


def test_what_the_sensor_does_is_taken_back(night, sky, plain, corrected):
    """Amplifier glow, vignetting and dust: in the sky and in the fluxes of stars."""
    before, after = background_rms(plain, sky), background_rms(corrected, sky)
    assert before > 40.0
    assert after < 3.0
    before, after = flux_scatter(plain, sky), flux_scatter(corrected, sky)
    assert before > 0.05
    assert after < 0.015
    assert "run_info_calibrated" not in plain.message_keys
    told = next(m for m in corrected.report["messages"] if m["key"] == "run_info_calibrated")
    assert told["values"]["frames"] == told["values"]["of"] == 6
    assert told["values"]["details"] == "DARK 10 s (12), FLAT (12), BIAS (12)"
    assert corrected.header["CALSTAT"] == "DF"
    assert "CALSTAT" not in plain.header


def test_samples_before_debayering_are_those_of_a_perfect_sensor(night, sky, sensor, setups, corrected):
    path = next((night / "out" / ".zemosaic_state" / "calibration").glob("*.npz"))
    sets = [found for p in path.parent.glob("*.npz") if (found := _set_at(p)) is not None]
    assert len(sets) == 1
    made = sets[0]
    assert made.steps == "DF"
    raw = FrameStore({0: read_frame_info(night / "raw" / "light_0.fit")}).read_raw(0, 0, 300)
    samples = made.apply(raw.data.view(">u2").astype(np.uint16) ^ np.uint16(0x8000), 0, 0)
    truth = sensor.light(sky, setups[0])
    good = np.ones(samples.shape, bool)
    good.ravel()[made.bad] = False
    # Every colour on its own scale, that of the middle.
    for k in range(4):
        phase = (slice(k // 2, None, 2), slice(k % 2, None, 2))
        quiet = good[phase] & (truth[phase] < 3000)
        scale = np.median(samples[phase][quiet] / truth[phase][quiet])
        assert scale == pytest.approx(1.0, abs=0.05)
        error = samples[phase][quiet] / scale - truth[phase][quiet]
        expected = np.sqrt(2 * truth[phase][quiet] / sensor.flat[phase][quiet] + 6.0**2)
        assert np.std(error / expected) < 1.15
        assert abs(np.mean(error)) < 0.01 * np.mean(truth[phase][quiet])
    # Pixels of strong dark current are not subtracted but replaced.
    above = sensor.current.ravel()[sensor.hot] - 4.0
    assert np.isin(sensor.hot[above > 100.0], made.bad).mean() > 0.97
    others = np.setdiff1d(made.bad, sensor.hot)
    assert len(others) < 25


def _set_at(path):
    try:
        return stored_set(path)
    except KeyError:  # a master
        return None


def test_the_noise_of_the_masters_is_in_the_variance(night, sky, setups, corrected, tmp_path):
    """Frames that were not dithered: the noise of two darks is the same in all, and does not show in their scatter."""
    still = [replace(setups[0], sky_adu=(60.0, 86.0, 54.0), seed=(9, i)) for i in range(6)]
    sensor = Sensor(n_hot=0)
    sensor.flat[:] = 1.0
    for i, setup in enumerate(still):
        data = sensor.read_out(sensor.light(sky, setup), seconds=10.0, seed=50 + i)
        write(tmp_path / "raw" / f"light_{i}.fit", data, base_cards(setup, i))
    write_calibration(tmp_path / "cal", sensor, still[0], n=2, kinds="D")
    result = run(
        tmp_path / "raw", tmp_path / "out", darks_dir=str(tmp_path / "cal"), save_variance=True, **SETTINGS
    ).load()
    variance = fits.getdata(result.outputs["variance"])[1]
    inside = (result.coverage >= 6) & (result.truth(sky)[1] < 1.0)
    inside &= np.isfinite(variance)
    image = result.image[1]
    # Steps to the next pixel but three, which interpolation does not make alike.
    both = inside[:, :-4] & inside[:, 4:]
    scatter = np.median(np.abs((image[:, 4:] - image[:, :-4])[both])) * 1.4826 / np.sqrt(2)
    told = np.sqrt(np.mean(variance[inside]))
    assert told == pytest.approx(scatter, rel=0.1)


def test_without_calibration_frames_nothing_changes(night, plain, tmp_path):
    off = run(night / "raw", tmp_path / "off", calibration="off", **SETTINGS).load()
    np.testing.assert_array_equal(off.image, plain.image)
    assert off.outputs["science"].rsplit("/", 1)[1] == plain.outputs["science"].rsplit("/", 1)[1]


def test_frames_in_the_input_folder_are_used_and_the_plan_says_so(night, corrected, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(night / "raw", raw)
    for name in ("darks", "flats", "biases"):
        shutil.copytree(night / "calibration" / name, raw / "calibration" / name)
    settings = Settings.from_mapping(SETTINGS)
    plan = make_plan(raw, tmp_path / "out", settings)
    assert plan.calibration == "DARK 10 s (12), FLAT (12), BIAS (12)"
    assert plan.calibration_unused == ""
    assert plan.n_frames == 6
    without = make_plan(raw, tmp_path / "out", settings.updated({"calibration": "off"}))
    assert without.calibration == ""
    assert without.run.peak_bytes <= plan.run.peak_bytes
    result = run(raw, tmp_path / "out", **SETTINGS).load()
    np.testing.assert_array_equal(result.image, corrected.image)
    # Frames chosen by hand are calibrated with what lies beside them.
    some = [str(path) for path in sorted(raw.glob("*.fit"))[:5]]
    chosen = run(raw, tmp_path / "some", frame_selection=some, **SETTINGS)
    told = next(m for m in chosen.report["messages"] if m["key"] == "run_info_calibrated")
    assert told["values"]["frames"] == 5
    # A second run makes nothing anew.
    state = tmp_path / "out" / ".zemosaic_state" / "calibration"
    before = {path.name: path.stat().st_mtime_ns for path in state.iterdir()}
    again = run(raw, tmp_path / "out", **SETTINGS).load()
    np.testing.assert_array_equal(again.image, corrected.image)
    assert {path.name: path.stat().st_mtime_ns for path in state.iterdir()} == before
    # A damaged one is.
    for path in state.iterdir():
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    again = run(raw, tmp_path / "out", **SETTINGS).load()
    np.testing.assert_array_equal(again.image, corrected.image)


def test_what_does_not_fit_and_what_is_damaged_is_said_and_not_used(night, sky, plain, setups, tmp_path):
    sensor = Sensor()
    write_calibration(tmp_path / "cal", sensor, setups[0], n=2, kinds="D", GAIN=200)
    result = run(night / "raw", tmp_path / "out", darks_dir=str(tmp_path / "cal"), **SETTINGS).load()
    told = next(m for m in result.report["messages"] if m["key"] == "run_warn_calibration_unused")
    assert told["values"]["details"] == "DARK 10 s (2): GAIN 80/200"
    np.testing.assert_array_equal(result.image, plain.image)
    shutil.copytree(night / "calibration", tmp_path / "some")
    blown = np.full((300, 400), 65535, np.uint16)
    blown[0, 0] = 0
    cards = base_cards(setups[0], 0, with_wcs=False, IMAGETYP="Flat", EXPTIME=0.1)
    write(tmp_path / "some" / "flats" / "flat_blown.fit", blown, cards)
    whole = (tmp_path / "some" / "flats" / "flat_003.fit").read_bytes()
    (tmp_path / "some" / "flats" / "flat_003.fit").write_bytes(whole[: len(whole) // 2])
    places = {"darks_dir": str(tmp_path / "some" / "darks"), "flats_dir": str(tmp_path / "some" / "flats")}
    places["bias_dir"] = str(tmp_path / "some" / "biases")
    result = run(night / "raw", tmp_path / "out2", **places, **SETTINGS).load()
    unusable = [m["values"] for m in result.report["messages"] if m["key"] == "run_warn_calibration_frame"]
    assert [(v["path"].rsplit("/", 1)[1], v["reason_key"]) for v in unusable] == [
        ("flat_003.fit", "frame_truncated"),
        ("flat_blown.fit", "calibration_flat_saturated"),
    ]
    assert background_rms(result, sky) < 3.0


def test_masters_of_other_programs(night, sky, sensor, setups, plain, tmp_path):
    """A master dark of whole numbers, and one from 0 to 1 with a flat as floating point, as Siril writes them."""
    cards = base_cards(setups[0], 0, with_wcs=False, RA=None, DEC=None)
    offset = 440.0 + sensor.current
    write(
        tmp_path / "a" / "masterdark.fit",
        np.rint(offset).astype(np.uint16),
        cards | {"IMAGETYP": "Master Dark"},
    )
    unit = (offset / 65535).astype(np.float32)
    write(tmp_path / "b" / "dark_stacked.fit", unit, cards | {"IMAGETYP": "Dark", "STACKCNT": 20})
    flat = (0.4 * sensor.flat).astype(np.float32)
    write(tmp_path / "flat_stacked.fit", flat, cards | {"IMAGETYP": "Flat", "STACKCNT": 20, "EXPTIME": 0.1})
    for dark in ("a/masterdark.fit", "b/dark_stacked.fit"):
        result = run(
            night / "raw",
            tmp_path / dark.replace("/", "_"),
            darks_dir=str(tmp_path / dark),
            flats_dir=str(tmp_path / "flat_stacked.fit"),
            **SETTINGS,
        ).load()
        assert result.header["CALSTAT"] == "DF"
        assert background_rms(result, sky) < 3.0
        assert flux_scatter(result, sky) < 0.015
