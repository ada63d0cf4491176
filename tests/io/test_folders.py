from __future__ import annotations

import errno
import os

import pytest

from zemosaic_core.errors import RunFailed
from zemosaic_io.folders import is_frame_name, survey_files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.fit", True),
        ("a.FITS", True),
        ("a.Fts", True),
        ("a.fits.fz", True),
        ("a.fits.gz", True),
        ("a.fz", False),
        ("a.txt", False),
        ("fits", False),
        ("._a.fit", False),
    ],
)
def test_frame_names(name, expected):
    assert is_frame_name(name) is expected


def test_survey_order_and_exclusions(tmp_path):
    touch(tmp_path, "b.fit", "A.fits", "c/d.FIT", "c/e.txt", "C2/x.fts.fz")
    touch(
        tmp_path, "unaligned_by_zemosaic/u.fit", "c/Unaligned_By_ZeMosaic/v.fit", "out/tile.fits", "skip.fit"
    )
    found = survey_files(tmp_path, recursive=True, exclude=[tmp_path / "out", tmp_path / "skip.fit"])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "A.fits",
        "b.fit",
        "c/d.FIT",
        "C2/x.fts.fz",
    ]
    flat = survey_files(tmp_path, recursive=False)
    assert [p.name for p in flat] == ["A.fits", "b.fit", "skip.fit"]


def test_input_folder_may_lie_inside_the_output_folder(tmp_path):
    touch(tmp_path, "in/a.fit")
    assert len(survey_files(tmp_path / "in", exclude=[tmp_path])) == 1


def test_missing_folder(tmp_path):
    with pytest.raises(RunFailed) as caught:
        survey_files(tmp_path / "nowhere")
    assert caught.value.key == "input_folder_missing"


def names(root, **options):
    return [path.relative_to(root).as_posix() for path in survey_files(root, **options)]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_to_folders_are_followed_once_and_loops_are_cut(tmp_path):
    touch(tmp_path, "in/night/a.fit", "elsewhere/b.fit", "elsewhere/deep/c.fit", "in/out/tile.fits")
    root = tmp_path / "in"
    (root / "archive").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (root / "night" / "loop").symlink_to(root)
    (root / "a link to night").symlink_to(root / "night")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "results").symlink_to(root / "out")
    found = names(root, exclude=[root / "out"])
    assert sorted(path.rsplit("/", 1)[1] for path in found) == ["a.fit", "b.fit", "c.fit"]
    # What lies there under its own name keeps it.
    assert "night/a.fit" in found
    assert names(root, recursive=False) == []
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert len(names(linked, exclude=[root / "out"])) == 3


def test_a_subfolder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "a.fit", "night/b.fit")
    real, told = os.scandir, []

    def scandir(path):
        if os.fspath(path).endswith("night"):
            raise OSError(errno.EIO, "Input/output error", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(tmp_path, tell_unlistable=lambda *found: told.append(found)) == ["a.fit"]
    ((path, error),) = told
    assert (path, error.errno) == (tmp_path / "night", errno.EIO)
