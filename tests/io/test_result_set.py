from __future__ import annotations

import json

import pytest

from zemosaic_core.errors import SaveFailed
from zemosaic_io.result_set import ResultSet, finish_or_discard, is_own_folder


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


def folder_of(parent, name, text):
    (parent / name / "0").mkdir(parents=True)
    (parent / name / "0" / "tile.jpg").write_text(text)


def test_a_folder_replaces_the_one_of_an_earlier_run_as_a_whole(tmp_path):
    for text in ("old", "new"):
        results = ResultSet(tmp_path)
        folder_of(results.folder, "m_zoom", text)
        (results.folder / "m_zoom" / f"{text}.html").write_text(text)
        assert results.final(results.folder / "m_zoom" / "a.html") == str(tmp_path / "m_zoom" / "a.html")
        results.publish()
    assert names(tmp_path) == ["m_zoom"]
    assert (tmp_path / "m_zoom" / "0" / "tile.jpg").read_text() == "new"
    assert not (tmp_path / "m_zoom" / "old.html").exists()
    assert is_own_folder(tmp_path / "m_zoom")
    results = ResultSet(tmp_path)
    results.replaces(["m_zoom"])
    results.publish()
    assert names(tmp_path) == []


def test_a_folder_of_somebody_else_is_never_touched(tmp_path):
    folder_of(tmp_path, "m_zoom", "mine")
    results = ResultSet(tmp_path)
    folder_of(results.folder, "m_zoom", "new")
    with pytest.raises(SaveFailed, match="m_zoom"):
        results.publish()
    results.discard()
    results = ResultSet(tmp_path)
    results.replaces(["m_zoom"])
    results.publish()
    assert (tmp_path / "m_zoom" / "0" / "tile.jpg").read_text() == "mine"


def test_the_next_start_finishes_a_folder_whose_old_one_was_moved_aside(tmp_path):
    results = ResultSet(tmp_path)
    folder_of(results.folder, "m_zoom", "new")
    folder_of(results.folder, "m_zoom.old", "old")
    (results.folder / "publish.json").write_text(json.dumps({"files": ["m_zoom"], "obsolete": []}))
    finish_or_discard(tmp_path)
    assert names(tmp_path) == ["m_zoom"]
    assert (tmp_path / "m_zoom" / "0" / "tile.jpg").read_text() == "new"
