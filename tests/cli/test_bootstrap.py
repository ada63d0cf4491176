"""Bootstrap installs once, again only when the project changes, and says what to do when it cannot."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap


class FakePip:
    """Stands in for every process bootstrap starts."""

    def __init__(self, monkeypatch, code: int = 0) -> None:
        self.calls: list[list[str]] = []
        self.environments: list[dict[str, str] | None] = []
        self.code = code
        monkeypatch.setattr(bootstrap.subprocess, "run", self)

    def __call__(self, words, *, env=None, cwd=None, check=False):
        self.calls.append([str(word) for word in words])
        self.environments.append(env)
        if "venv" in words:
            python = bootstrap._python_of(Path(words[-1]))
            python.parent.mkdir(parents=True)
            python.touch()
        return subprocess.CompletedProcess(words, self.code)


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\n")
    return path


def test_installs_once_and_again_when_the_project_changes(tmp_path, project, monkeypatch):
    pip = FakePip(monkeypatch)
    venv = tmp_path / ".venv"
    python = bootstrap.ensure_environment(venv, project, ())
    assert [call[1:3] for call in pip.calls] == [["-m", "venv"], ["-m", "pip"]]
    assert pip.calls[1][0] == str(python)
    assert pip.calls[1][-2:] == ["--editable", str(tmp_path)]
    assert bootstrap.ensure_environment(venv, project, ()) == python
    assert len(pip.calls) == 2
    project.write_text("[project]\nname='x'\n")
    bootstrap.ensure_environment(venv, project, ())
    assert len(pip.calls) == 3


def test_extras_add_up(tmp_path, project, monkeypatch):
    pip = FakePip(monkeypatch)
    venv = tmp_path / ".venv"
    bootstrap.ensure_environment(venv, project, bootstrap.extras_for("gui"))
    bootstrap.ensure_environment(venv, project, bootstrap.extras_for("test"))
    bootstrap.ensure_environment(venv, project, bootstrap.extras_for("demo"))
    bootstrap.ensure_environment(venv, project, bootstrap.extras_for("gui"))
    installs = [call[-1] for call in pip.calls if "pip" in call]
    assert installs == [f"{tmp_path}[gui]", f"{tmp_path}[cluster,dev,gputest,gui]"]


def test_failed_installation_is_tried_again(tmp_path, project, monkeypatch):
    pip = FakePip(monkeypatch)
    venv = tmp_path / ".venv"
    bootstrap._python_of(venv).parent.mkdir(parents=True)
    bootstrap._python_of(venv).touch()
    pip.code = 1
    with pytest.raises(bootstrap.BootstrapFailed, match="network"):
        bootstrap.ensure_environment(venv, project, ())
    pip.code = 0
    bootstrap.ensure_environment(venv, project, ())
    assert len(pip.calls) == 2


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_python_without_venv_says_what_to_install(tmp_path, project, monkeypatch, module):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        bootstrap.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(bootstrap.BootstrapFailed, match=r"apt-get install python3\.\d+-venv") as caught:
        bootstrap.ensure_environment(tmp_path / ".venv", project, ())
    assert module in str(caught.value)


def test_test_command_runs_pytest_without_a_screen():
    words, environment = bootstrap.command_for(["test", "-x", "tests/cli"], Path("py"), {"A": "b"})
    assert words == ["py", "-m", "pytest", "-n", "2", "--dist", "worksteal", "-x", "tests/cli"]
    assert environment == {"A": "b", "QT_QPA_PLATFORM": "offscreen"}
    _, environment = bootstrap.command_for(["test"], Path("py"), {"QT_QPA_PLATFORM": "xcb"})
    assert environment["QT_QPA_PLATFORM"] == "xcb"


def test_ruff_command_runs_ruff_in_the_environment_of_the_project():
    assert "dev" in bootstrap.extras_for("ruff")
    for arguments in (["check"], ["format", "--check"]):
        words, environment = bootstrap.command_for(["ruff", *arguments], Path("py"), {"A": "b"})
        assert words == ["py", "-m", "ruff", *arguments]
        assert environment == {"A": "b"}


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("fails_at", ["", "ruff check", "ruff format --check", "test"])
def test_what_runs_on_a_fresh_machine_checks_the_style_before_the_tests(tmp_path, fails_at):
    """Every step in order, each only when the one before it went well; what fails decides the exit code."""
    log = tmp_path / "calls"
    for name, body in (
        ("python3", f'echo "$*" >> "{log}"; [ "$*" != "bootstrap.py {fails_at}" ] || exit 7'),
        ("apt-get", "exit 0"),
    ):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    done = subprocess.run(
        [bootstrap.HERE / ".ci" / "run"],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    steps = ["ruff check", "ruff format --check", "test"]
    until = steps.index(fails_at) + 1 if fails_at else len(steps)
    assert log.read_text().splitlines() == [f"bootstrap.py {step}" for step in steps[:until]]
    assert done.returncode == (7 if fails_at else 0), done.stderr


def test_other_commands_go_to_the_program():
    words, environment = bootstrap.command_for(["run", "in", "out"], Path("py"), {})
    assert words == ["py", str(bootstrap.HERE / "run_zemosaic.py"), "run", "in", "out"]
    assert environment == {}


def test_exit_code_is_that_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "ensure_environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(
        bootstrap, "command_for", lambda *_: ([sys.executable, "-c", "raise SystemExit(7)"], {})
    )
    assert bootstrap.main(["demo"]) == 7


def test_problem_is_told_without_a_traceback(monkeypatch, capsys):
    def fail(*_):
        raise bootstrap.BootstrapFailed("do this")

    monkeypatch.setattr(bootstrap, "ensure_environment", fail)
    assert bootstrap.main(["demo"]) == 1
    assert capsys.readouterr().err == "do this\n"
    assert bootstrap.main(["--help"]) == 0


def test_only_the_standard_library_is_imported():
    tree = ast.parse((bootstrap.HERE / "bootstrap.py").read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
