"""The named objects and stars that come with the program: nebulae, clusters, galaxies, stars with names.

A table with tabs, UTF-8, one object a line; `tools/build_sky_objects.py` writes it and says where its rows come from.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

from zemosaic_core.annotation import SkyObject
from zemosaic_core.errors import RunFailed

__all__ = ["BUILT_IN_OBJECTS", "COLUMNS", "built_in_objects", "read_objects"]

BUILT_IN_OBJECTS = Path(__file__).resolve().parent / "data" / "sky_objects.tsv"

COLUMNS = (
    *("kind", "name", "other_names", "title", "ra_deg", "dec_deg"),
    *("major_arcmin", "minor_arcmin", "angle_deg", "mag", "pm_ra_mas", "pm_dec_mas"),
)
_N_TEXTS = 4
_N_MAY_BE_UNKNOWN = 4


@lru_cache(maxsize=1)
def built_in_objects() -> tuple[SkyObject, ...]:
    """Return the objects that come with the program, the same ones every time.

    Raises
    ------
    RunFailed
        ``objects_unreadable``: the file is missing or damaged.
    """
    return read_objects(BUILT_IN_OBJECTS)


def read_objects(path: Path) -> tuple[SkyObject, ...]:
    """Read such a table; errors as `built_in_objects`."""
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if head.split("\t") != list(COLUMNS):
            raise ValueError(f"its columns are {head[:80]!r}")
        return tuple(_object(line.split("\t")) for line in lines)
    except (OSError, ValueError) as error:
        raise RunFailed(
            "objects_unreadable",
            f"cannot read the list of objects {path}: {error}; reinstall the program",
            path=str(path),
            reason=str(error),
        ) from error


def _object(cells: list[str]) -> SkyObject:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} columns in the row of {cells[1] if len(cells) > 1 else cells}")
    kind, name, others, title = cells[:_N_TEXTS]
    ra, dec, *rest = cells[_N_TEXTS:]
    sizes = [float(cell) if cell else math.nan for cell in rest[:_N_MAY_BE_UNKNOWN]]
    motion = [float(cell) if cell else 0.0 for cell in rest[_N_MAY_BE_UNKNOWN:]]
    return SkyObject(kind, name, others, title, float(ra), float(dec), *sizes, *motion)
