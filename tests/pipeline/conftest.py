"""One small made-up night and one run on it, shared by the tests of the pipeline."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline.worker_pool import WorkerPool
from zemosaic_worker import run_hierarchical_mosaic

SHAPE_HW = (720, 480)


@pytest.fixture(scope="session")
def small_night(tmp_path_factory):
    """Two overlapping panels of ten frames with WCS, one clouded, one trailed, satellites, hot pixels."""
    folder = tmp_path_factory.mktemp("night")
    return write_demo_night(
        folder / "raw", panels=(1, 2), frames_per_panel=10, shape_hw=SHAPE_HW, with_wcs=True, n_satellites=3
    )


@pytest.fixture(scope="session")
def small_run(small_night, tmp_path_factory):
    """The result of a run with default settings (no GPU asked for)."""
    return run_hierarchical_mosaic(small_night.folder, tmp_path_factory.mktemp("mosaic"), gpu_mode="off")


class Mosaic:
    """A finished mosaic read back from disk as any other program would."""

    def __init__(self, result) -> None:
        with fits.open(result.outputs["science"]) as hdus:
            self.header = hdus[0].header.copy()
            self.image = hdus[0].data.astype(np.float32)
        self.wcs = WCS(self.header).celestial
        self.coverage = fits.getdata(result.outputs["coverage"]).astype(np.float32)


@pytest.fixture(scope="session")
def small_mosaic(small_run):
    return Mosaic(small_run)


@pytest.fixture
def pools():
    """Make pools; nothing of them may be left."""
    made: list[WorkerPool] = []

    def make(*args, **kwargs) -> WorkerPool:
        made.append(WorkerPool(*args, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())] == []
