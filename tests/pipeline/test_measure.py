from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zemosaic_core.errors import SkipItem
from zemosaic_io.demo_session import write_demo_night
from zemosaic_io.fits_read import content_key
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import measure as measuring
from zemosaic_pipeline.measure import ARRAY_NAMES, MeasureOptions, measure_frame, stored_measure

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
    monkeypatch.setattr(measuring, "measure_arrays", None)
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


def test_a_frame_without_stars_is_skipped_with_its_reason(tmp_path):
    from astropy.io import fits

    path = tmp_path / "flat.fit"
    header = fits.Header({"BAYERPAT": "GRBG"})
    flat = np.random.default_rng(0).normal(900, 30, (300, 200)).astype(np.uint16)
    fits.writeto(path, flat, header)
    skip = measure_frame((read_frame_info(path), OPTIONS, str(tmp_path / "a.npz")))
    assert isinstance(skip, SkipItem)
    assert skip.key == "frame_too_few_stars"
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
