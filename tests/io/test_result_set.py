from __future__ import annotations

import json

import pytest

from zemosaic_core.errors import SaveFailed
from zemosaic_io.result_set import ResultSet, finish_or_discard


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_files_change_together_and_what_they_replace_goes(tmp_path):
    for name in ("a.fits", "old.png", "mine.txt"):
        (tmp_path / name).write_text("old")
    results = ResultSet(tmp_path)
    for name in ("a.fits", "b.png"):
        (results.folder / name).write_text("new")
    results.replaces(["old.png", "b.png", "never.was"])
    assert results.final(results.folder / "b.png") == str(tmp_path / "b.png")
    assert (tmp_path / "a.fits").read_text() == "old"
    results.publish()
    assert names(tmp_path) == ["a.fits", "b.png", "mine.txt"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "new", "old"]


def test_what_is_not_published_is_gone(tmp_path):
    results = ResultSet(tmp_path)
    (results.folder / "a.fits").write_text("half")
    results.discard()
    assert names(tmp_path) == []
    results = ResultSet(tmp_path)
    (results.folder / "a.fits").write_text("half")
    finish_or_discard(tmp_path)
    assert names(tmp_path) == []
    finish_or_discard(tmp_path)


def test_a_folder_in_the_way_stops_it_before_anything_moves(tmp_path):
    results = ResultSet(tmp_path)
    for name in ("a.fits", "b.fits"):
        (results.folder / name).write_text("new")
    (tmp_path / "b.fits").mkdir()
    with pytest.raises(SaveFailed, match=r"b\.fits"):
        results.publish()
    results.discard()
    assert names(tmp_path) == ["b.fits"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_the_next_start_finishes_what_was_begun(tmp_path, moved):
    results = ResultSet(tmp_path)
    (tmp_path / "old.png").write_text("old")
    for name in ["a.fits", "b.fits"]:
        place = tmp_path if name in ["a.fits", "b.fits"][:moved] else results.folder
        (place / name).write_text("new")
    listed = {"files": ["a.fits", "b.fits"], "obsolete": ["old.png"]}
    (results.folder / "publish.json").write_text(json.dumps(listed))
    results.discard()
    finish_or_discard(tmp_path)
    assert names(tmp_path) == ["a.fits", "b.fits"]


@pytest.mark.parametrize(
    "content",
    [
        "", "[", "[" * 100_000, "[1]", '{"files": 5, "obsolete": []}', '{"files": [1], "obsolete": []}',
        '{"files": ["../mine.txt"], "obsolete": []}', '{"files": ["a"], "obsolete": ["/etc/hostname"]}',
        '{"files": ["."], "obsolete": []}', '{"files": ["a", ".."], "obsolete": []}', '{"files": ["a"]}',
    ],
)  # fmt: skip
def test_a_list_that_is_none_never_was(tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    results = ResultSet(out)
    (results.folder / "a").write_text("new")
    (results.folder / "publish.json").write_text(content)
    finish_or_discard(out)
    assert names(out) == []
    assert (tmp_path / "mine.txt").read_text() == "mine"
