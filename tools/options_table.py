"""Write the options table of the README: ``python -m tools.options_table [--check] FILE``.

The table stands between two marker lines; without a file it is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_settings import GROUPS, Option, options_in_group

__all__ = ["main", "options_table", "with_table"]

BEGIN = "<!-- options: begin (made by tools/options_table.py) -->"
END = "<!-- options: end -->"


def options_table(language: str = "en") -> str:
    """Return Markdown: one table per group of options."""
    texts = ZeMosaicLocalization(language)
    parts = []
    for group in GROUPS:
        rows = [_row(option, texts) for option in options_in_group(group)]
        parts.append(f"**{texts.get(f'group.{group}')}**\n")
        parts.append("| option | default | allowed | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def with_table(text: str, table: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """Return a document with what stands between its markers replaced.

    Raises
    ------
    ValueError
        The document lacks a marker.
    """
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the document needs the lines {begin_mark!r} and {end_mark!r}")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def _row(option: Option, texts: ZeMosaicLocalization) -> str:
    meaning = texts.get(f"{option.text_key}.help").replace("|", "\\|")
    cells = (f"`{option.key}`", _shown(option.default, option, texts), _allowed(option, texts), meaning)
    return "| " + " | ".join(cells) + " |"


def _allowed(option: Option, texts: ZeMosaicLocalization) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.type == "bool":
        return "`true`, `false`"
    if option.type in ("int", "float"):
        text = f"{option.minimum:g} to {option.maximum:g}"
        return f"{text} {texts.get(f'unit.{option.unit}')}".strip() if option.unit else text
    if option.type == "pair":
        return f"two numbers from {option.minimum:g} to {option.maximum:g}"
    return {"folder": "a folder", "file": "a file"}.get(option.type, "a text")


def _shown(value: object, option: Option, texts: ZeMosaicLocalization) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", None):
        return ""
    shown = f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    if option.special and value == option.minimum:
        shown += f" ({texts.get(f'special.{option.special}').lower()})"
    return shown


def main() -> int:
    """Write, check or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the table is up to date")
    options = parser.parse_args()
    table = options_table()
    if options.file is None:
        print(table)
        return 0
    old = options.file.read_text(encoding="utf-8")
    new = with_table(old, table)
    if options.check:
        if new != old:
            print(f"the options table of {options.file} is out of date; run tools/options_table.py on it")
        return int(new != old)
    options.file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
