from __future__ import annotations

import errno
import os
import stat

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.errors import SaveFailed
from zemosaic_io.atomic import make_durable
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits, atomic_path, write_image


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def wcs_cards():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [10.0, 20.0], [5.5, 6.5], [-1e-3, 1e-3]
    return wcs, {k: (v, c) for k, v, c in wcs.to_header().cards}


def test_rows_in_blocks_make_the_same_file_as_one_write(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(1000, 50, (3, 23, 17)).astype(np.float32)
    image[:, 4:6, :3] = np.nan
    coverage = rng.integers(0, 65536, (23, 17), dtype=np.uint16)
    weight = rng.random((23, 17)).astype(np.float32)
    wcs, cards = wcs_cards()
    specs = [
        ExtensionSpec("COVERAGE", (23, 17), "uint16", (("BUNIT", "count"),)),
        ("WEIGHT", (23, 17), "float32"),
    ]
    path = tmp_path / "sub" / "mosaic.fits"
    with StreamingFits(path, image.shape, cards, extensions=specs) as file:
        for y0 in range(0, 23, 5):
            rows = slice(y0, y0 + 5)
            file.write_rows(y0, image[:, rows])
            file.write_rows(y0, coverage[rows], ext="COVERAGE")
            file.write_rows(y0, weight[rows], ext="WEIGHT")
        assert not path.exists()
        assert file.commit() == path
    assert leftovers(path.parent) == ["mosaic.fits"]
    with fits.open(path) as hdus:
        hdus.verify("exception")
        np.testing.assert_array_equal(hdus[0].data, image)
        assert hdus[0].header["BITPIX"] == -32
        assert hdus["COVERAGE"].data.dtype == np.uint16
        np.testing.assert_array_equal(hdus["COVERAGE"].data, coverage)
        assert hdus["COVERAGE"].header["BUNIT"] == "count"
        np.testing.assert_array_equal(hdus["WEIGHT"].data, weight)
        again = WCS(hdus[0].header).celestial
    np.testing.assert_allclose(again.pixel_to_world_values(1, 2), wcs.pixel_to_world_values(1, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", "uint16", "int32"])
def test_every_type_comes_back(tmp_path, dtype):
    data = (np.random.default_rng(1).random((5, 8)) * 200).astype(dtype)
    write_image(tmp_path / "x.fits", data)
    with fits.open(tmp_path / "x.fits") as hdus:
        hdus.verify("exception")
        assert hdus[0].data.dtype.name == dtype
        np.testing.assert_array_equal(hdus[0].data, data)


def test_float_rows_into_an_integer_image_are_rounded_and_clipped(tmp_path):
    with StreamingFits(tmp_path / "x.fits", (1, 5), dtype="uint16") as file:
        file.write_rows(0, np.array([[-3.0, 1.5, 2.4, 70000.0, np.nan]]))
        file.commit()
    with fits.open(tmp_path / "x.fits") as hdus:
        np.testing.assert_array_equal(hdus[0].data, [[0, 2, 2, 65535, 0]])


def test_cards_of_every_kind(tmp_path):
    cards = [
        ("OBJECT", "M 94 é"),
        ("NAXIS1", 999),
        ("LONGTEXT", "x" * 150),
        ("NUMBER", np.float32(1.5), "a number"),
        ("BAD", float("nan")),
        ("HISTORY", "first"),
        ("HISTORY", "second"),
    ]
    write_image(tmp_path / "x.fits", np.zeros((2, 3), np.float32), cards)
    header = fits.getheader(tmp_path / "x.fits")
    assert header["OBJECT"] == "M 94 ?"
    assert header["NAXIS1"] == 3
    assert header["LONGTEXT"] == "x" * 150
    assert (header["NUMBER"], header.comments["NUMBER"]) == (1.5, "a number")
    assert header["BAD"] is None
    assert list(header["HISTORY"]) == ["first", "second"]


def test_without_commit_nothing_appears_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x.fits"
    path.write_text("old")

    def fail_in_the_middle():
        with StreamingFits(path, (4, 4)) as file:
            file.write_rows(0, np.zeros((2, 4), np.float32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    with StreamingFits(path, (4, 4)) as file:
        file.write_rows(0, np.zeros((2, 4), np.float32))
        with pytest.raises(SaveFailed) as caught:
            file.commit()
    assert caught.value.key == "save_incomplete"
    assert caught.value.values["missing"] == 2
    assert leftovers(tmp_path) == ["x.fits"]
    assert path.read_text() == "old"


def test_rows_that_do_not_fit_are_refused(tmp_path):
    with StreamingFits(tmp_path / "x.fits", (3, 4, 5)) as file:
        for y0, shape in [(0, (3, 1, 4)), (0, (2, 1, 5)), (3, (3, 2, 5)), (0, (1, 5))]:
            with pytest.raises(ValueError, match=r"rows"):
                file.write_rows(y0, np.zeros(shape, np.float32))


def test_folder_that_cannot_be_made_is_save_failed(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    for action in (
        lambda: StreamingFits(blocker / "x.fits", (4, 4)),
        lambda: write_image(blocker / "x.fits", np.zeros((2, 2), np.float32)),
    ):
        with pytest.raises(SaveFailed) as caught:
            action()
        assert caught.value.key == "save_failed"
        assert caught.value.values["path"].endswith("x.fits")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_save_failed(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    with pytest.raises(SaveFailed):
        StreamingFits(locked / "x.fits", (4, 4))


def test_full_disk_is_save_failed_at_the_start(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SaveFailed, match="No space left"):
        StreamingFits(tmp_path / "x.fits", (4, 4))
    assert leftovers(tmp_path) == []


def test_full_device_while_writing(tmp_path):
    """A write that fails in the middle is reported and leaves nothing behind."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "r+b", buffering=0) as full:
        file = StreamingFits(tmp_path / "x.fits", (4, 4))
        file._file.close()
        file._file = full
        with pytest.raises(SaveFailed):
            file.write_rows(0, np.zeros((4, 4), np.float32))
        file.abort()
    assert leftovers(tmp_path) == []


def test_atomic_path(tmp_path):
    target = tmp_path / "a" / "x.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"

    def fail_in_the_middle():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_the_middle()
    with pytest.raises(SaveFailed), atomic_path(target):
        raise OSError(errno.ENOSPC, "full")
    assert target.read_text() == "new"
    assert leftovers(target.parent) == ["x.txt"]


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
@pytest.mark.parametrize("how", ["path", "stream", "later"])
def test_bytes_reach_the_disk_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch, how):
    steps = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        return real_sync(handle)

    def replace(source, target):
        steps.append("name")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    if how == "stream":
        write_image(tmp_path / "x.fits", np.zeros((2, 2), np.float32))
        assert steps == ["file", "name", "folder"]
        return
    for name in "ab":
        with atomic_path(tmp_path / name, durable=how == "path") as temporary:
            temporary.write_text(name)
    if how == "path":
        assert steps == ["file", "name", "folder"] * 2
    else:
        make_durable([tmp_path / "a", tmp_path / "b", tmp_path / "gone"])
        # One look at the folder is enough for all.
        assert steps == ["name", "name", "file", "file", "folder"]


def test_a_disk_that_tells_last_that_it_is_full_is_heard(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")

    def sync(_handle):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", sync)
    error = errno.ENOSPC
    with pytest.raises(SaveFailed, match=r"/a could not be written"):
        make_durable([tmp_path / "a"])
    # A file system that knows no such thing loses nothing by it.
    error = errno.EINVAL
    make_durable([tmp_path / "a"])
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_text("b")
    assert (tmp_path / "b").read_text() == "b"
