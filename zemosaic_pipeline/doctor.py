"""Look at the installation and say what works and what to do about what does not; changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from zemosaic_core import __version__
from zemosaic_core.errors import SettingsError, ZeMosaicError
from zemosaic_gpu_policy import Reason, gpu_status
from zemosaic_pipeline.window_libraries import is_unfit, missing_packages
from zemosaic_settings import Settings

__all__ = ["STATES", "TOPICS", "Finding", "examine"]

STATES = ("ok", "info", "warn", "fail")
"""``fail`` means that no run is possible; ``warn`` that something useful is missing."""

TOPICS = (
    "program",
    "packages",
    "settings",
    "folders",
    "memory",
    "disk",
    "solver",
    "gpu",
    "window",
    "environment",
)
"""In the order of the report; the text key is ``doctor.topic.<name>``."""

PACKAGES = (
    "numpy",
    "scipy",
    "astropy",
    "numba",
    "sep",
    "psutil",
    "pydantic",
    "platformdirs",
    "rich",
    "Pillow",
    "tifffile",
)
WINDOW_PACKAGES = ("PySide6-Essentials", "pyqtgraph")
# The interpreter, the compiled kernels and one measuring process need this much before the first frame.
LEAST_MEMORY_BYTES = 1_500_000_000
# A mosaic of 100 megapixels with its tiles, coverage and preview.
LEAST_DISK_BYTES = 5_000_000_000
QT_PROBE_S = 30.0
_QT_PROBE = "import PySide6.QtGui, PySide6.QtWidgets; print(PySide6.__version__)"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Parameters
    ----------
    topic : str
        One of `TOPICS`.
    state : str
        One of `STATES`.
    key, values : str, dict
        Text key of what was found, and its values.
    advice_key : str
        Text key of what to do, filled with the same values; empty when nothing is to be done.
    """

    topic: str
    state: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    advice_key: str = ""

    @property
    def topic_key(self) -> str:
        """Text key of the topic."""
        return f"doctor.topic.{self.topic}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-serialisable facts."""
        return asdict(self)


def examine(
    settings: Settings,
    *,
    config_path: str = "",
    config_problems: Sequence[ZeMosaicError] = (),
    config_conflicts: Sequence[ZeMosaicError] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Yield findings one after the other; the slow ones (solvers, graphics card, window) come last.

    Parameters
    ----------
    settings : Settings
        Says where solvers and folders are.
    config_path, config_problems : str, sequence of errors
        The settings file in use and what in it could not be read.
    config_conflicts : sequence of errors
        Settings that the file gives two values.
    """
    yield Finding("program", "ok", "doctor.version", {"version": __version__})
    yield _python()
    yield from _packages()
    yield from _settings_file(config_path, config_problems, config_conflicts)
    yield from _folders(settings, config_path)
    yield _memory()
    yield _disk(settings)
    yield from _environment(os.environ if environ is None else environ)
    yield from _solvers(settings)
    yield _gpu(settings)
    yield from _window()


def _python() -> Finding:
    values = {
        "version": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=True) or 1,
    }
    return Finding("program", "ok", "doctor.python", values)


def _packages() -> Iterator[Finding]:
    least = _least_versions()
    found = []
    for name in PACKAGES:
        version = _version_of(name)
        values = {"name": name, "version": version, "least": least.get(name.lower(), "")}
        if not version:
            yield Finding("packages", "fail", "doctor.package_missing", values, "doctor.package_install")
        elif _numbers(version) < _numbers(values["least"]):
            yield Finding("packages", "fail", "doctor.package_old", values, "doctor.package_install")
        else:
            found.append(f"{name} {version}")
    yield Finding("packages", "ok", "doctor.packages", {"packages": ", ".join(found)})


def _least_versions() -> dict[str, str]:
    """Return lower-case name -> smallest version, as the installed project asks for it."""
    try:
        requirements = importlib.metadata.requires("zemosaic") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pattern = re.compile(r"^([\w.-]+)\s*>=\s*([\d.]+)")
    matches = (pattern.match(requirement) for requirement in requirements)
    return {match[1].lower(): match[2] for match in matches if match}


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _settings_file(
    path: str, problems: Sequence[ZeMosaicError], conflicts: Sequence[ZeMosaicError]
) -> Iterator[Finding]:
    if not problems:
        key = "doctor.settings_ok" if os.path.isfile(path) else "doctor.settings_default"
        yield Finding("settings", "ok", key, {"path": path})
    for problem in problems:
        yield Finding("settings", "fail", problem.key, dict(problem.values))
    for conflict in conflicts:
        yield Finding("settings", "warn", conflict.key, dict(conflict.values))


def _folders(settings: Settings, config_path: str) -> Iterator[Finding]:
    places = {"temporary": tempfile.gettempdir()}
    if config_path:
        places["settings"] = str(Path(config_path).parent)
    if settings.output_dir:
        places["output"] = settings.output_dir
    for path in places.values():
        problem = _why_not_writable(Path(path))
        values = {"path": path, "detail": problem}
        if problem:
            yield Finding("folders", "fail", "doctor.folder_not_writable", values, "doctor.folder_advice")
        else:
            yield Finding("folders", "ok", "doctor.folder_writable", values)


def _why_not_writable(folder: Path) -> str:
    """Return why no file can be made in a folder (or in the nearest one above that exists), or nothing."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    values = {"free_gb": memory.available / 1e9, "total_gb": memory.total / 1e9}
    if memory.available < LEAST_MEMORY_BYTES:
        return Finding("memory", "warn", "doctor.memory", values, "doctor.memory_advice")
    return Finding("memory", "ok", "doctor.memory", values)


def _disk(settings: Settings) -> Finding:
    folder = Path(settings.output_dir or Path.cwd())
    while not os.path.exists(folder):
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    values = {"free_gb": free / 1e9, "path": str(folder)}
    if free < LEAST_DISK_BYTES:
        return Finding("disk", "warn", "doctor.disk", values, "doctor.disk_advice")
    return Finding("disk", "ok", "doctor.disk", values)


def _environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(environ):
        if name.startswith(("ZEMOSAIC_", "ASTAP_", "CUDA_VISIBLE_DEVICES")):
            yield Finding("environment", "info", "doctor.variable", {"name": name, "value": environ[name]})


def _solvers(settings: Settings) -> Iterator[Finding]:
    # Imported here: without a window or a run, nobody pays for the solvers.
    from zemosaic_io.solvers.chain import make_solvers
    from zemosaic_pipeline.plan import solver_options

    options = solver_options(settings)
    chosen = [solver.name for solver in make_solvers(options)]
    every = {solver.name: solver for solver in make_solvers(replace(options, method="AUTO"))}
    every |= {solver.name: solver for solver in make_solvers(options)}
    usable = False
    for name, solver in every.items():
        found = solver.find()
        values = {
            "solver": name,
            "solver_key": f"method.{name}",
            "path": found.path,
            "version": found.version,
            "detail": found.detail,
        }
        if found.ok:
            usable |= name in chosen
            yield Finding("solver", "ok", "doctor.solver_found", values)
        else:
            yield Finding("solver", "info", found.key, {**values, **found.values})
    if not usable and chosen:
        values = {"method": settings.solver_method}
        yield Finding("solver", "fail", "doctor.no_solver", values, "doctor.no_solver_advice")


def _gpu(settings: Settings) -> Finding:
    try:
        status = gpu_status(refresh=True, mode=settings.asked_gpu_mode, choice=settings.gpu_choice)
    except SettingsError as error:
        return Finding("gpu", "fail", error.key, error.values)
    device = status.device
    if status.ok and device is not None:
        values = {
            "name": device.name,
            "index": device.index,
            "total_mb": device.total_bytes // 1_000_000,
            "library": device.library,
        }
        if status.unmet_wish:
            return Finding("gpu", "warn", "gpu_other_card", {**values, "wanted": status.unmet_wish})
        return Finding("gpu", "ok", "doctor.gpu_ok", values)
    wanted = settings.asked_gpu_mode == "require"
    advice = "" if status.reason is Reason.OFF else "doctor.gpu_advice"
    return Finding("gpu", "fail" if wanted else "info", status.reason_key, status.reason_values, advice)


def _window() -> Iterator[Finding]:
    missing = [name for name in WINDOW_PACKAGES if not _version_of(name)]
    if missing:
        values = {"names": ", ".join(missing)}
        yield Finding("window", "warn", "doctor.window_missing", values, "doctor.window_install")
    else:
        yield _qt_libraries()
    tk = importlib.util.find_spec("tkinter") is not None
    yield Finding("window", "info", "doctor.tk_found" if tk else "doctor.tk_missing")


def _qt_libraries() -> Finding:
    """Load Qt in a process of its own: a missing system library shows itself only there, by its name."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _QT_PROBE],
            capture_output=True,
            text=True,
            timeout=QT_PROBE_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("window", "warn", "doctor.qt_slow", {"seconds": QT_PROBE_S}, "doctor.qt_advice")
    if done.returncode == 0:
        values = {"version": done.stdout.strip(), "packages": " ".join(missing_packages())}
        values["python"] = platform.python_version()
        if is_unfit(values["version"], values["python"]):
            return Finding("window", "warn", "doctor.qt_unfit", values, "doctor.qt_unfit_advice")
        if values["packages"]:
            return Finding("window", "warn", "doctor.qt_no_x11", values, "doctor.install_packages")
        return Finding("window", "ok", "doctor.qt_ok", values)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding("window", "warn", "doctor.qt_broken", {"detail": last}, "doctor.qt_advice")
