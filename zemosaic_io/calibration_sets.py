"""What a light frame is calibrated with, as one sealed file of the run's state; and samples of single raw frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from zemosaic_core.calibration import calibrated
from zemosaic_core.errors import RunFailed
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import FrameInfo
from zemosaic_io.sealed_arrays import load_sealed, save_sealed

__all__ = [
    "CalibrationSet",
    "RawPlanes",
    "forget_received",
    "load_set",
    "receive_set",
    "require_set",
    "save_set",
    "stored_set",
]

# Sets that the machine of the run has sent to this one, by the names of their files.
_RECEIVED: dict[str, CalibrationSet] = {}


@dataclass(frozen=True)
class CalibrationSet:
    """What is done to the raw samples of a light frame.

    Attributes
    ----------
    offset, inverse_flat : ndarray, shape (H, W), float32, or None
        See `zemosaic_core.calibration`; None: that step is left out.
    bad : ndarray, shape (k,), int64
        Flat indices of pixels that calibration does not make good.
    offset_variance, flat_variance : float
        Typical variance of the offset, ADU^2, and of the flat relative to its square; 0 where not known.
    steps : str
        Letters of CALSTAT: B, D, F.
    """

    offset: np.ndarray | None
    inverse_flat: np.ndarray | None
    bad: np.ndarray
    offset_variance: float
    flat_variance: float
    steps: str

    def apply(self, samples: np.ndarray, y0: int, x0: int) -> np.ndarray:
        """Return the calibrated samples, float32, of a window (h, w) that begins at pixel (y0, x0)."""
        window = (slice(y0, y0 + samples.shape[0]), slice(x0, x0 + samples.shape[1]))
        return calibrated(
            samples,
            None if self.offset is None else self.offset[window],
            None if self.inverse_flat is None else self.inverse_flat[window],
        )

    def variance_at(self, sky_adu: float) -> float:
        """Return the variance (ADU^2) that the masters leave in a calibrated sample of that level."""
        return self.offset_variance + self.flat_variance * sky_adu**2


def save_set(path: Path | str, made: CalibrationSet) -> None:
    """Write a set; the key it is sealed under is the name of the file.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    arrays = {"bad": made.bad}
    for name in ("offset", "inverse_flat"):
        plane = getattr(made, name)
        if plane is not None:
            arrays[name] = plane
    record = {
        "offset_variance": made.offset_variance,
        "flat_variance": made.flat_variance,
        "steps": made.steps,
    }
    save_sealed(path, Path(path).stem, record, arrays)


def stored_set(path: Path | str) -> CalibrationSet | None:
    """Return the set, or None when there is none or it is damaged."""
    stored = load_sealed(path, Path(path).stem)
    if stored is None:
        return None
    record, arrays = stored
    return CalibrationSet(arrays.get("offset"), arrays.get("inverse_flat"), arrays["bad"], **record)


def receive_set(path: str, made: CalibrationSet) -> None:
    """Keep a set of another machine's run in memory; `require_set` finds it by the name of its file."""
    _RECEIVED[_name(path)] = made


def forget_received() -> None:
    """Forget the sets of other machines' runs."""
    _RECEIVED.clear()
    load_set.cache_clear()


def _name(path: str) -> str:
    # The machine that named it may write paths in another way.
    return PureWindowsPath(path).name


def require_set(path: str) -> CalibrationSet:
    """Return a set that was made in this run, or received from the machine of the run.

    Raises
    ------
    RunFailed
        ``run_error_state_lost``: it is not there any more.
    """
    found = _RECEIVED.get(_name(path)) or stored_set(path)
    if found is None:
        raise RunFailed(
            "run_error_state_lost",
            f"{path} was damaged or removed while the run used it; start the run again",
            path=path,
        )
    return found


@lru_cache(maxsize=2)
def load_set(path: str) -> CalibrationSet:
    """As `require_set`; the last two sets are kept."""
    return require_set(path)


class RawPlanes:
    """Single raw frames as a `PixelSource` of one channel: what masters are made of.

    Parameters
    ----------
    infos : mapping of int to FrameInfo
    row_sums : mapping of int to ndarray
        Every row that is read is compared with them.
    adjust : callable
        ``adjust(key, samples, y0, x0)`` returns what becomes of a window of samples (h, w) float32.
    reads : callable
        As in `zemosaic_io.frame_store.FrameStore`.
    """

    def __init__(
        self,
        infos: Mapping[int, FrameInfo],
        row_sums: Mapping[int, np.ndarray],
        adjust: Callable[[int, np.ndarray, int, int], np.ndarray],
        reads: Callable[..., Any],
    ) -> None:
        self._infos, self._sums, self._adjust = dict(infos), dict(row_sums), adjust
        self._reads = reads

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (1, y1-y0, x1-x0) float32; missing pixels are NaN.

        Raises
        ------
        SkipItem
            The file can no longer be read, or its pixels are not those that were looked at.
        """
        info = self._infos[key]
        stored = self._reads(
            info.path, info.size_bytes, read_window, info, y0, y1, x0, x1, sums=self._sums[key]
        )
        samples = stored.astype(np.float32)
        samples[~np.isfinite(samples)] = np.nan
        return np.ascontiguousarray(self._adjust(key, samples, y0, x0)[np.newaxis])

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> None:
        """Every sample counts alike."""
        return

    def read_raw(self, key: int, y0: int, y1: int) -> None:
        """No debayering is wanted."""
        return
