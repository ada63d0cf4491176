"""The options table of the README comes from the catalogue."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from zemosaic_settings import OPTIONS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("options_table", ROOT / "tools" / "options_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_names_every_option_with_default_and_limits(tool):
    table = tool.options_table()
    for option in OPTIONS:
        assert (f"| `{option.key}` |" in table) is option.in_forms
    assert "| `stacking_kappa_low` | `3` | 0.1 to 10 σ |" in table
    assert "| `tile_feather_px` | `96` | 0 to 4096 px |" in table
    assert "| `max_raw_per_master_tile` | `0` (no limit) |" in table


def test_table_replaces_what_stands_between_the_markers(tool):
    text = f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n"
    new = tool.with_table(text, "| new |")
    assert new == f"before\n{tool.BEGIN}\n\n| new |\n{tool.END}\nafter\n"
    assert tool.with_table(new, "| new |") == new
    with pytest.raises(ValueError, match="needs the lines"):
        tool.with_table("nothing", "")


def test_table_in_the_documents_is_up_to_date(tool):
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in documents if path.is_file()}
    holding = {path: text for path, text in texts.items() if tool.BEGIN in text}
    assert holding, f"no document holds the line {tool.BEGIN}"
    for path, text in holding.items():
        current = tool.with_table(text, tool.options_table())
        assert current == text, f"run: python -m tools.options_table {path.relative_to(ROOT)}"
