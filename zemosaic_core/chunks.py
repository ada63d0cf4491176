"""Memory as arithmetic: what an operation needs per row, and how its rows are cut into chunks.

Numbers only; no device, no allocation. The CPU engine plans its RAM with it, the GPU policy its VRAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "ALLOCATION_UNIT",
    "Buffer",
    "Workload",
    "equal_chunks",
    "iter_row_chunks",
    "lattice_unit",
    "peak_bytes",
    "round_up",
    "rows_for_budget",
]

# CuPy's memory pool hands out multiples of 512 bytes; counting in the same unit makes the plan exact.
ALLOCATION_UNIT = 512


def round_up(n_bytes: int, unit: int = ALLOCATION_UNIT) -> int:
    """Return ``n_bytes`` rounded up to a multiple of ``unit``; zero stays zero."""
    return -(-n_bytes // unit) * unit


@dataclass(frozen=True)
class Buffer:
    """One array an operation allocates: ``copies * min(fixed + per_row * rows, limit)`` bytes.

    Attributes
    ----------
    name : str
        What it holds, for the record.
    fixed : int
        Bytes that do not depend on the chunk.
    per_row : int
        Bytes per row of the chunk (halo rows included).
    copies : int
        How many of them are alive at once (2 for double buffering).
    limit : int
        One copy never grows beyond this many bytes, whatever the rows (a window ends where its image ends);
        0: no such limit.
    """

    name: str
    fixed: int = 0
    per_row: int = 0
    copies: int = 1
    limit: int = 0

    def n_bytes(self, rows: int) -> int:
        """Return the bytes of all copies for a chunk of ``rows`` rows, in whole allocation units."""
        one = self.fixed + self.per_row * rows
        return self.copies * round_up(min(one, self.limit) if self.limit else one)


def peak_bytes(buffers: tuple[Buffer, ...], rows: int, halo: int = 0) -> int:
    """Return the bytes alive at once for a chunk of ``rows`` rows with ``halo`` rows on either side."""
    return sum(buffer.n_bytes(rows + 2 * halo) for buffer in buffers)


@dataclass(frozen=True)
class Workload:
    """What an operation declares before anything is allocated.

    Attributes
    ----------
    op : str
        Name of the operation (``stack``, ``coadd``, ``hot_pixels``, ...); learned limits belong to it.
    rows : int
        Rows of the whole result.
    buffers : tuple of Buffer
        Every array that is alive while a chunk is worked on.
    min_rows : int
        Smallest chunk worth launching.
    align : int
        Chunks start at multiples of this (2 for a colour filter array).
    halo : int
        Extra input rows above and below a chunk.
    in_flight : int
        Chunks that are on the device at the same time: the next one is filled while this one is finished.
    in_flight_rows : int
        Chunks of fewer rows than this are alone: what is loaded beside their own rows costs more than is won.
    host_rows : int
        Most rows per chunk the host has room for; 0: no limit.
    elements_per_row : int
        Elements of the largest array per row; keeps 32-bit indices of a kernel in range. 0: no such limit.
    upload_bytes, download_bytes : int
        Bytes that travel to and from the device for the whole operation.
    reread_bytes : int
        Bytes times rows: divided by the rows of a chunk, what travels again because chunks need some of their
        surroundings.
    cpu_seconds : float
        Expected time on the CPU for the whole operation; 0 when unknown (then it is never "too small").
    least_cpu_seconds : float
        An operation that is expected to take less is treated as if it took this long.
    start : int
        First row that is to be done; those above it are there already.
    lattice_rows, origin : int
        Chunks that are tall enough for it to cost little begin at multiples of this, a power of two, or of a smaller
        power of two; counted from the row ``origin``.
    detail : dict
        Further numbers worth recording (frames, channels, width).
    """

    op: str
    rows: int
    buffers: tuple[Buffer, ...]
    min_rows: int = 1
    align: int = 1
    halo: int = 0
    in_flight: int = 1
    in_flight_rows: int = 0
    host_rows: int = 0
    elements_per_row: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    reread_bytes: int = 0
    cpu_seconds: float = 0.0
    least_cpu_seconds: float = 0.0
    start: int = 0
    lattice_rows: int = 1
    origin: int = 0
    detail: dict[str, int | float | str] = field(default_factory=dict, compare=False)

    def peak(self, rows: int) -> int:
        """Return the bytes alive at once while the work is done in chunks of ``rows`` rows."""
        return self._alive(rows) * peak_bytes(self.buffers, rows, self.halo)

    def chunks(self, max_rows: int, y0: int | None = None, y1: int | None = None) -> list[tuple[int, int]]:
        """Return the rows that are to be done, or ``y0..y1`` of them, in chunks of at most ``max_rows`` rows."""
        first, last = self.start if y0 is None else y0, self.rows if y1 is None else y1
        unit = lattice_unit(max_rows, self.lattice_rows)
        if unit <= self.align:
            return list(equal_chunks(first, last, max_rows, align=self.align))
        return list(equal_chunks(first, last, max_rows, align=unit, origin=self.origin))

    def _alive(self, rows: int) -> int:
        n_chunks = -(-self.rows // max(1, rows))
        return max(1, min(self.in_flight if rows >= self.in_flight_rows else 1, n_chunks))

    def rows_within(self, budget_bytes: int, *, several: bool = False) -> int:
        """Return the most rows of a chunk whose peak fits the budget; 0 if none does.

        One chunk with all rows may fit where two that are nearly as large do not: nothing is in flight beside
        it. ``several``: there will be more than one chunk.
        """
        if not several and self.peak(self.rows) <= budget_bytes:
            return self.rows
        most = self.rows
        if self.in_flight > 1:
            rows = rows_for_budget(self.buffers, budget_bytes // self.in_flight, most - 1, halo=self.halo)
            if rows >= self.in_flight_rows:
                return rows
            most = min(most, self.in_flight_rows) - 1
        return rows_for_budget(self.buffers, budget_bytes, most, halo=self.halo)


def lattice_unit(rows: int, lattice_rows: int) -> int:
    """Return at what multiples a chunk of ``rows`` rows begins: at most a quarter of it is given away for that.

    ``lattice_rows``, a power of two, or a smaller one.
    """
    return min(lattice_rows, 1 << max(0, (rows // 4).bit_length() - 1))


def rows_for_budget(buffers: tuple[Buffer, ...], budget_bytes: int, max_rows: int, *, halo: int = 0) -> int:
    """Return the largest number of rows whose peak fits the budget, at most ``max_rows``; 0 if none does."""
    low, high = 0, max_rows
    while low < high:
        middle = (low + high + 1) // 2
        if peak_bytes(buffers, middle, halo) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def equal_chunks(
    y0: int, y1: int, max_rows: int, *, align: int = 1, origin: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield ``(a, b)`` covering ``y0..y1`` in chunks of at most ``max_rows`` rows of nearly equal size.

    Chunk borders lie at multiples of ``align`` counted from ``origin``, by default from ``y0``. No chunk is a small
    remainder: 100 rows in chunks of at most 99 become 50 + 50.

    Raises
    ------
    ValueError
        ``max_rows`` or ``align`` is not positive, or not even one aligned chunk fits.
    """
    if max_rows < 1 or align < 1:
        raise ValueError(f"max_rows {max_rows} and align {align} must be positive")
    rows = y1 - y0
    if rows <= 0:
        return
    if max_rows < rows and max_rows < align:
        raise ValueError(f"chunks of {max_rows} rows cannot start at multiples of {align}")
    lead = 0 if origin is None else (y0 - origin) % align
    if lead and rows <= max_rows:
        yield y0, y1
        return
    units = -(-(rows + lead) // align)
    n_chunks = -(-units // max(1, max_rows // align))
    for i in range(n_chunks):
        a = units * i // n_chunks * align
        b = units * (i + 1) // n_chunks * align
        yield y0 + max(0, a - lead), y0 + min(b - lead, rows)


def iter_row_chunks(
    buffers: tuple[Buffer, ...],
    rows: int,
    budget_bytes: int,
    *,
    align: int = 1,
    halo: int = 0,
    min_rows: int = 1,
) -> Iterator[tuple[int, int]]:
    """Yield equal chunks ``(a, b)`` of ``0..rows`` that fit the budget, but never fewer than ``min_rows``.

    A budget too small for ``min_rows`` is exceeded rather than refused: on the CPU a slow run beats none.
    """
    fitting = rows_for_budget(buffers, budget_bytes, rows, halo=halo)
    yield from equal_chunks(0, rows, max(fitting // align * align, min_rows, align), align=align)
