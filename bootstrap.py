"""From a fresh copy to a running program: make .venv beside this file, install ZeMosaic, then run it.

    python3 bootstrap.py demo        a made-up night becomes a mosaic
    python3 bootstrap.py test        the tests (further arguments go to pytest)
    python3 bootstrap.py ruff check  the style of the code (all arguments go to ruff; also: ruff format --check)
    python3 bootstrap.py gui         the desktop application
    python3 bootstrap.py run IN OUT  and everything else `run_zemosaic.py` can do

Standard library only. What is installed already is not installed again until pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["command_for", "ensure_environment", "extras_for", "main"]

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
STAMP = "zemosaic_installed.txt"
LEAST_PYTHON = (3, 11)
# Two processes: the tests start processes of their own, and many small machines have two cores.
TEST_PROCESSES = "2"

EXTRAS = {"test": ("dev", "gui", "gputest", "cluster"), "ruff": ("dev",), "gui": ("gui",)}
"""What a command needs beside the program itself; ``doctor`` and ``run`` take what is there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the environment, run the command in it and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if sys.version_info < LEAST_PYTHON:
        return _stop(f"Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer is needed; this is {sys.version}.")
    command = arguments[0] if arguments else "gui"
    try:
        python = ensure_environment(VENV, HERE / "pyproject.toml", extras_for(command))
    except BootstrapFailed as error:
        return _stop(str(error))
    words, environment = command_for(arguments, python, os.environ)
    try:
        return subprocess.run(
            words, cwd=HERE if command in ("test", "ruff") else None, env=environment, check=False
        ).returncode
    except KeyboardInterrupt:  # the command saw it too and has ended by itself
        return 130


class BootstrapFailed(Exception):
    """The environment cannot be made; the text says what to do."""


def extras_for(command: str) -> tuple[str, ...]:
    """Return the optional parts of the project that a command needs."""
    return EXTRAS.get(command, ())


def command_for(
    arguments: Sequence[str], python: Path, environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the words and the environment of the process to start."""
    environment = dict(environ)
    if arguments and arguments[0] == "test":
        # Windows of the tests must not need a screen; whoever wants to see them sets another platform.
        environment.setdefault("QT_QPA_PLATFORM", "offscreen")
        # Whichever process is done first takes over what the other has not begun.
        return [
            *(str(python), "-m", "pytest", "-n", TEST_PROCESSES, "--dist", "worksteal"),
            *arguments[1:],
        ], environment
    if arguments and arguments[0] == "ruff":
        return [str(python), "-m", *arguments], environment
    return [str(python), str(HERE / "run_zemosaic.py"), *arguments], environment


def ensure_environment(venv: Path, project: Path, extras: Sequence[str]) -> Path:
    """Make or reuse a virtual environment with the project and some of its extras; return its Python.

    Raises
    ------
    BootstrapFailed
        With what to do about it.
    """
    python = _python_of(venv)
    if not python.exists():
        _make_venv(venv)
    wanted = _fingerprint(project)
    stamp = venv / STAMP
    done, installed = _read_stamp(stamp)
    have = set(installed) if done == wanted else set()
    if done == wanted and set(extras) <= have:
        return python
    everything = sorted(have | set(extras))
    _install(python, project.parent, everything)
    stamp.write_text("\n".join([wanted, *everything]) + "\n", encoding="utf-8")
    return python


def _python_of(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def _fingerprint(project: Path) -> str:
    return hashlib.sha256(project.read_bytes()).hexdigest()


def _read_stamp(stamp: Path) -> tuple[str, list[str]]:
    if not stamp.is_file():
        return "", []
    first, *rest = stamp.read_text(encoding="utf-8").split() or [""]
    return first, rest


def _make_venv(venv: Path) -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BootstrapFailed(
            f"This Python has no {' and no '.join(missing)}, so no environment can be made.\n"
            f"On Debian and Ubuntu: sudo apt-get install python{version}-venv (or python3-venv).\n"
            "Elsewhere install Python from python.org. Then start again."
        )
    print(f"Making {venv} ...", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False)
    if done.returncode:
        raise BootstrapFailed(
            f"{venv} could not be made (exit code {done.returncode}); see the lines above.\n"
            "Delete the folder, make sure the disk has room and that it can be written, then start again."
        )


def _install(python: Path, folder: Path, extras: Sequence[str]) -> None:
    target = f"{folder}[{','.join(extras)}]" if extras else str(folder)
    print("Installing ZeMosaic and what it needs; the first time this takes some minutes ...", flush=True)
    words = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--editable",
        target,
    ]
    done = subprocess.run(words, check=False)
    if done.returncode:
        raise BootstrapFailed(
            f"The installation failed (exit code {done.returncode}); see the lines above.\n"
            "Is there a network, and room on the disk? Start again to try once more."
        )


def _stop(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
