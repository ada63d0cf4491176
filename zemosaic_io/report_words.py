"""What the report page needs of a language: texts by key, numbers, sizes and moments as people write them."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Words"]


class Words(Protocol):
    """Words, numbers and dates of the reader's language."""

    @property
    def language_code(self) -> str:
        """Code of the language, as the page tells it to the browser."""
        ...

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return the text of a key with its placeholders filled."""
        ...

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with so many digits behind the decimal sign."""
        ...

    def written(self, number: str) -> str:
        """Return a number that Python wrote as the language writes it."""
        ...

    def size(self, n_bytes: float) -> str:
        """Return a number of bytes in a fitting unit."""
        ...

    def moment(self, iso: str) -> str:
        """Return date and time of day of an ISO 8601 text."""
        ...
