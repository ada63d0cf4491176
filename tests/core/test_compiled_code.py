"""Compiled code finds a place wherever the program lies, and nobody else's."""

from __future__ import annotations

import os

import pytest

from zemosaic_core.compiled_code import is_compiled, place_for_compiled_code


def test_where_numba_finds_a_place_nothing_is_changed(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    places = {"beside": blocked / "a", "own": blocked / "b", "temporary": tmp_path}
    for name in ("beside", "own"):
        assert place_for_compiled_code({}, **{**places, name: tmp_path / name}) is None
    assert place_for_compiled_code({"NUMBA_CACHE_DIR": "/there"}, **places) is None


@pytest.mark.skipif(os.name == "nt", reason="owners and modes of POSIX")
def test_the_last_resort_is_a_folder_of_this_user_alone(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    places = {"beside": blocked / "a", "own": blocked / "b", "temporary": tmp_path}
    first = place_for_compiled_code({}, **places)
    assert first == tmp_path / f"zemosaic-compiled-{os.getuid()}"
    assert first.stat().st_mode & 0o077 == 0
    assert place_for_compiled_code({}, **places) == first
    # What others may write to, or put there as a link, is not run.
    first.chmod(0o777)
    second = place_for_compiled_code({}, **places)
    assert second not in (None, first)
    first.rmdir()
    first.symlink_to(second)
    assert place_for_compiled_code({}, **places) not in (first, second)


def test_code_counts_as_compiled_when_it_is_newer_than_its_source(tmp_path):
    source, places = tmp_path / "coadd.py", [tmp_path / "beside", tmp_path / "own", tmp_path / "missing"]
    source.touch()
    assert not is_compiled(source, places)
    for compiled in (
        places[0] / "coadd.block-12.py311.nbi",
        places[1] / "core_ab12" / "coadd.block-12.py311.nbi",
    ):
        compiled.parent.mkdir(parents=True)
        compiled.touch()
        os.utime(source, (1000, 1000))
        assert is_compiled(source, places)
        # Another version was installed since.
        os.utime(compiled, (900, 900))
        assert not is_compiled(source, places)
    (places[0] / "other.block-12.py311.nbi").touch()
    assert not is_compiled(source, places)
