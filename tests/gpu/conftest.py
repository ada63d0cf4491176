from __future__ import annotations

import pytest
from fake_cupy import make_fake_cupy

import zemosaic_gpu_policy
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe
from zemosaic_io import gpu_probe


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


@pytest.fixture
def cupy_cards(monkeypatch):
    """Return a function that puts a stand-in for CuPy with some cards in place, for the rest of the test."""
    monkeypatch.setattr(gpu_probe.Opened, "pid", 0)
    monkeypatch.setattr(zemosaic_gpu_policy, "_DEFAULTS", {})
    gpu_probe.remembered_status.cache_clear()

    def probe_here(choice):
        line = probe.probe(choice)[0].to_json()  # as the other process would say it
        return gpu_probe.status_of(probe.Finding.from_json(line))

    def put(*cards):
        fake = make_fake_cupy(*cards)
        monkeypatch.setattr(seam, "import_cupy", lambda: fake)
        monkeypatch.setattr(probe, "has_driver", lambda: (True, "pretended"))
        monkeypatch.setattr(gpu_probe, "has_driver", lambda: (True, "pretended"))
        monkeypatch.setattr(gpu_probe, "_probe_in_child", probe_here)
        return fake

    yield put
    gpu_probe.remembered_status.cache_clear()
