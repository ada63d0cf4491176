"""FITS cards of a WCS in little memory: a run keeps those of every frame, and frames of a night have the same names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["WcsCards"]

# Name -> place among the values, for every set of names that was met.
_PLACES: dict[tuple[str, ...], dict[str, int]] = {}


class WcsCards(Mapping[str, Any]):
    """Cards that never change; equal to any mapping with the same cards.

    A `dict` of the cards of a plain WCS takes 2.2 kB, this 0.5 kB.

    Parameters
    ----------
    cards : mapping of str to str, int or float

    Attributes
    ----------
    memo : Any
        What the builder of the WCS wants to remember of these cards; no part of them, and not pickled.
    """

    __slots__ = ("_places", "_values", "memo")

    def __init__(self, cards: Mapping[str, Any]) -> None:
        names = tuple(map(sys.intern, cards))
        places = _PLACES.get(names)
        if places is None:
            places = _PLACES.setdefault(names, {name: i for i, name in enumerate(names)})
        self._places = places
        self._values = tuple(sys.intern(v) if type(v) is str else v for v in cards.values())
        self.memo: Any = None

    @staticmethod
    def of(cards: Mapping[str, Any]) -> WcsCards:
        """Return the cards themselves where they are of this kind already."""
        return cards if isinstance(cards, WcsCards) else WcsCards(cards)

    def __getitem__(self, name: str) -> Any:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return repr(dict(self))

    def __copy__(self) -> WcsCards:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> WcsCards:
        return self

    def __reduce__(self) -> tuple[type[WcsCards], tuple[dict[str, Any]]]:
        return WcsCards, (dict(self),)
