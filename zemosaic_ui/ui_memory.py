"""What the window remembers between two starts: recent folders, pane sizes, the pace of past runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from zemosaic_config import write_json
from zemosaic_io.manifest import load_json

__all__ = ["UiMemory", "read_memory", "write_memory"]

MAX_RECENT = 8


@dataclass
class UiMemory:
    """Facts about the last use; all of them may be missing or old."""

    recent_inputs: list[str] = field(default_factory=list)
    recent_outputs: list[str] = field(default_factory=list)
    recent_results: list[str] = field(default_factory=list)
    pace: dict[str, float] = field(default_factory=dict)

    def visit(self, kind: str, path: str) -> None:
        """Put a folder at the head of ``inputs``, ``outputs`` or ``results``."""
        recent: list[str] = getattr(self, f"recent_{kind}")
        if path in recent:
            recent.remove(path)
        recent.insert(0, path)
        del recent[MAX_RECENT:]


def read_memory(path: Path) -> UiMemory:
    """Return the memory in a file; a missing or damaged file is an empty one (nothing of value is lost)."""
    try:
        content = load_json(path, 10_000_000)
    except (OSError, ValueError):
        return UiMemory()
    memory = UiMemory()
    if isinstance(content, dict):
        for item in fields(UiMemory):
            value = content.get(item.name)
            if type(value) is type(getattr(memory, item.name)):
                setattr(memory, item.name, value)
    return memory


def write_memory(path: Path, memory: UiMemory) -> None:
    """Save the memory.

    Raises
    ------
    SaveFailed
        The file cannot be written.
    """
    write_json(path, asdict(memory))
