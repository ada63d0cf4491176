"""Which form of a word goes with a number, by the rules of the Unicode CLDR.

A text gives the forms in the order of `plural_categories`, as in ``{n} {n:row|rows}``. Only whole things are counted;
the form that CLDR keeps for fractions (``other`` in Polish) and the one for whole millions (``many`` in French,
Italian, Portuguese and Spanish) are therefore not asked for. Portuguese is that of
Portugal, where only one is singular.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["plural_categories", "plural_index"]


@dataclass(frozen=True)
class _Rule:
    categories: tuple[str, ...]
    index: Callable[[int], int]


def _polish(n: int) -> int:
    if n == 1:
        return 0
    return 1 if n % 10 in (2, 3, 4) and n % 100 not in (12, 13, 14) else 2


_TWO = ("one", "other")
_ONE_ALONE = _Rule(_TWO, lambda n: int(n != 1))
_RULES = {
    "fr": _Rule(_TWO, lambda n: int(n not in (0, 1))),
    "is": _Rule(_TWO, lambda n: int(n % 10 != 1 or n % 100 == 11)),
    "pl": _Rule(("one", "few", "many"), _polish),
}


def plural_categories(language: str) -> tuple[str, ...]:
    """Return the CLDR names of the forms a counted word has in a language, in the order in which texts give them."""
    return _RULES.get(language, _ONE_ALONE).categories


def plural_index(language: str, n: int) -> int:
    """Return which of `plural_categories` goes with ``n`` things; a language without a rule counts like English."""
    return _RULES.get(language, _ONE_ALONE).index(abs(n))
