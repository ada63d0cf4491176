"""Where a run computes, and how other machines name its folders."""

from __future__ import annotations

import pytest

from zemosaic_core.errors import SettingsError
from zemosaic_settings import Settings
from zemosaic_settings.executor import ExecutorChoice, PathMap, executor_choice, path_map


@pytest.mark.parametrize(
    ("text", "kind", "address"),
    [
        ("local", "local", ""),
        ("", "local", ""),
        (" Dask ", "dask", ""),
        ("dask://192.168.1.20:8786", "scheduler", "tcp://192.168.1.20:8786"),
        ("dask://observatory.local:8786/", "scheduler", "tcp://observatory.local:8786"),
        ("dask://[fe80::1]:8786", "scheduler", "tcp://[fe80::1]:8786"),
    ],
)
def test_executor_is_read(text, kind, address):
    assert executor_choice(text) == ExecutorChoice(kind, address)


@pytest.mark.parametrize(
    "text", ["ray", "dask://", "dask://host", "dask://host:0", "dask://host:70000", "tcp://host:8786"]
)
def test_wrong_executor_is_refused_with_its_value(text):
    with pytest.raises(SettingsError) as refused:
        Settings.from_mapping({"executor": text})
    assert (refused.value.key, refused.value.values["value"]) == ("settings_no_executor", text)


@pytest.mark.parametrize("text", ["/data", "=/mnt", "/data=", "/a=/b;/c"])
def test_wrong_map_is_refused(text):
    with pytest.raises(SettingsError) as refused:
        Settings.from_mapping({"map_path": text})
    assert refused.value.key == "settings_no_path_map"


def test_paths_go_there_and_back():
    paths = path_map("/data = /mnt/nas ; /data/night=/fast/night; /win=N:/lights")
    assert paths.there("/data/a/b.fit") == "/mnt/nas/a/b.fit"
    assert paths.there("/data/night/b.fit") == "/fast/night/b.fit"
    assert paths.there("/database/b.fit") == "/database/b.fit"
    assert paths.there("/win/m31/b.fit") == "N:\\lights\\m31\\b.fit"
    for path in ("/data/a/b.fit", "/data/night/b.fit", "/win/m31/b.fit"):
        assert paths.here(paths.there(path)) == path
    assert PathMap((("C:\\night", "/mnt/night"),)).there("C:\\night\\m31\\a.fit") == "/mnt/night/m31/a.fit"
    assert PathMap().there("/data/a.fit") == "/data/a.fit"
