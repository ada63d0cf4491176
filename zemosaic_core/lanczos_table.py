"""The weights of the six taps of Lanczos3 in one direction, for processor and card."""

from __future__ import annotations

import numpy as np

__all__ = ["LANCZOS_ROWS", "LANCZOS_TABLE", "make_lanczos_table"]

LANCZOS_ROWS = 4096


def make_lanczos_table(rows: int = LANCZOS_ROWS) -> np.ndarray:
    """Tabulate normalised Lanczos3 weights.

    Row ``k`` holds the weights of the taps ``-2 .. 3`` for a fraction ``k / rows``:
    ``L(z) = sinc(z) sinc(z / 3)``, ``|z| < 3``, divided by their sum so that a constant stays a constant.

    Parameters
    ----------
    rows : int
        Number of intervals; the table has one row more.

    Returns
    -------
    ndarray, shape (rows + 1, 6), float32
    """
    fraction = np.arange(rows + 1, dtype=np.float64)[:, None] / rows
    z = fraction - np.arange(-2, 4, dtype=np.float64)[None, :]
    weights = np.where(np.abs(z) < 3.0, np.sinc(z) * np.sinc(z / 3.0), 0.0)
    # Exact zeros at whole pixels; sinc leaves 1e-17 there, which would let a far NaN decide.
    weights[0] = (0, 0, 1, 0, 0, 0)
    weights[-1] = (0, 0, 0, 1, 0, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


LANCZOS_TABLE = make_lanczos_table()
LANCZOS_TABLE.setflags(write=False)
