"""Mosaics of the same nights by other programs, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zemosaic_io.glow_session import GlowNight

__all__ = ["PEERS", "run_peer"]

PEERS: tuple[str, ...] = ()


def run_peer(name: str, night: GlowNight, output: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the mosaic of another program and what it cost, or None where it is not installed."""
    raise ValueError(f"peer {name!r}; known are {', '.join(PEERS)}")
