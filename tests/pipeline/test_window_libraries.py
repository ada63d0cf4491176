import sys

import pytest

from zemosaic_pipeline.window_libraries import missing_packages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries of Linux")
def test_missing_libraries_are_named_by_their_package():
    def load(name):
        if "xcb-cursor" in name or "icccm" in name:
            raise OSError(f"{name}: cannot open shared object file")

    assert missing_packages(load) == ["libxcb-cursor0", "libxcb-icccm4"]
    assert missing_packages(lambda name: None) == []


def test_other_systems_need_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")

    def load(name):
        raise OSError(name)

    assert missing_packages(load) == []
