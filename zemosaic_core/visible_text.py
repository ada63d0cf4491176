"""Text from files as it may be shown: what would move a cursor, colour a terminal or turn a line round is written out.

Names of files and texts of headers come from anywhere. A terminal obeys what they contain, and a window draws them from
right to left.
"""

from __future__ import annotations

import unicodedata

__all__ = ["visible_text"]

# Marks, embeddings, overrides and isolates of bidirectional text. Joiners stay: scripts and emoji need them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp", "Co", "Cn")


def visible_text(text: str) -> str:
    r"""Return one line in which every character can be seen: ``\x1b`` for the escape character.

    Line ends and tabs become spaces. Halves of surrogates, which stand for bytes that are no text, are written out too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if character in _TURNING or unicodedata.category(character) in _NOT_SHOWN:
        return character.encode("unicode_escape").decode("ascii")
    return character
