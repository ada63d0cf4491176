"""Texts of settings that list something."""

from __future__ import annotations

__all__ = ["listed"]


def listed(text: str) -> list[str]:
    """Return what stands between commas or semicolons, without the blanks around it; nothing for empty places."""
    return [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
