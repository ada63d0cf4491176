"""Write the table of options of ZeMosaic 4: ``python -m tools.old_options_table FILE``.

The table stands between two marker lines; without a file it is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import options_table
from zemosaic_settings.old_options import OLD_OPTIONS

__all__ = ["main", "old_options_table", "with_table"]

BEGIN = "<!-- old options: begin (made by tools/old_options_table.py) -->"
END = "<!-- old options: end -->"
FATES = {
    "replaced": "replaced by {instead}",
    "always": "nothing to set",
    "automatic": "automatic",
    "absent": "not there",
}


def old_options_table() -> str:
    """Return Markdown: option, fate, why; options of one fate together."""
    lines = ["| options of version 4 | fate | why |", "|---|---|---|"]
    for family in OLD_OPTIONS:
        names = ", ".join(f"`{key}`" for key in family.defaults)
        fate = FATES[family.fate].format(instead=f"`{family.instead}`")
        lines.append(f"| {names} | {fate} | {family.why} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return a document with the table between its markers; see `options_table.with_table`."""
    return options_table.with_table(text, old_options_table(), BEGIN, END)


def main(arguments: list[str]) -> int:
    """Write the table into a document, or print it."""
    if not arguments:
        sys.stdout.write(old_options_table())
        return 0
    path = Path(arguments[0])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
