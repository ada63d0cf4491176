"""The installation check finds what is wrong and says what to do."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import run_zemosaic
from zemosaic_core.gpu.terms import GpuStatus, Reason
from zemosaic_io.solvers import chain
from zemosaic_io.solvers.base import Availability
from zemosaic_pipeline import doctor
from zemosaic_pipeline.window_libraries import is_unfit
from zemosaic_settings import Settings
from zemosaic_ui.texts import Texts

ROOT = Path(__file__).resolve().parents[2]


class FakeSolver:
    def __init__(self, name: str, ok: bool) -> None:
        self.name, self.ok = name, ok

    def find(self) -> Availability:
        if self.ok:
            return Availability(True, "found", "/bin/it", "9.9")
        return Availability(False, "missing", key="solver_not_found", values={"solver": self.name})


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.delenv("ZEMOSAIC_CONFIG", raising=False)
    monkeypatch.setattr(doctor, "gpu_status", lambda **_: GpuStatus(False, Reason.NO_DRIVER, "no libcuda"))
    monkeypatch.setattr(chain, "make_solvers", lambda options: [FakeSolver("EMBEDDED", True)])
    done = subprocess.CompletedProcess([], 0, "6.9.0\n", "")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)


def examine(**settings):
    return list(doctor.examine(Settings.from_mapping(settings)))


def of(topic: str, findings):
    return [finding for finding in findings if finding.topic == topic]


def test_sound_installation_has_no_failure(tmp_path):
    findings = examine(output_dir=str(tmp_path / "not" / "yet"))
    assert [f for f in findings if f.state == "fail"] == []
    assert {f.topic for f in findings} >= set(doctor.TOPICS) - {"environment"}
    assert "numpy" in of("packages", findings)[-1].values["packages"]
    assert not (tmp_path / "not").exists()
    json.dumps([f.to_dict() for f in findings])


def test_missing_and_old_packages_are_failures(monkeypatch):
    version = doctor._version_of
    monkeypatch.setattr(
        doctor, "_version_of", lambda name: {"sep": "", "numba": "0.1"}.get(name, version(name))
    )
    monkeypatch.setattr(doctor, "_least_versions", lambda: {"numba": "0.61"})
    failures = [f for f in of("packages", examine()) if f.state == "fail"]
    assert {(f.key, f.values["name"]) for f in failures} == {
        ("doctor.package_missing", "sep"),
        ("doctor.package_old", "numba"),
    }
    assert all(f.advice_key == "doctor.package_install" for f in failures)


def test_no_solver_is_a_failure_unless_none_is_wanted(monkeypatch):
    def make(options):
        return [] if options.method == "NONE" else [FakeSolver("ASTAP", False)]

    monkeypatch.setattr(chain, "make_solvers", make)
    assert [f.state for f in of("solver", examine())] == ["info", "fail"]
    assert [f.state for f in of("solver", examine(solver_method="NONE"))] == ["info"]


def test_missing_card_is_a_fact_unless_it_is_required(monkeypatch):
    assert [(f.state, f.key) for f in of("gpu", examine())] == [("info", "gpu_reason_no_driver")]
    assert [f.state for f in of("gpu", examine(gpu_mode="require"))] == ["fail"]
    device = SimpleNamespace(name="RTX", index=0, total_bytes=8_000_000_000, library="cupy 13")
    monkeypatch.setattr(doctor, "gpu_status", lambda **_: GpuStatus(True, Reason.GPU, "", device))
    found = of("gpu", examine())[0]
    assert (found.state, found.values["total_mb"]) == ("ok", 8000)


def test_folder_that_cannot_be_written_is_a_failure(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    failures = [f for f in of("folders", examine(output_dir=str(file))) if f.state == "fail"]
    assert [f.values["path"] for f in failures] == [str(file)]


def test_broken_qt_names_the_library(monkeypatch):
    error = "Traceback\nImportError: libEGL.so.1: cannot open shared object file"
    done = subprocess.CompletedProcess([], 1, "", error)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    found = of("window", examine())[0]
    assert found.state == "warn"
    assert "libEGL.so.1" in found.values["detail"]
    assert found.advice_key == "doctor.qt_advice"


@pytest.mark.parametrize(
    ("qt", "python", "key"),
    [
        ("6.12.0", "3.11.2", "doctor.qt_unfit"),
        ("6.12.1", "3.11.14", "doctor.qt_unfit"),
        ("6.11.3", "3.11.2", "doctor.qt_ok"),
        ("6.12.0", "3.12.0", "doctor.qt_ok"),
        ("6.12.0", "3.13.5", "doctor.qt_ok"),
    ],
)
def test_qt_and_python_that_do_not_go_together_are_named(monkeypatch, qt, python, key):
    done = subprocess.CompletedProcess([], 0, f"{qt}\n", "")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(doctor.platform, "python_version", lambda: python)
    monkeypatch.setattr(doctor, "missing_packages", lambda: [])
    found = of("window", examine())[0]
    assert found.key == key
    assert (found.state, found.advice_key) == (
        ("warn", "doctor.qt_unfit_advice") if key == "doctor.qt_unfit" else ("ok", "")
    )
    said = Texts().message(found.key, found.values)
    assert qt in said
    assert python in said or key == "doctor.qt_ok"


def test_what_is_installed_for_the_window_goes_together():
    """The extra leaves out what `doctor` warns of, and every version that nobody has tried."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [Requirement(text) for text in declared["project"]["optional-dependencies"]["gui"]]
    for python in ("3.11", "3.12", "3.13", "3.14"):
        allowed = [
            requirement.specifier
            for requirement in wanted
            if requirement.name == "PySide6-Essentials"
            and (requirement.marker is None or requirement.marker.evaluate({"python_version": python}))
        ]
        assert len(allowed) == 1, python
        for qt in ("6.7.0", "6.11.3", "6.12.0", "6.12.1"):
            assert allowed[0].contains(qt) != is_unfit(qt, f"{python}.0"), (python, qt)
        assert not allowed[0].contains("6.13.0")
        assert not allowed[0].contains("7.0.0")


def test_environment_that_changes_a_run_is_shown():
    findings = list(doctor.examine(Settings(), environ={"ZEMOSAIC_GPU": "off", "HOME": "/h"}))
    assert [f.values for f in of("environment", findings)] == [{"name": "ZEMOSAIC_GPU", "value": "off"}]


def test_command_reports_a_damaged_settings_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "mine.json"
    file.write_text('{"stacking_kappa_low": "x"}')
    assert run_zemosaic.main(["doctor", "--config", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "stacking_kappa_low" in shown
    assert "built-in solver 9.9" in shown
    file.write_text("{}")
    assert run_zemosaic.main(["doctor", "--config", str(file), "--json"]) == 0
    assert {f["topic"] for f in json.loads(capsys.readouterr().out)} >= {"solver", "gpu"}
