"""There is one place that decides between GPU and CPU; every other place that could is found and named here."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The door and the steps it takes after an error.
POLICY = {"zemosaic_gpu_policy.py", "zemosaic_core/gpu/ladder.py", "zemosaic_core/gpu/budget.py"}
# What a decision is made of: whether there is a card, how much it holds, what went wrong on it.
INGREDIENTS = {
    "GPU_AVAILABLE",
    "OutOfMemoryError",
    "_has_gpu_budget",
    "devices_in_order",
    "classify",
    "decide",
    "gpu_is_available",
    "gpu_memory_sufficient",
    "gpu_status",
    "has_driver",
    "is_asked_for",
    "is_available",
    "make_budget",
    "memGetInfo",
    "mem_info",
    "remembered_status",
}
# File -> ingredients it may touch, and why.
MAY_TOUCH = {
    "zemosaic_core/gpu/device.py": {
        "devices_in_order",
        "is_asked_for",
        "classify",
        "memGetInfo",
        "OutOfMemoryError",
    },  # facts
    "zemosaic_core/gpu/probe.py": {"devices_in_order", "classify", "has_driver"},  # facts, stage by stage
    "zemosaic_core/gpu/launch.py": {"classify"},  # waits for the card after an error
    "zemosaic_core/gpu/windows.py": {"classify"},  # stages in ordinary memory where pages cannot be locked
    "zemosaic_io/gpu_probe.py": {"has_driver", "remembered_status"},  # asks in another process
    "cuda_utils.py": {"has_driver"},  # before CuPy is imported
    "zemosaic_utils.py": {"gpu_is_available", "gpu_memory_sufficient"},  # the public answers
    "zemosaic_align_stack.py": {"gpu_memory_sufficient"},  # the public answer
    "zemosaic_pipeline/doctor.py": {"gpu_status"},  # tells the user
    "zemosaic_ui/jobs.py": {"gpu_status"},  # tells the window
}
# Conditions about the GPU that choose no backend: (file, what the condition reads).
MAY_ASK = {
    ("zemosaic_utils.py", "use_gpu"),  # which policy a caller's wish means
    ("zemosaic_align_stack.py", "use_gpu"),  # the same
    ("zemosaic_pipeline/plan.py", "use_gpu_phase5"),  # which mode the settings mean
    ("zemosaic_pipeline/plan.py", "gpu_id_phase5"),  # which card was asked for
    ("zemosaic_pipeline/doctor.py", "gpu_id_phase5"),  # which card was asked for
}


def program_files() -> list[Path]:
    rooms = ("zemosaic_core", "zemosaic_io", "zemosaic_pipeline", "zemosaic_settings", "zemosaic_ui")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    return sorted(files + list(ROOT.glob("*.py")))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names_in(node: ast.AST) -> set[str]:
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
    return found


def test_ingredients_of_a_decision_are_used_by_the_policy_only():
    offences = []
    for path in program_files():
        if relative(path) in POLICY:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        touched = names_in(tree) & INGREDIENTS
        offences += [f"{relative(path)} uses {n}" for n in touched - MAY_TOUCH.get(relative(path), set())]
    assert sorted(offences) == []


def test_no_condition_outside_the_policy_chooses_by_gpu():
    """A choice shows as a condition on something called gpu, cuda, cupy or vram, or on a policy's status."""
    offences = []
    for path in program_files():
        name = relative(path)
        if name in POLICY or name.startswith(("zemosaic_core/gpu/", "zemosaic_ui/", "zemosaic_settings/")):
            continue  # the card's own room computes, the windows show, the settings check themselves
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.If | ast.IfExp | ast.While):
                continue
            read = names_in(node.test)
            suspicious = {
                n for n in read if any(word in n.lower() for word in ("gpu", "cuda", "cupy", "vram"))
            }
            if "policy" in read and read & {"ok", "status", "mode", "budget"}:
                suspicious.add("policy.status")
            offences += [f"{name}:{node.lineno} asks {n}" for n in suspicious if (name, n) not in MAY_ASK]
    assert sorted(offences) == []


def test_gpu_bodies_are_only_handed_to_a_policy():
    """Whoever makes a GPU body passes it to ``policy.run``; nobody calls it."""
    bodies = {"GpuCoadd", "GpuRefine", "GpuStack"}
    users = set()
    for path in program_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if names_in(tree) & bodies and not relative(path).startswith("zemosaic_core/gpu/"):
            users.add(relative(path))
            for node in ast.walk(tree):
                called = node.func if isinstance(node, ast.Call) else None
                assert not (isinstance(called, ast.Name) and called.id == "body"), relative(path)
            assert ".run(" in path.read_text(encoding="utf-8")
    assert users == {"zemosaic_utils.py", "zemosaic_align_stack.py"}
