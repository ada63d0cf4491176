from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from zemosaic_core.errors import SkipItem
from zemosaic_core.synthetic_sky import FrameSetup, make_sky, render_ideal, tan_cards
from zemosaic_io.demo_session import write_demo_night
from zemosaic_io.fits_read import content_key, read_image
from zemosaic_io.headers import read_frame_info
from zemosaic_io.sealed_arrays import save_sealed
from zemosaic_pipeline import measure as measuring
from zemosaic_pipeline.measure import (
    ARRAY_NAMES,
    STAR_COLUMNS,
    MeasureOptions,
    measure_arrays,
    measure_frame,
    stored_measure,
)

UNDERSAMPLED = Path(__file__).resolve().parents[3] / "shared" / "data" / "undersampled_hatp32"
ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = MeasureOptions(quality_sigma=4.0, exclude_flagged=True, find_hot_pixels=True)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    write_demo_night(folder, panels=(1, 1), frames_per_panel=1, shape_hw=(640, 480), seed=5)
    return read_frame_info(sorted(folder.glob("*.fit"))[0])


def test_a_frame_is_measured_and_its_arrays_stored(frame, tmp_path):
    target = tmp_path / "arrays.npz"
    measure = measure_frame((frame, OPTIONS, str(target)))
    assert measure.content_key == content_key(frame)
    arrays = measure.arrays()
    assert set(arrays) == set(ARRAY_NAMES)
    assert len(arrays["x"]) == measure.n_stars >= 8
    assert arrays["channel_flux"].shape == (3, measure.n_stars)
    assert arrays["mesh"].shape == (3, 10, 8)
    assert np.isfinite(arrays["mesh"]).all()
    assert arrays["mesh_noise"].dtype == np.float32
    # 1024 pixels of red and blue a cell, twice as many of green.
    expected = arrays["noise"] / np.sqrt([1024, 2048, 1024])
    np.testing.assert_allclose(np.median(arrays["mesh_noise"], axis=(1, 2)), expected, rtol=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]


def test_what_was_measured_on_the_same_pixels_is_kept(frame, tmp_path, monkeypatch):
    """After a look at the pixels, when the file system says that this is another file."""
    target = str(tmp_path / "arrays.npz")
    measure = repr(measure_frame((frame, OPTIONS, target)))
    assert repr(stored_measure(frame, target)) == measure
    other = replace(frame, inode=frame.inode + 1)
    assert stored_measure(other, target) is None
    monkeypatch.setattr(measuring, "end_look", None)
    assert repr(measure_frame((other, OPTIONS, target))) == measure
    assert repr(stored_measure(other, target)) == measure


def test_a_header_rewritten_since_it_was_read_is_told(frame, tmp_path):
    path = tmp_path / "own.fit"
    shutil.copy(frame.path, path)
    info = read_frame_info(path)
    os.utime(path, (1e9, 1e9))
    assert not isinstance(measure_frame((info, OPTIONS, str(tmp_path / "a.npz"))), SkipItem)
    path.write_bytes(
        path.read_bytes().replace(b"EXPTIME =                 10.0", b"EXPTIME =                 20.0")
    )
    assert read_frame_info(path).exposure_s == 20.0
    skip = measure_frame((info, OPTIONS, str(tmp_path / "b.npz")))
    assert skip.key == "frame_changed"
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("factor", [1.0, 1 / 65535])
def test_a_frame_of_floats_is_measured_like_the_raw_one(frame, factor):
    data = read_image(frame)
    whole = measure_arrays(frame, data, OPTIONS)
    floats = data.astype(np.float32) * np.float32(factor)
    # A value that no camera gives, so that all are rounded.
    floats[0, 0] += np.float32(0.4 * factor)
    part = measure_arrays(frame, floats, OPTIONS)
    np.testing.assert_allclose(part["sky"] / factor, whole["sky"], atol=0.5)
    np.testing.assert_allclose(part["noise"] / factor, whole["noise"], rtol=0.02)
    np.testing.assert_allclose(part["mesh"] / factor, whole["mesh"], atol=2)
    near = cKDTree(np.c_[part["x"], part["y"]]).query(np.c_[whole["x"], whole["y"]])
    assert (near[0] < 0.05).mean() > 0.97
    same = (near[0] < 0.05) & (whole["snr"] > 50)
    ratio = part["channel_flux"][:, near[1][same]] / factor / whole["channel_flux"][:, same]
    np.testing.assert_allclose(np.nanmedian(ratio, axis=1), 1.0, atol=0.005)
    strong = whole["hot"][np.abs(whole["hot_sigma"]) > 9]
    assert np.isin(strong, part["hot"]).all()


def test_missing_pixels_of_frames_and_pictures_are_no_sky(frame):
    data = read_image(frame).astype(np.float32)
    holed = data.copy()
    holed[:, :130] = np.nan
    whole, part = measure_arrays(frame, data, OPTIONS), measure_arrays(frame, holed, OPTIONS)
    assert np.isnan(part["mesh"][:, :, :2]).all()
    np.testing.assert_array_equal(np.isnan(part["mesh_noise"]), np.isnan(part["mesh"]))
    np.testing.assert_allclose(part["mesh"][:, :, 3:], whole["mesh"][:, :, 3:], atol=0.7)
    assert (part["x"] > 130).all()
    picture = np.stack([data, 1.1 * data, 0.9 * data])
    picture[:, :, :130] = np.nan
    measured = measure_arrays(frame, picture, OPTIONS)
    assert np.isnan(measured["mesh"][:, :, :2]).all()
    assert np.isfinite(measured["mesh"][:, :, 3:]).all()
    assert (measured["x"] > 130).all()


def test_saturated_stars_of_a_picture_are_marked_whatever_its_scale(frame):
    data = np.minimum(read_image(frame), 6000)
    planes = np.stack([data, data // 2, data // 3])
    whole = measure_arrays(frame, planes, OPTIONS)
    assert 0 < whole["saturated"].sum() < len(whole["x"])
    np.testing.assert_allclose(whole["ceiling"][:, 0], [6000, 3000, 2000])
    scaled = measure_arrays(frame, planes / np.float32(65535), OPTIONS)
    np.testing.assert_array_equal(scaled["saturated"], whole["saturated"])


@pytest.mark.parametrize("said", [{"stack_count": 9}, {"given_as_stack": True}], ids=["counted", "given"])
def test_stars_of_a_coarse_stack_are_no_hot_pixels(frame, said):
    """A stack of pixels twice as wide has the same stars, with the same light per area of the sky."""
    sky = make_sky((10.6, 41.2), 0.9, seed=4, stars_per_deg2=300.0)
    shape = (400, 400)
    light = render_ideal(
        sky, FrameSetup(tan_cards(10.6, 41.2, rotation_deg=0.0, shape_hw=shape), shape, fwhm_px=2.6)
    )
    fine = (light + np.random.default_rng(1).normal(500, 4, light.shape)).astype(np.float32)
    coarse = fine.reshape(3, 200, 2, 200, 2).mean(axis=(2, 4))
    stack = replace(frame, kind="rgb", **said)
    a, b = (measure_arrays(replace(stack, shape_hw=p.shape[1:]), p, OPTIONS) for p in (fine, coarse))
    place = np.column_stack([b["x"], b["y"]]) * 2 + 0.5
    distance, nearest = cKDTree(np.column_stack([a["x"], a["y"]])).query(place)
    same = distance < 1.0
    assert same.sum() > 0.5 * len(a["x"])
    bright = same & (b["snr"] > 30)
    ratio = 4 * b["channel_flux"][1][bright] / a["channel_flux"][1][nearest[bright]]
    assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.03)


def test_where_light_was_cut_off_is_found_in_the_data(frame):
    data = read_image(frame)
    assert not measure_arrays(frame, np.minimum(data, 60000), OPTIONS)["saturated"].all()
    cut = measure_arrays(frame, np.minimum(data, 6000), OPTIONS)
    assert 0 < cut["saturated"].sum() < len(cut["x"])
    assert (cut["ceiling"][:, 0] == 6000).all()
    scaled = measure_arrays(frame, np.minimum(data, 6000) / np.float32(7.3), OPTIONS)
    np.testing.assert_allclose(scaled["ceiling"][:, 0], 6000 / 7.3, rtol=1e-3)
    np.testing.assert_array_equal(scaled["ceiling"][:, 2] >= 3, True)


@pytest.mark.skipif(not UNDERSAMPLED.is_dir(), reason="the real frames are not beside the project")
def test_sharp_stars_of_a_real_mono_camera_are_kept():
    import sep

    found, plain = [], []
    for path in sorted(UNDERSAMPLED.glob("*.FITS"))[:2]:
        info = read_frame_info(path)
        data = read_image(info)
        found.append(measure_arrays(info, data, replace(OPTIONS, max_stars=5000)))
        image = data.astype(np.float32)
        sky = sep.Background(image)
        rows = sep.extract(image - sky.back(), 4.0, err=sky.globalrms, minarea=3)
        light, error, _ = sep.sum_circle(image - sky.back(), rows["x"], rows["y"], 2.5, err=sky.globalrms)
        inside = (np.abs(rows["x"] - 325) < 315) & (np.abs(rows["y"] - 250) < 240) & (light > 10 * error)
        plain.append(np.c_[rows["x"], rows["y"]][inside])
    # Between the frames the field drifted by 65 to 136 px: what both show at the same place of the sky is a star.
    shift = _drift(*plain)
    stars = plain[0][cKDTree(plain[1]).query(plain[0] + shift)[0] < 1.0]
    assert len(stars) > 500
    distance, _ = cKDTree(np.c_[found[0]["x"], found[0]["y"]]).query(stars)
    assert (distance < 1.2).mean() >= 0.95
    assert np.isin(4095, found[0]["ceiling"][:, 0])


def _drift(first, second):
    """The shift that most pairs of two lists have in common."""
    steps = (second[:, None] - first[None]).reshape(-1, 2)
    steps = steps[np.abs(steps).max(axis=1) < 160]
    cells, counts = np.unique(np.round(steps), axis=0, return_counts=True)
    best = cells[np.argmax(counts)]
    return np.median(steps[np.abs(steps - best).max(axis=1) < 1.5], axis=0)


def test_a_frame_without_stars_is_skipped_with_its_reason(tmp_path):
    from astropy.io import fits

    path = tmp_path / "flat.fit"
    header = fits.Header({"BAYERPAT": "GRBG"})
    flat = np.random.default_rng(0).normal(900, 30, (300, 200)).astype(np.uint16)
    fits.writeto(path, flat, header)
    skip = measure_frame((read_frame_info(path), OPTIONS, str(tmp_path / "a.npz")))
    assert isinstance(skip, SkipItem)
    # As even and as grey as behind a closed shutter.
    assert skip.key == "frame_dark_content"
    assert not (tmp_path / "a.npz").exists()


def test_measuring_processes_import_no_more_than_they_need(frame):
    task = pickle.dumps((measure_frame, (frame, OPTIONS, "nowhere.npz")))
    code = (
        "import pickle, sys; import zemosaic_pipeline.child; "
        f"pickle.loads({task!r}); "
        "print(*{name.partition('.')[0] for name in sys.modules}, 'scipy.ndimage' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "numba" in loaded
    assert "False" in loaded
    heavy = {
        "astropy",
        "pydantic",
        "PIL",
        "PySide6",
        "zemosaic_settings",
        "zemosaic_gpu_policy",
        "zemosaic_utils",
    }
    assert not heavy & loaded


def stored(tmp_path, **changes):
    """Store what a measured frame stores, some of it changed, and return what the next run reads."""
    n = 12
    arrays = {name: np.ones(n, np.float32) for name in STAR_COLUMNS}
    arrays |= {
        "channel_flux": np.ones((3, n), np.float32), "sky": np.ones(3, np.float32), "noise": np.ones(3, np.float32),
        "mesh": np.ones((3, 4, 5), np.float32), "mesh_noise": np.ones((3, 4, 5), np.float32),
        "hot": np.arange(2), "hot_sigma": np.ones(2, np.float32), "ceiling": np.ones((3, 4)),
        "row_sums": np.ones((1, 30), np.uint32), "streaks": np.zeros((0, 5), np.float32),
        "zero_share": np.zeros(1, np.float32),
    }  # fmt: skip
    record = {
        "content_key": "ab", "sky_adu": [1.0, 2.0, 3.0], "noise_adu": [1.0, 2.0, 3.0], "n_stars": n, "fwhm_px": 2.5,
        "elongation": 1.1, "transparency": float("nan"), "zero_is_missing": False, "file_state": [1, 2],
    }  # fmt: skip
    for name, value in changes.items():
        (arrays if name in arrays else record)[name] = value
    path = tmp_path / "key.npz"
    save_sealed(path, "key", record, {name: array for name, array in arrays.items() if array is not None})
    return stored_measure(SimpleNamespace(ctime_ns=1, inode=2), str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"content_key": None, "sky_adu": 5},
        {"sky_adu": ["x", None, 2]},
        {"sky_adu": [1.0]},
        {"n_stars": "many"},
        {"n_stars": 11},
        {"n_stars": float("inf")},
        {"fwhm_px": [2.5]},
        {"file_state": None},
        {"file_state": [1, 3]},
        {"x": np.ones((12, 2), np.float32)},
        {"flux": np.array(["a"] * 12)},
        {"channel_flux": np.ones((1, 12), np.float32)},
        {"mesh_noise": np.ones((3, 4, 4), np.float32)},
        {"mesh": np.float32(1)},
        {"hot_sigma": np.ones(3, np.float32)},
        {"ceiling": np.ones(4)},
        {"row_sums": None},
    ],
    ids=lambda change: " ".join(change),
)
def test_stored_measurements_that_do_not_fit_together_do_not_exist(tmp_path, change):
    whole = stored(tmp_path)
    assert (whole.n_stars, whole.sky_adu, whole.was_stored) == (12, (1.0, 2.0, 3.0), True)
    assert stored(tmp_path, **change) is None
