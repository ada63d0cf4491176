"""What a tile-compressed image declares is held against the file before memory is asked for."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.fits_read import read_identified
from zemosaic_io.headers import read_frame_info

CARD = 80
KINDS = ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1")


def packed(path: Path, kind: str = "RICE_1", data: np.ndarray | None = None, **options) -> Path:
    if data is None:
        data = np.random.default_rng(1).normal(1000, 30, (60, 80)).astype(np.uint16)
    unit = fits.CompImageHDU(data, compression_type=kind, **options)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    return path


def set_card(path: Path, key: str, value: object) -> None:
    """Overwrite a card of the compressed unit, or one nobody needs when it is not there."""
    content = bytearray(path.read_bytes())
    start = content.find(f"{key:8}=".encode(), 2880)
    if start < 0:
        start = content.find(b"EXTNAME =", 2880)
    content[start : start + CARD] = f"{key:8}= {value:>20}".encode().ljust(CARD)
    path.write_bytes(content)


def reason(path: Path) -> str:
    with pytest.raises(SkipItem) as skip:
        read_identified(read_frame_info(path))
    assert skip.value.values["path"] == str(path)
    assert skip.value.key == "frame_bad_header"
    return str(skip.value.values["reason"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [None, (20, 80), (33, 31)])
def test_sound_files_are_read(tmp_path, kind, tile):
    data = np.random.default_rng(2).normal(1000, 30, (60, 80)).astype(np.uint16)
    path = packed(tmp_path / "a.fits.fz", kind, data, tile_shape=tile)
    np.testing.assert_array_equal(read_identified(read_frame_info(path)).data, data)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_the_densest_picture_there_is_passes(tmp_path, kind):
    path = packed(tmp_path / "a.fits.fz", kind, np.zeros((3000, 3000), np.uint16), tile_shape=(1000, 3000))
    assert not read_identified(read_frame_info(path)).data.any()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ZNAXIS1", 2_000_000_000),
        ("ZNAXIS2", 61),
        ("ZTILE1", 0),
        ("ZTILE2", -1),
        ("ZTILE1", "'x'"),
        ("THEAP", 5),
        ("THEAP", 2**40),
        ("TFORM1", "'9999999QB'"),
        ("TFORM1", "'zzz'"),
        ("TTYPE1", "'OTHER'"),
        ("NAXIS2", 59),
    ],
)
def test_what_cannot_be_true_costs_no_memory(tmp_path, key, value):
    path = packed(tmp_path / "a.fits.fz")
    set_card(path, key, value)
    tracemalloc.start()
    assert reason(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "place", [(2**31 - 1, 0), (-1, 0), (10, 2**31 - 1), (10, -5), (2**31 - 1, 2**31 - 1)]
)
def test_tiles_outside_the_file(tmp_path, place):
    path = packed(tmp_path / "a.fits.fz")
    offset = [hdu for hdu in iter_hdus(path)][1].data_offset
    content = bytearray(path.read_bytes())
    content[offset + 16 : offset + 24] = np.array(place, ">i4").tobytes()
    path.write_bytes(content)
    assert "outside" in reason(path)


def test_a_tile_that_inflates_without_end(tmp_path):
    """58 kB that inflate to 60 MB where at most 4 MB were promised."""
    bomb = gzip.compress(bytes(60_000_000))
    data = np.random.default_rng(1).integers(0, 65535, (600, 800), dtype=np.uint16)
    path = packed(tmp_path / "a.fits.fz", "GZIP_1", data, tile_shape=(600, 800))
    hdu = [hdu for hdu in iter_hdus(path)][1]
    content = bytearray(path.read_bytes())
    heap = hdu.data_offset + int(hdu.cards["NAXIS1"])
    assert len(bomb) < 600 * 800
    content[heap : heap + len(bomb)] = bomb
    path.write_bytes(content)
    tracemalloc.start()
    assert "inflates" in reason(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_text_that_goes_on_and_on_is_joined_once(tmp_path):
    """A quarter of a million pieces: joined one by one they would take hours."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
             "NAXIS1  =                    4", "NAXIS2  =                    4", "OBJECT  = 'a&'"]  # fmt: skip
    pieces = "".join(card.ljust(CARD) for card in cards) + "CONTINUE  'xyz&'".ljust(CARD) * 250_000
    text = pieces + "END".ljust(CARD)
    path = tmp_path / "a.fits"
    path.write_bytes(text.ljust(-(-len(text) // 2880) * 2880).encode() + bytes(2880))
    (hdu,) = iter_hdus(path)
    assert hdu.cards["OBJECT"] == "a" + "xyz" * 249_999 + "xyz&"
