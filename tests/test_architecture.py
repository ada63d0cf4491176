"""The rooms and who may know whom: read from the source alone, nothing is imported."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("zemosaic_core", "zemosaic_io", "zemosaic_settings", "zemosaic_pipeline", "zemosaic_ui", "locales")
ARRAY_DOORS = ("zemosaic_gpu_policy", "zemosaic_utils", "zemosaic_align_stack", "lecropper", "zequalityMT")
QT_DOORS = ("zemosaic_gui_qt", "zemosaic_filter_gui_qt")
TK_DOORS = ("zemosaic_gui",)
ABOVE_THE_PIPELINE = ("zemosaic_ui", "locales", "zemosaic_config", "solver_settings", *QT_DOORS, *TK_DOORS)
SETTINGS_MAY_IMPORT = ("zemosaic_settings", "zemosaic_core.errors", "pydantic")
# llvmlite is the code generator of numba and comes with it.
CORE_MAY_IMPORT = ("zemosaic_core", "numpy", "scipy", "numba", "llvmlite", "sep", "astropy.wcs", "cupy")
QT_PACKAGES = ("PySide6", "pyqtgraph", "shiboken6")
TK_PACKAGES = ("tkinter", "_tkinter")
# The report page is a document for the user, written where the run ends: the one look-up of texts below the windows.
WRITES_THE_PAGE = "zemosaic_pipeline.report imports locales.zemosaic_localization"
NOT_IN_THE_WORKER = (*QT_PACKAGES, *TK_PACKAGES, "matplotlib", "locales")


def sources() -> dict[str, Path]:
    """Dotted name -> file of every module of the program."""
    found = {path.stem: path for path in ROOT.glob("*.py") if path.stem not in ("conftest", "setup")}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


@cache
def imports(module: str, *, only_at_top: bool = False) -> tuple[str, ...]:
    """What a module imports, as dotted names of modules."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    nodes = tree.body if only_at_top else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            # `from room import module` names a module as often as a thing in it.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append(full if full in SOURCES else base)
    return tuple(found)


def absolute(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return str(node.module)
    package = module.split(".")
    if SOURCES[module].name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def starts_with(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def is_ours(name: str) -> bool:
    return name in SOURCES or name.partition(".")[0] in SOURCES


def is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def of_room(*rooms: str) -> list[str]:
    return [module for module in SOURCES if starts_with(module, rooms)]


def offences(modules, is_offence) -> list[str]:
    return sorted(f"{m} imports {name}" for m in modules for name in imports(m) if is_offence(m, name))


def test_core_knows_only_arrays():
    def offence(module, name):
        if starts_with(name, ("cupy", "cupyx")):
            return not starts_with(module, ("zemosaic_core.gpu",))
        return not is_standard(name) and not starts_with(name, CORE_MAY_IMPORT)

    assert offences(of_room("zemosaic_core"), offence) == []


def test_cupy_is_named_in_one_place():
    others = [module for module in SOURCES if not starts_with(module, ("zemosaic_core.gpu",))]
    assert offences(others, lambda _, name: starts_with(name, ("cupy", "cupyx", "cupy_backends"))) == []


def test_io_knows_core_and_itself():
    allowed = ("zemosaic_core", "zemosaic_io")
    assert offences(of_room("zemosaic_io"), lambda _, n: is_ours(n) and not starts_with(n, allowed)) == []


def test_settings_know_only_themselves():
    assert (
        offences(
            of_room("zemosaic_settings"),
            lambda _, name: not is_standard(name) and not starts_with(name, SETTINGS_MAY_IMPORT),
        )
        == []
    )


def test_array_doors_look_down_only():
    below = ("zemosaic_core", "zemosaic_io", *ARRAY_DOORS)
    assert {"zemosaic_gpu_policy", "zemosaic_utils", "zemosaic_align_stack"} <= set(SOURCES)
    doors = [door for door in ARRAY_DOORS if door in SOURCES]
    assert offences(doors, lambda _, name: is_ours(name) and not starts_with(name, below)) == []
    assert offences(["zemosaic_gpu_policy"], lambda _, name: name in ARRAY_DOORS[1:]) == []
    assert offences(["zemosaic_utils"], lambda _, name: name in ARRAY_DOORS[2:]) == []


def test_pipeline_does_not_look_up():
    found = offences(of_room("zemosaic_pipeline"), lambda _, n: starts_with(n, ABOVE_THE_PIPELINE))
    assert found == [WRITES_THE_PAGE]


def test_worker_reaches_no_window_and_no_text():
    reached, waiting = set(), ["zemosaic_worker"]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        for name in imports(module):
            parts = name.split(".")
            # Importing a.b.c runs a, a.b and a.b.c.
            waiting += [
                ".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in SOURCES
            ]
    assert "zemosaic_pipeline.runner" in reached
    found = offences(reached, lambda _, name: starts_with(name, NOT_IN_THE_WORKER))
    assert [line for line in found if not line.startswith("locales.")] == [WRITES_THE_PAGE]


def test_qt_lives_in_its_rooms():
    others = [m for m in SOURCES if not starts_with(m, (*QT_DOORS, "zemosaic_ui.qt"))]
    assert offences(others, lambda _, name: starts_with(name, QT_PACKAGES)) == []


def test_tk_lives_in_its_rooms():
    others = [m for m in SOURCES if not starts_with(m, (*TK_DOORS, "zemosaic_ui.tk"))]
    assert offences(others, lambda _, name: starts_with(name, TK_PACKAGES)) == []


def test_models_of_the_windows_know_no_window():
    models = [m for m in of_room("zemosaic_ui") if not starts_with(m, ("zemosaic_ui.qt", "zemosaic_ui.tk"))]
    windows = ("zemosaic_ui.qt", "zemosaic_ui.tk", *QT_DOORS, *TK_DOORS, "run_zemosaic", "zemosaic_worker")
    assert offences(models, lambda _, name: starts_with(name, windows)) == []


def test_nothing_imports_in_a_circle():
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "open":
            pytest.fail(" -> ".join([*path[path.index(module) :], module]))
        if module in state:
            return
        state[module] = "open"
        for name in imports(module, only_at_top=True):
            if name in SOURCES and name != module and not starts_with(module, (name,)):
                visit(name, (*path, module))
        state[module] = "done"

    for module in SOURCES:
        visit(module, ())


def test_no_file_is_a_drawer_for_anything():
    drawers = re.compile(r"(^|_)(helpers?|misc|utils2|common2|manager)$")
    assert [m for m in SOURCES if drawers.search(m.rpartition(".")[2])] == []


# Calls whose first literal argument is what a person reads, in either toolkit.
_TEXT_CALLS = frozenset(
    {
        *("setText", "setWindowTitle", "setToolTip", "setStatusTip", "setTitle", "setPlaceholderText"),
        *(
            "setPrefix",
            "setSuffix",
            "setSpecialValueText",
            "setLabelText",
            "setInformativeText",
            "setWhatsThis",
        ),
        *("QLabel", "QPushButton", "QCheckBox", "QRadioButton", "QGroupBox", "QAction", "QToolButton"),
        *("addAction", "addMenu", "addTab", "addItem", "showMessage", "add_command", "add_cascade", "title"),
    }
)
_TEXT_KEYWORDS = frozenset({"text", "label", "title", "message", "tooltip"})
_WORD = re.compile(r"^\W*[A-Za-z]{2,}")
_KEY_OR_COLOUR = re.compile(r"^([a-z0-9]+([._][a-z0-9]+)+|#[0-9a-fA-F]{3,8})$")
# Units, names and key strokes that are the same in every language.
_SAME_EVERYWHERE = re.compile(
    r"^(ZeMosaic.*|RGB|RA|Dec|FITS|PNG|TIFF|GPU|CPU|px|arcsec|deg|(Ctrl|Shift|Alt)\+.*)$"
)


def literals_shown(module: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        shown = list(node.args) if name in _TEXT_CALLS else []
        shown += [item.value for item in node.keywords if item.arg in _TEXT_KEYWORDS]
        for value in shown:
            is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
            if not is_text or _KEY_OR_COLOUR.match(value.value) or _SAME_EVERYWHERE.match(value.value):
                continue
            if _WORD.search(value.value):
                found.append(f"{module}:{node.lineno} shows {value.value!r}")
    return found


@pytest.mark.parametrize(
    "module", [m for m in SOURCES if starts_with(m, (*QT_DOORS, *TK_DOORS, "zemosaic_ui"))] or [None]
)
def test_windows_show_texts_by_key(module):
    assert literals_shown(module) == []
