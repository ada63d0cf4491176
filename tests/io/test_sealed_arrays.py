from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import pytest

from zemosaic_io.sealed_arrays import load_sealed, save_sealed

ARRAYS = {"x": np.arange(7.0), "hot": np.empty(0, np.int64), "mesh": np.ones((3, 4, 5), np.float32)}


def test_what_was_saved_comes_back_and_any_program_can_read_it(tmp_path):
    path = tmp_path / "a.npz"
    save_sealed(path, "key", {"sky": [1.5, float("nan")]}, ARRAYS)
    record, arrays = load_sealed(path, "key")
    assert record["sky"][0] == 1.5
    assert np.isnan(record["sky"][1])
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["x"], ARRAYS["x"])


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int32, np.uint32, np.int64, np.float32, np.float64, ">f4"]
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0), (2, 3, 4)])
def test_arrays_are_those_that_numpy_reads(tmp_path, dtype, shape):
    path = tmp_path / "a.npz"
    array = np.asarray(np.random.default_rng(1).integers(0, 99, shape)).astype(dtype)
    save_sealed(path, "key", {"sky": 1}, {"plain": array, "by_columns": np.asfortranarray(array), "µ": array})
    _, arrays = load_sealed(path, "key")
    with np.load(path) as stored:
        for name in ("plain", "by_columns", "µ"):
            assert arrays[name].dtype == stored[name].dtype
            assert arrays[name].flags.writeable
            assert arrays[name].flags.f_contiguous == stored[name].flags.f_contiguous
            np.testing.assert_array_equal(arrays[name], stored[name])


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="x holds object"):
        save_sealed(tmp_path / "a.npz", "key", {}, {"x": np.array([{}])})
    assert not list(tmp_path.iterdir())


def test_some_of_the_arrays_alone(tmp_path):
    path = tmp_path / "a.npz"
    save_sealed(path, "key", {"sky": 1}, ARRAYS)
    record, arrays = load_sealed(path, "key", ["mesh"])
    assert record == {"sky": 1}
    assert list(arrays) == ["mesh"]
    np.testing.assert_array_equal(arrays["mesh"], ARRAYS["mesh"])
    assert load_sealed(path, "key", ["mesh", "of another kind"]) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert load_sealed(path, "key", ["mesh"]) is None


def test_any_flipped_or_missing_byte_means_it_is_not_there(tmp_path):
    path = tmp_path / "a.npz"
    save_sealed(path, "key", {"sky": 1}, ARRAYS)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        content = bytearray(whole)
        content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
        assert load_sealed(path, "key") is None
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_sealed(path, "key") is None
    path.write_bytes(whole + b"more")
    assert load_sealed(path, "key") is None
    path.write_bytes(whole)
    assert load_sealed(path, "other key") is None
    assert load_sealed(path, "key") is not None
    assert load_sealed(tmp_path, "key") is None
    assert load_sealed(tmp_path / "none", "key") is None


def sealed(content: bytes) -> bytes:
    return content + hashlib.blake2b(content, digest_size=32).digest()


def packed(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        packed(x=np.arange(3)),
        packed(record=np.frombuffer(b"[" * 90_000, np.uint8)),
        packed(record=np.frombuffer(b'{"key": "key"}', np.uint8)),
        packed(record=np.frombuffer(b'{"key": "key", "record": 5}', np.uint8)),
        packed(record=np.array([{"an": "object"}], dtype=object)),
        packed(record=np.float64(1)),
        packed(record=np.frombuffer(b"7", np.uint8)),
        packed(x=np.arange(900))[:-30],
    ],
    ids=["empty", "text", "no_record", "deep", "half", "number", "object", "float", "seven", "cut"],
)
def test_nonsense_with_the_right_digest_is_not_there_either(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(sealed(content))
    assert load_sealed(path, "key") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
def test_a_pipe_of_that_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    assert load_sealed(tmp_path / "a.npz", "key") is None
