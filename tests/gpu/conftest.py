from __future__ import annotations

import pytest

from zemosaic_core.gpu import device as seam


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch, tmp_path):
    """No variable of the developer's machine decides a test, and leases and memories stay in the test folder."""
    for name in ("", "_DEVICE", "_MEMORY_MB", "_RESERVE_MB", "_CHUNK_ROWS", "_SIMULATE", "_FAULT"):
        monkeypatch.delenv(f"ZEMOSAIC_GPU{name}", raising=False)
    monkeypatch.delenv("ZEMOSAIC_FORCE_CPU_INTERTILE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def install():
    """Seat a device for the test."""
    with_device = []

    def seat(device):
        context = seam.install(device)
        context.__enter__()
        with_device.append(context)
        return device

    yield seat
    for context in reversed(with_device):
        context.__exit__(None, None, None)
