"""Which frames of a folder are used, and what is said of the others."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_frames import base_cards, expose, field_sky, pointings, run, write

from zemosaic_core.synthetic_sky import render_ideal
from zemosaic_pipeline.phase0_survey import survey

SETTINGS = {"solver_method": "EMBEDDED"}


@pytest.fixture(scope="module")
def sky():
    return field_sky(size_deg=0.9)


def brighter(setup, factor):
    """The same exposure, ``factor`` times as long."""
    return replace(
        setup,
        transparency=tuple(factor * t for t in setup.transparency),
        sky_adu=tuple(factor * v for v in setup.sky_adu),
    )


def transparency_of(result):
    return {frame["path"].rsplit("/", 1)[1]: frame["transparency"] for frame in result.report["frames"]}


def test_long_and_short_exposures_of_one_night_are_all_used(sky, tmp_path):
    exposures = [30.0 if i in (3, 6, 8, 9) else 10.0 for i in range(10)]
    for i, (setup, seconds) in enumerate(zip(pointings(n=10), exposures, strict=True)):
        data = expose(sky, brighter(setup, seconds / 10))
        write(tmp_path / "raw" / f"f{i}.fit", data, base_cards(setup, i, EXPTIME=seconds))
    result = run(tmp_path / "raw", tmp_path / "out", **SETTINGS)
    assert result.left_out == {}
    assert result.report["frames_used"] == 10
    assert result.header["EXPTOTAL"] == sum(exposures)
    # Longer is not clearer.
    shown = list(transparency_of(result).values())
    assert min(shown) > 0.8
    assert max(shown) < 1.2


def test_another_telescope_or_filter_is_no_haze(sky, tmp_path):
    for i, setup in enumerate(pointings(n=9)):
        other = {"INSTRUME": "A smaller one"} if i >= 6 else {"FILTER": "LP"} if i >= 3 else {}
        data = expose(sky, brighter(setup, 0.35 if other else 1.0))
        write(tmp_path / "raw" / f"f{i}.fit", data, base_cards(setup, i) | other)
    result = run(tmp_path / "raw", tmp_path / "out", **SETTINGS)
    assert result.left_out == {}
    assert min(transparency_of(result).values()) > 0.8


def test_a_sharp_night_loses_its_bad_frames_only(sky, tmp_path):
    """A monochrome sensor whose pixels are large for its seeing: 1.8 to 2.6 px."""
    rng = np.random.default_rng(5)
    setups = [
        replace(setup, fwhm_px=float(fwhm), n_cosmics=3)
        for setup, fwhm in zip(pointings(n=14), rng.permutation(np.linspace(1.8, 2.6, 14)), strict=True)
    ]
    setups[3] = replace(setups[3], trail_px=9.0, trail_angle_deg=30.0)
    setups[7] = replace(setups[7], fwhm_px=6.5)
    setups[11] = replace(setups[11], transparency=(0.25, 0.25, 0.25))
    for i, setup in enumerate(setups):
        write(tmp_path / "raw" / f"f{i}.fit", expose(sky, setup, "mono"), base_cards(setup, i, form="mono"))
    result = run(tmp_path / "raw", tmp_path / "out", **SETTINGS)
    assert result.left_out == {
        "f3.fit": "frame_trailed",
        "f7.fit": "frame_defocused",
        "f11.fit": "frame_clouded",
    }
    flagged = run(tmp_path / "raw", tmp_path / "all", exclude_flagged_frames=False, **SETTINGS)
    assert flagged.report["frames_used"] == 14
    told = [m for m in flagged.report["messages"] if m["key"] == "frame_flagged_kept"]
    assert sorted(m["values"]["reason_key"] for m in told) == sorted(result.left_out.values())
    assert transparency_of(flagged)["f11.fit"] == pytest.approx(0.25 / 0.92, abs=0.05)


def test_darks_and_flats_of_a_session_folder_go_first(sky, tmp_path):
    """A telescope keeps its calibration frames beside the lights, in the same size and without IMAGETYP."""
    raw = tmp_path / "raw"
    rng = np.random.default_rng(1)
    setups = pointings(n=3)
    for i, setup in enumerate(setups):
        write(raw / "RAW_TELE_M 94" / f"M 94_10s60_{i}.fits", expose(sky, setup), base_cards(setup, i))
        dark = rng.normal(440, 16, setup.shape_hw).astype(np.uint16)
        cards = base_cards(setup, i, with_wcs=False, IMAGETYP=None, RA=0.0, DEC=0.0)
        write(raw / "DWARF_DARK" / "tele_exp_10_gain_60_bin_1" / f"raw_10s_60_{i}_20C.fits", dark, cards)
        write(raw / "CALI_FRAME" / "flat" / "cam_0" / f"flat_gain_2_bin_{i}.fits", 50 * dark, cards)
    kept, refused = survey(raw, tmp_path / "out", recursive=True)
    assert [info.path.parent.name for info in kept] == ["RAW_TELE_M 94"] * 3
    reasons = sorted(item.key for item in refused)
    assert reasons == ["frame_not_light_folder"] * 3 + ["frame_not_light_name"] * 3


def test_frames_of_a_folder_that_cannot_be_listed_are_not_missed_silently(tmp_path, monkeypatch):
    (tmp_path / "raw" / "second").mkdir(parents=True)
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("second"):
            raise OSError(errno.EIO, "Input/output error", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    kept, (refused,) = survey(tmp_path / "raw", tmp_path / "out", recursive=True)
    assert kept == []
    assert (Path(refused.path).name, refused.key) == ("second", "input_folder_unreadable")
    assert refused.values == {"reason": "Input/output error"}


def stacked(sky, setup, *, empty_deg=None, seed=0):
    """Three planes as a telescope stacks them; with ``empty_deg`` the picture lies askew in a frame of zeros."""
    light = render_ideal(sky, setup)
    light += np.array([740.0, 870.0, 710.0], np.float32)[:, None, None]
    light += np.random.default_rng(seed).normal(0, 8, light.shape)
    if empty_deg is not None:
        height, width = setup.shape_hw
        y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2
        a = np.deg2rad(empty_deg)
        u, v = x * np.cos(a) + y * np.sin(a), -x * np.sin(a) + y * np.cos(a)
        light[:, (abs(u) > 0.45 * width) | (abs(v) > 0.45 * height)] = 0
    return np.clip(light, 0, 65535).astype(np.uint16)


def test_stacks_of_the_telescope(sky, tmp_path):
    """Empty borders are no sky, sizes may differ, and a stack counts as the exposures that are in it."""
    shapes = [(300, 400), (340, 380), (300, 400), (400, 420)]
    counts = [60, 80, 50, 70]
    for i, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
        setup = pointings(n=1, shape_hw=shape, step_px=(40.0 * i, 0), seed=i, transparency=(1.0, 1.0, 1.0))[0]
        cards = base_cards(setup, i, form="rgb", STACKCNT=count, TOTALEXP=10.0 * count)
        write(tmp_path / "raw" / f"Stacked_{count}.fit", stacked(sky, setup, empty_deg=4.0, seed=i), cards)
    result = run(tmp_path / "raw", tmp_path / "out", **SETTINGS).load()
    assert result.left_out == {}
    assert result.report["frames_used"] == 4
    assert result.header["EXPTOTAL"] == 2600.0
    assert result.header["STACKCNT"] == 260
    seen = result.image[:, result.coverage > 0]
    level = np.nanmedian(seen, axis=1)
    # Emptiness averaged as sky, or its rim, would lie far below.
    assert (np.nanmin(seen, axis=1) > level - 60).all()


def test_emptiness_is_no_sky_within_a_group(sky, tmp_path):
    setups = pointings(n=4, transparency=(1.0, 1.0, 1.0))
    for i, setup in enumerate(setups):
        cards = base_cards(setup, i, form="rgb", STACKCNT=30)
        write(tmp_path / "raw" / f"{i}.fit", stacked(sky, setup, empty_deg=3.0 * i, seed=i), cards)
    result = run(tmp_path / "raw", tmp_path / "out", stacking_rejection_algorithm="none", **SETTINGS)
    seen = result.image[:, result.coverage > 0]
    assert (np.nanmin(seen, axis=1) > np.nanmedian(seen, axis=1) - 60).all()


@pytest.mark.parametrize("value", [0, 32768])
def test_a_copy_that_was_cut_off_is_left_out(sky, tmp_path, value):
    setups = pointings(n=4)
    for i, setup in enumerate(setups):
        data = expose(sky, setup)
        if i == 2:
            data[180:] = value
        write(tmp_path / "raw" / f"f{i}.fit", data, base_cards(setup, i))
    result = run(tmp_path / "raw", tmp_path / "out", **SETTINGS)
    assert result.left_out == {"f2.fit": "frame_damaged"}
    assert result.report["left_out"][0]["values"]["percent"] == pytest.approx(40, abs=8)
