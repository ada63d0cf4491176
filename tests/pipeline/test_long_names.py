"""Names as long as a file system allows them, and longer; names that one file would share with another."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

import run_zemosaic
from zemosaic_core.errors import SettingsError
from zemosaic_pipeline import runner
from zemosaic_pipeline.filters import filter_names
from zemosaic_settings import Settings

posix = pytest.mark.skipif(os.name == "nt", reason="lengths of POSIX")


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")


@posix
@pytest.mark.parametrize("name", ["n" * 256, "/".join(["n" * 100] * 50)])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_folder_whose_name_is_too_long_is_one_sentence(tmp_path, capsys, command, name):
    assert run_zemosaic.main([command, str(tmp_path / name), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "does not exist" in said
    assert "Traceback" not in said


@posix
def test_an_output_folder_too_deep_for_what_lies_in_it_is_told_before_the_work(tmp_path):
    (tmp_path / "raw").mkdir()
    longest = os.pathconf(tmp_path, "PC_PATH_MAX")
    deep = tmp_path.joinpath(*["d" * 50] * ((longest - len(os.fsencode(tmp_path)) - 200) // 51))
    room = longest - len(os.fsencode(deep)) - 2
    fits, too_deep = deep / ("e" * (room - 150)), deep / ("e" * (room - 40))
    for output in (fits, too_deep, tmp_path / ("o" * 256)):
        settings = Settings(input_dir=str(tmp_path / "raw"), output_dir=str(output))
        if output is fits:
            assert runner._check_folders(settings) == (tmp_path / "raw", output)
            continue
        with pytest.raises(SettingsError) as error:
            runner._check_folders(settings)
        assert error.value.key == "error_output_not_writable"
        assert error.value.values["reason"] == "File name too long"


def test_a_filter_with_a_long_name_gives_files_a_short_one():
    long, other = "narrow" * 500, "narrow" * 500 + " band"
    names = filter_names(
        [SimpleNamespace(filter_name=name) for name in (long, other, long.upper(), "Höhe/L")], split=True
    )
    assert len({*names}) == 3
    assert names[0] == names[2]
    assert names[3] == "Höhe-L"
    assert all(len(name.encode()) < 80 for name in names)


def test_files_of_two_filters_never_have_one_name():
    """Headers write filters as they like; disks may ignore upper and lower case; endings are names as well."""
    names = ["O III", "O-III", "o-iii!", "L", "l", "L_coverage", "Ha*", "HA", ""]
    parts = filter_names([SimpleNamespace(filter_name=name) for name in names], split=True)
    by_filter = dict(zip((name.casefold() for name in names), parts, strict=True))
    assert len(by_filter) == 8
    made = [f"{part}{ending}".casefold() for part in by_filter.values() for ending in ("", "_coverage")]
    assert len(set(made)) == len(made)
    assert by_filter["l"] == "L"
