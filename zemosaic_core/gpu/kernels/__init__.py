"""CUDA sources. Each ``.cu`` file compiles with NVRTC for the card and with g++ for the tests.

Rules that make both possible: no CUDA headers, no barriers but those of ``block.cuh``, no warp operations, plain
parameter types, one ``extern "C" __global__`` per entry point, contraction to fused multiply-add switched off on both
sides.
`source` puts the text of the ``.cuh`` files where they are included, so that NVRTC needs no search path.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

__all__ = ["NAMES", "source"]

NAMES = ("combine", "decode", "measure", "place", "refine", "sample", "smoke")


@lru_cache(maxsize=32)
def source(name: str) -> str:
    """Return the text of ``<name>.cu`` with the project's own includes filled in.

    Raises
    ------
    FileNotFoundError
        There is no such file in the installation.
    """
    return _include(f"{name}.cu")


def _include(file_name: str) -> str:
    text = resources.files(__name__).joinpath(file_name).read_text(encoding="utf-8")
    return re.sub(r'^#include "([\w.]+)"$', lambda match: _include(match.group(1)), text, flags=re.MULTILINE)
