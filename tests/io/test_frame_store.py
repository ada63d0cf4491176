from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.cfa import CfaColour, debayer
from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.hot_pixels import repair_cfa, repair_mono
from zemosaic_core.scratch import Scratch
from zemosaic_core.weights import make_radial_weight_map
from zemosaic_io.calibration_sets import CalibrationSet, save_set
from zemosaic_io.fits_write import write_image
from zemosaic_io.frame_store import FrameStore, TileStore
from zemosaic_io.headers import read_frame_info

HOT = np.array([0, 31, 5 * 30 + 7, 5 * 30 + 9, 7 * 30 + 7, 12 * 30 + 29, 19 * 30 + 15, 19 * 30 + 29])
# All nearest neighbours of the same colour are bad: the repair of (10, 15) reaches 4 px far.
CLUSTER = np.array([(10 + dy) * 30 + 15 + dx for dy in (-2, 0, 2) for dx in (-2, 0, 2)])
COLOUR = CfaColour((20000.0, 25000.0, 22000.0), (900.0, 800.0, 700.0), (0.8, 1.0, 0.6))
WINDOWS = [
    (0, 20, 0, 30),
    (5, 6, 7, 8),
    (3, 12, 1, 29),
    (13, 20, 10, 30),
    (0, 1, 0, 1),
    (4, 9, 6, 11),
    (19, 20, 29, 30),
]


@pytest.mark.parametrize("pattern", ["GRBG", "RGGB", "GBRG", "BGGR"])
@pytest.mark.parametrize("hot", [None, HOT, CLUSTER])
@pytest.mark.parametrize("colour", [None, COLOUR])
def test_window_equals_the_same_window_of_the_whole_frame(write_cfa, pattern, hot, colour):
    path, data = write_cfa(BAYERPAT=pattern)
    colours = {} if colour is None else {5: colour}
    store = FrameStore({5: read_frame_info(path)}, {} if hot is None else {5: hot}, colours=colours)
    whole = debayer(data if hot is None else repair_cfa(data, hot), pattern, colour=colour)
    for y0, y1, x0, x1 in WINDOWS:
        window = store.read(5, y0, y1, x0, x1)
        assert window.dtype == np.float32
        assert window.flags.c_contiguous
        np.testing.assert_array_equal(window, whole[:, y0:y1, x0:x1])


def test_what_is_lent_holds_the_columns_that_are_wanted(write_cfa):
    path, data = write_cfa()
    store = FrameStore({3: read_frame_info(path)}, {3: HOT}, colours={3: COLOUR})
    whole = debayer(repair_cfa(data, HOT), "GRBG", colour=COLOUR)
    columns = np.array([[0, 4], [2, 9], [0, 0], [7, 12]])
    with store.lend(Scratch(), 3, 6, 10, 11, 23, columns=columns) as (planes, (top, left)):
        for row, (first, last) in enumerate(columns):
            lent = planes[:, 6 + row - top, 11 + first - left : 11 + last - left]
            np.testing.assert_array_equal(lent, whole[:, 6 + row, 11 + first : 11 + last])


def test_unsorted_hot_pixels_and_frames_without_any(write_cfa):
    path, data = write_cfa()
    store = FrameStore({0: read_frame_info(path), 1: read_frame_info(path)}, {0: HOT[::-1]})
    np.testing.assert_array_equal(store.read(0, 0, 20, 0, 30), debayer(repair_cfa(data, HOT), "GRBG"))
    np.testing.assert_array_equal(store.read(1, 0, 20, 0, 30), debayer(data, "GRBG"))


def test_raw_rows_carry_their_hot_pixels(write_cfa):
    path, data = write_cfa()
    store = FrameStore({0: read_frame_info(path)}, {0: HOT}, colours={0: COLOUR})
    raw = store.read_raw(0, 5, 8)
    assert raw.colour == COLOUR
    np.testing.assert_array_equal(raw.hot_pixels, [5 * 30 + 7, 5 * 30 + 9, 7 * 30 + 7])
    np.testing.assert_array_equal(raw.data.byteswap() ^ 0x8000, data[5:8])
    assert (raw.y0, raw.pattern) == (5, "GRBG")


@pytest.fixture
def calibration(tmp_path):
    """What a frame of 20 x 30 is calibrated with, and its file."""
    rng = np.random.default_rng(3)
    made = CalibrationSet(
        rng.normal(500, 5, (20, 30)).astype(np.float32),
        rng.uniform(0.9, 1.4, (20, 30)).astype(np.float32),
        np.array([7, 40]),
        2.0,
        1e-5,
        "DF",
    )
    path = tmp_path / "0123.npz"
    save_set(path, made)
    return made, str(path)


@pytest.mark.parametrize("hot", [None, HOT, CLUSTER])
@pytest.mark.parametrize("suffix", ["fit", "fit.fz"])
def test_frames_are_calibrated_before_anything_else(write_cfa, tmp_path, calibration, hot, suffix):
    made, used = calibration
    path, data = write_cfa()
    if suffix.endswith("fz"):
        header = fits.getheader(path)
        path = tmp_path / "packed.fit.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, header)]).writeto(path)
    store = FrameStore(
        {0: read_frame_info(path), 1: read_frame_info(path)},
        {} if hot is None else dict.fromkeys((0, 1), hot),
        colours={0: COLOUR},
        calibrations={0: used},
    )
    samples = (data.astype(np.float32) - made.offset) * made.inverse_flat
    whole = debayer(samples if hot is None else repair_cfa(samples, hot), "GRBG", colour=COLOUR)
    for y0, y1, x0, x1 in WINDOWS:
        np.testing.assert_array_equal(store.read(0, y0, y1, x0, x1), whole[:, y0:y1, x0:x1])
    plain = debayer(data if hot is None else repair_cfa(data, hot), "GRBG")
    np.testing.assert_array_equal(store.read(1, 0, 20, 0, 30), plain)
    raw = store.read_raw(0, 5, 8)
    if suffix.endswith("fz"):
        assert raw is None
    else:
        assert not raw.big_endian_signed
        np.testing.assert_array_equal(raw.data, samples[5:8])
        assert raw.data.dtype == np.float32
    again = store.calibration_of(0)
    assert (again.steps, again.offset_variance, again.flat_variance) == ("DF", 2.0, 1e-5)
    assert again.variance_at(100.0) == pytest.approx(2.1)
    assert store.calibration_of(1) is None


def test_calibrated_mono_frames(write_cfa, calibration):
    made, used = calibration
    path, data = write_cfa(BAYERPAT=None, INSTRUME="A mono camera")
    store = FrameStore({0: read_frame_info(path)}, {0: HOT}, calibrations={0: used})
    samples = repair_mono((data.astype(np.float32) - made.offset) * made.inverse_flat, HOT)
    for y0, y1, x0, x1 in WINDOWS:
        np.testing.assert_array_equal(store.read(0, y0, y1, x0, x1), samples[None, y0:y1, x0:x1])
    assert store.read_raw(0, 0, 5) is None


def test_a_set_that_is_gone_or_damaged_ends_the_run(write_cfa, calibration):
    _, used = calibration
    path, _ = write_cfa()
    Path(used).write_bytes(Path(used).read_bytes()[:-5])
    store = FrameStore({0: read_frame_info(path)}, calibrations={0: used})
    with pytest.raises(RunFailed, match="damaged or removed"):
        store.read(0, 0, 5, 0, 5)


def test_planes_and_mono(tmp_path, write_cfa):
    rgb = np.random.default_rng(0).normal(100, 3, (3, 20, 30)).astype(np.float32)
    rgb[1, 4, 5], rgb[2, 6, 7] = np.inf, np.nan
    fits.PrimaryHDU(rgb).writeto(tmp_path / "rgb.fits")
    mono_path, mono = write_cfa("mono.fit", BAYERPAT=None, INSTRUME="x")
    store = FrameStore({0: read_frame_info(tmp_path / "rgb.fits"), 1: read_frame_info(mono_path)})
    window = store.read(0, 2, 10, 3, 20)
    np.testing.assert_array_equal(window, np.where(np.isfinite(rgb), rgb, np.nan)[:, 2:10, 3:20])
    np.testing.assert_array_equal(store.read(1, 2, 10, 3, 20), mono[None, 2:10, 3:20].astype(np.float32))
    assert store.read_raw(0, 0, 5) is None
    assert store.read_weight(0, 0, 5, 0, 5) is None


def test_compressed_frame(tmp_path):
    data = np.random.default_rng(1).integers(0, 65536, (40, 30), dtype=np.uint16)
    path = tmp_path / "p.fits.fz"
    unit = fits.CompImageHDU(data, fits.Header([("BAYERPAT", "RGGB")]), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    store = FrameStore({0: read_frame_info(path)})
    np.testing.assert_array_equal(store.read(0, 11, 23, 4, 9), debayer(data, "RGGB")[:, 11:23, 4:9])


def test_radial_weights(write_cfa):
    path, _ = write_cfa()
    store = FrameStore({0: read_frame_info(path)}, radial=(0.8, 2.0, 0.05))
    np.testing.assert_array_equal(
        store.read_weight(0, 3, 9, 4, 20), make_radial_weight_map(20, 30, 0.8, 2.0, 0.05)[3:9, 4:20]
    )


def test_many_threads_see_the_same_pixels(write_cfa):
    infos, whole = {}, {}
    for key in range(4):
        path, data = write_cfa(f"{key}.fit", seed=key)
        infos[key] = read_frame_info(path)
        whole[key] = debayer(repair_cfa(data, HOT), "GRBG")
    store = FrameStore(infos, dict.fromkeys(infos, HOT), radial=(0.8, 2.0, 0.05))
    jobs = [(key, y) for _ in range(20) for key in infos for y in range(0, 20, 5)]

    def check(job):
        key, y = job
        store.read_weight(key, y, y + 5, 0, 30)
        return np.array_equal(store.read(key, y, y + 5, 2, 28), whole[key][:, y : y + 5, 2:28])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, jobs))


@pytest.fixture
def tile(tmp_path):
    rng = np.random.default_rng(2)
    image = rng.normal(1000, 30, (3, 25, 40)).astype(np.float32)
    image[:, :3] = np.nan
    coverage = rng.integers(0, 40, (25, 40), dtype=np.uint16)
    weight = rng.random((25, 40)).astype(np.float32)
    variance = rng.random((3, 25, 40)).astype(np.float32)
    path = tmp_path / "tile.fits"
    extensions = [("COVERAGE", coverage), ("WEIGHT", weight), ("VARIANCE", variance)]
    write_image(path, image, {"OBJECT": "M 94"}, extensions)
    return path, image, coverage, weight, variance


def test_tiles(tile):
    path, image, coverage, weight, variance = tile
    store = TileStore({3: path})
    assert (store.shape_hw(3), store.n_channels(3), store.cards(3)["OBJECT"]) == ((25, 40), 3, "M 94")
    window = store.read(3, 2, 20, 5, 31)
    assert window.dtype == np.float32
    assert window.dtype.isnative
    np.testing.assert_array_equal(window, image[:, 2:20, 5:31])
    np.testing.assert_array_equal(store.read_weight(3, 2, 20, 5, 31), weight[2:20, 5:31])
    np.testing.assert_array_equal(store.read_coverage(3, 2, 20), coverage[2:20])
    np.testing.assert_array_equal(store.read_variance(3, 2, 20, 5, 31), variance[:, 2:20, 5:31])
    assert store.read_raw(3, 0, 5) is None


def test_tile_without_extensions(tmp_path):
    image = np.arange(20.0, dtype=np.float32).reshape(4, 5)
    image[0, 0] = np.nan
    write_image(tmp_path / "t.fits", image)
    store = TileStore({0: tmp_path / "t.fits"})
    assert store.n_channels(0) == 1
    assert store.read_weight(0, 0, 4, 0, 5) is None
    assert store.read_variance(0, 0, 4, 0, 5) is None
    np.testing.assert_array_equal(store.read_coverage(0, 0, 4), np.isfinite(image))


def test_broken_tiles_are_named(tmp_path, tile):
    path = tile[0]
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 6000)
    with pytest.raises(SkipItem) as caught:
        TileStore({0: path})
    assert caught.value.key == "frame_truncated"
    write_image(
        tmp_path / "odd.fits", np.zeros((4, 5), np.float32), (), [("WEIGHT", np.zeros((4, 6), np.float32))]
    )
    with pytest.raises(SkipItem) as caught:
        TileStore({0: tmp_path / "odd.fits"})
    assert caught.value.key == "tile_wrong_shape"
