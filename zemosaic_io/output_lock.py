"""One run at a time in an output folder; what a killed run left behind is swept away by the next."""

from __future__ import annotations

import shutil
from pathlib import Path

from zemosaic_core.errors import RunFailed, SaveFailed
from zemosaic_io.file_locks import try_lock
from zemosaic_io.regular_files import add_to_regular
from zemosaic_io.result_set import finish_or_discard

__all__ = ["OutputLock"]

_LOCK_NAME = "run.lock"
# Temporary names of `fits_write.atomic_path` and `StreamingFits` for the files of a run.
_LEFTOVERS = (".zemosaic_*.part", ".run_report.*.part")


class OutputLock:
    """Holds an output folder for one run; the system frees it when the process ends, however it ends.

    Parameters
    ----------
    output_dir, state_dir : Path
        Where the results and the state of the run go; the state folder exists.

    Raises
    ------
    RunFailed
        ``run_error_output_busy``: another run is at work in this folder.
    SaveFailed
        ``save_failed``: the lock file cannot be written.
    """

    def __init__(self, output_dir: Path, state_dir: Path) -> None:
        path = state_dir / _LOCK_NAME
        try:
            self._file = add_to_regular(path)  # open as long as the run
        except OSError as error:
            reason = error.strerror or str(error)
            raise SaveFailed(
                "save_failed", f"{path} cannot be written: {reason}", path=str(path), reason=reason
            ) from error
        if not try_lock(self._file):
            self._file.close()
            raise RunFailed(
                "run_error_output_busy", f"another run is writing to {output_dir}", path=str(output_dir)
            )
        finish_or_discard(output_dir)
        self._folders = output_dir, state_dir
        self.sweep()

    def sweep(self) -> None:
        """Remove what only a run, or a process of one, that was killed can have left: nobody else is here."""
        output_dir, state_dir = self._folders
        parts = [part for pattern in _LEFTOVERS for part in output_dir.glob(pattern)]
        for part in (*parts, *state_dir.rglob(".*.part")):
            part.unlink(missing_ok=True)
        for folder in state_dir.glob("run_*"):
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Let the next run in."""
        self._file.close()
