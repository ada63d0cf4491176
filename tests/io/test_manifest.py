from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from zemosaic_core.errors import SaveFailed
from zemosaic_io.manifest import (
    STATE_FOLDER,
    Manifest,
    file_digest,
    hash_key,
    load_json,
    make_folder,
    save_json,
)
from zemosaic_io.pixel_digest import PixelDigest


@dataclass(frozen=True)
class Numbers:
    kappa: float
    names: tuple[str, ...]


def test_json_round_trip_of_our_types(tmp_path):
    path = tmp_path / "deep" / "x.json"
    save_json(
        path,
        {
            "a": np.float32(1.5),
            "b": np.arange(3),
            "c": Path("x/y"),
            "d": Numbers(3.0, ("é",)),
            "nan": float("nan"),
        },
    )
    data = load_json(path)
    assert data["a"] == 1.5
    assert data["b"] == [0, 1, 2]
    assert data["c"] == str(Path("x/y"))
    assert data["d"] == {"kappa": 3.0, "names": ["é"]}
    assert np.isnan(data["nan"])
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    save_json(path, 1)
    with pytest.raises(TypeError):
        save_json(path, object())
    assert load_json(path) == 1


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed):
        save_json(tmp_path / "file" / "x.json", 1)
    with pytest.raises(SaveFailed):
        make_folder(tmp_path / "file" / STATE_FOLDER)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((1, 2.0), (1.0, 2), True),
        (("ab", "c"), ("a", "bc"), False),
        (({"a": 1, "b": 2},), ({"b": 2, "a": 1},), True),
        ((np.float64(0.1),), (0.1,), True),
        ((np.zeros(3, np.float32),), (np.zeros(3, np.float64),), False),
        ((np.zeros((2, 3)),), (np.zeros((3, 2)),), False),
        ((Path("a"),), ("a",), True),
        ((True,), (1,), False),
        ((None,), ("None",), False),
        (([1, [2]],), ([1, 2],), False),
        ((Numbers(1.0, ()),), (Numbers(2.0, ()),), False),
        (({"x", "y"},), ({"y", "x"},), True),
        ((float("nan"),), (float("nan"),), True),
    ],
)
def test_keys(one, other, same):
    assert (hash_key(*one) == hash_key(*other)) is same


def test_keys_refuse_what_has_no_value():
    with pytest.raises(TypeError):
        hash_key(object())


def test_keys_do_not_depend_on_the_session():
    code = "from zemosaic_io.manifest import hash_key; print(hash_key({'b': {1, 'x'}, 'a': 1.5}), end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == hash_key({"a": 1.5, "b": {"x", 1}})


def test_manifest_remembers(tmp_path):
    manifest = Manifest(tmp_path / "m.json")
    key = manifest.key("measure", 1, Path("a.fit"))
    assert manifest.get(key) is None
    manifest.put(key, {"sky": np.float32(2.0)})
    manifest.save()
    again = Manifest(tmp_path / "m.json")
    assert again.get(key) == {"sky": 2.0}
    assert (key in again, len(again)) == (True, 1)
    again.put("other", 1)
    assert again.keep_only({key}) == 1
    again.save()
    assert len(Manifest(tmp_path / "m.json")) == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"format": 1}', '{"format": 99, "records": {"a": 1}}', "[" * 90_000]
)
def test_damaged_manifest_counts_as_empty(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    manifest = Manifest(tmp_path / "m.json")
    assert len(manifest) == 0
    manifest.put("a", 1)
    manifest.save()
    assert Manifest(tmp_path / "m.json").get("a") == 1


def test_records_that_were_changed_do_not_count(tmp_path):
    path = tmp_path / "m.json"
    manifest = Manifest(path)
    for key in "abc":
        manifest.put(key, {"sky": 1.5, "names": ("x", key), "no": None})
    manifest.save()
    text = path.read_text()
    stored = json.loads(text)
    stored["records"]["b"]["sky"] = 2.5
    path.write_text(json.dumps(stored))
    again = Manifest(path)
    assert (again.get("b"), len(again)) == (None, 2)
    # What belongs to another key does not count either.
    stored["records"] = {"a": stored["records"]["c"], "c": stored["records"]["c"]}
    path.write_text(json.dumps(stored))
    assert Manifest(path).get("a") is None
    path.write_text(text)
    assert len(Manifest(path)) == 3


def test_a_record_is_safe_when_it_was_put(tmp_path):
    """As after a kill: nothing is closed, nothing is saved."""
    path = tmp_path / "m.json"
    manifest = Manifest(path)
    manifest.put("a", {"sky": 1.5})
    manifest.put("b", 2)
    assert not path.exists()
    assert len(Manifest(path)) == 2
    manifest.save()
    assert not path.with_suffix(".journal").exists()
    manifest.put("c", 3)
    assert [Manifest(path).get(key) for key in "abc"] == [{"sky": 1.5}, 2, 3]


def test_a_line_that_a_kill_cut_off_costs_that_record(tmp_path):
    path = tmp_path / "m.json"
    manifest = Manifest(path)
    for number, key in enumerate("abc"):
        manifest.put(key, number)
    journal = path.with_suffix(".journal")
    whole = journal.read_bytes()
    for length in range(len(whole)):
        journal.write_bytes(whole[:length])
        kept = Manifest(path)
        # Only the end of the last line, which holds nothing, may be missing.
        assert [kept.get(key) for key in "abc"][: len(kept)] == list(range(len(kept)))
        kept.put("d", 4)
        assert Manifest(path).get("d") == 4
    for damage in (
        whole.replace(b'"b", 1', b'"b", 7'),
        whole.replace(b'"b"', b'["b"]'),
        b"[" * 90_000 + whole,
    ):
        journal.write_bytes(damage)
        assert Manifest(path).get("b") is None or damage.startswith(b"[[")
        assert Manifest(path).get("c") == 2
    journal.unlink()
    journal.mkdir()
    assert len(Manifest(path)) == 0


def test_json_that_is_no_use_says_why_in_one_sentence(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 90_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_json(path)
    path.write_text("[1, 2, 3]")
    with pytest.raises(ValueError, match="more than 5 bytes"):
        load_json(path, max_bytes=5)
    with pytest.raises(ValueError, match="no regular file"):
        load_json(tmp_path)


def test_digest_of_a_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(3_000_000))
    before = file_digest(path)
    whole = PixelDigest()
    whole.update(bytes(3_000_000))
    assert before == whole.key()
    path.write_bytes(bytes(2_999_999) + b"\x01")
    assert file_digest(path) != before
    assert file_digest(tmp_path) is None
    assert file_digest(tmp_path / "none") is None
