"""Frames packed with gzip: the same pixels as the plain file, read piece by piece."""

from __future__ import annotations

import gzip
import pickle
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io import fits_read
from zemosaic_io.fits_read import content_key, read_identified, read_image, read_window, unpack_pixels
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.headers import read_frame_info
from zemosaic_io.unpacked_frames import UnpackedFrames


@pytest.fixture
def both(write_cfa, tmp_path):
    """Header facts of a plain frame and of the same file packed."""
    path, _ = write_cfa(shape=(50, 64))
    packed = tmp_path / "frame.fit.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return read_frame_info(path), read_frame_info(packed)


def test_header_and_pixels_are_those_of_the_plain_file(both):
    plain, packed = both
    own = ("path", "size_bytes", "mtime_ns", "ctime_ns", "inode", "packed")
    assert replace(packed, **{name: getattr(plain, name) for name in own}) == plain
    assert packed.packed
    np.testing.assert_array_equal(read_image(packed), read_image(plain))
    np.testing.assert_array_equal(read_window(packed, 7, 31, 2, 40), read_window(plain, 7, 31, 2, 40))
    assert content_key(packed) == content_key(plain)
    one, other = read_identified(packed), read_identified(plain)
    assert one.content_key == other.content_key
    np.testing.assert_array_equal(one.row_sums, other.row_sums)


@pytest.mark.parametrize("axes", ["chw", "hwc"])
def test_three_planes(tmp_path, axes):
    data = (
        np.random.default_rng(0)
        .normal(0, 1, (3, 20, 30) if axes == "chw" else (20, 30, 3))
        .astype(np.float32)
    )
    for name in ("a.fits", "b.fits.gz"):
        fits.PrimaryHDU(data).writeto(tmp_path / name)
    plain, packed = (read_frame_info(tmp_path / name) for name in ("a.fits", "b.fits.gz"))
    np.testing.assert_array_equal(read_window(packed, 3, 17, 4, 9), read_window(plain, 3, 17, 4, 9))


def test_a_store_unpacks_each_frame_once(both, tmp_path, monkeypatch):
    plain, packed = both
    calls = []
    monkeypatch.setattr(
        "zemosaic_io.unpacked_frames.unpack_pixels", lambda *args: calls.append(args) or unpack_pixels(*args)
    )
    sums = {0: read_identified(plain).row_sums}
    one = FrameStore({0: plain}, row_sums=sums)
    other = FrameStore({0: packed}, row_sums=sums, unpack_dir=tmp_path / "scratch")
    as_it_comes = FrameStore({0: packed}, row_sums=sums)
    for rows in ((0, 20), (11, 50)):
        expected = one.read(0, *rows, 3, 60)
        for store in (other, as_it_comes):
            np.testing.assert_array_equal(store.read(0, *rows, 3, 60), expected)
            np.testing.assert_array_equal(store.read_raw(0, *rows).data, one.read_raw(0, *rows).data)
    assert len(calls) == 1
    # A frame that changed is named by its own name.
    sums[0] = sums[0] + np.uint32(1)
    changed = FrameStore({0: packed}, row_sums=sums, unpack_dir=tmp_path / "scratch")
    with pytest.raises(SkipItem) as skip:
        changed.read(0, 0, 10, 0, 64)
    assert skip.value.values["path"] == str(packed.path)


def test_stores_share_what_is_unpacked_as_long_as_there_is_room(both, tmp_path, monkeypatch):
    _, packed = both
    calls = []
    monkeypatch.setattr(
        "zemosaic_io.unpacked_frames.unpack_pixels", lambda *args: calls.append(args) or unpack_pixels(*args)
    )
    folder = tmp_path / "shared"
    room = shutil.disk_usage(tmp_path).free
    full = UnpackedFrames(folder, keep_free_bytes=room * 2)
    assert full.of(0, packed) == packed
    first, second = UnpackedFrames(folder, keep_free_bytes=1), UnpackedFrames(folder, keep_free_bytes=1)
    unpacked = first.of(0, packed)
    assert pickle.loads(pickle.dumps(second)).of(0, packed) == unpacked
    assert len(calls) == 1
    np.testing.assert_array_equal(read_image(unpacked), read_image(packed))
    # Another frame with the same number is another one.
    other = replace(packed, mtime_ns=packed.mtime_ns + 1)
    assert first.of(1, other).path != second.of(1, packed).path
    # What somebody removed is unpacked again.
    unpacked.path.unlink()
    np.testing.assert_array_equal(read_image(first.of(0, packed)), read_image(packed))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damage_is_the_end_of_one_frame_only(both, damage):
    _, packed = both
    content = bytearray(packed.path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        middle = len(content) // 2
        content[middle : middle + 40] = bytes(40)
    else:
        content = content[:2]
    packed.path.write_bytes(content)
    with pytest.raises(SkipItem, match=r"frame\.fit\.gz"):
        read_identified(read_frame_info(packed.path))


def test_no_more_is_unpacked_than_is_needed(tmp_path):
    """A file of a few kilobytes may hold gigabytes behind its image."""
    header = fits.PrimaryHDU(np.zeros((100, 100), np.uint16))
    header.writeto(tmp_path / "plain.fits")
    path = tmp_path / "frame.fits.gz"
    with gzip.open(path, "wb") as file:
        file.write((tmp_path / "plain.fits").read_bytes())
        for _ in range(64):
            file.write(bytes(1 << 20))
    # What compiling takes, where nothing was read before, is no matter of this file.
    fits_read.read_identified(read_frame_info(tmp_path / "plain.fits"))
    tracemalloc.start()
    info = read_frame_info(path)
    fits_read.read_identified(info)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
