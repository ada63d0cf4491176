from __future__ import annotations

import pytest

from zemosaic_core.visible_text import visible_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("light_001.fit", "light_001.fit"),
        ("M 31 – Andromède ★ 星雲 👩‍🚀", "M 31 – Andromède ★ 星雲 👩‍🚀"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\r\nc\td", "a b  c d"),
        ("\x9b31mred\x7f", r"\x9b31mred\x7f"),
        ("gpj.\u202etif", r"gpj.\u202etif"),
        ("\u2066isolated\u2069\u200f", r"\u2066isolated\u2069\u200f"),
        ("one\u2028two", r"one\u2028two"),
        ("bytes \udce9", r"bytes \udce9"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert visible_text(text) == shown
    assert "".join(shown.split()).isprintable() or "\u200d" in shown
