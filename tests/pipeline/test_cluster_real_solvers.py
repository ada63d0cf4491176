"""The real ASTAP and solve-field on workers of a cluster: the places of one computer, whatever becomes of workers."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from zemosaic_core.errors import Cancelled
from zemosaic_io.demo_session import DEMO_CENTER_DEG, write_demo_night
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_pipeline import solve_frames
from zemosaic_pipeline.events import Message
from zemosaic_worker import run_hierarchical_mosaic

distributed = pytest.importorskip("distributed", reason="the extra cluster (distributed) is not installed")

pytestmark = [
    pytest.mark.solver,
    pytest.mark.skipif(os.name == "nt", reason="the programs are started by a shell script"),
]

SHAPE_HW = (1200, 1000)
# Pointings without stars in common.
OFFSETS_DEG = ((0.0, 0.0), (2.4, 0.0), (-2.4, 0.3))
PROGRAMS = {"ASTAP": "astap_cli", "ASTROMETRY": "solve-field"}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Two frames without WCS of each of three pointings, and star data for ASTAP."""
    sys.path.append(str(Path(__file__).parent.parent / "io"))
    try:
        from astap_database import write_database
    finally:
        sys.path.pop()
    folder = tmp_path_factory.mktemp("unsolved")
    raw = folder / "raw"
    raw.mkdir()
    stars = []
    for number, (d_ra, d_dec) in enumerate(OFFSETS_DEG):
        centre = (DEMO_CENTER_DEG[0] + d_ra, DEMO_CENTER_DEG[1] + d_dec)
        made = write_demo_night(
            folder / str(number), seed=20 + number, panels=(1, 1), frames_per_panel=2, shape_hw=SHAPE_HW,
            bad_frames=False, n_satellites=0, center_deg=centre, catalogue=catalogue_stars_near(*centre, 1.2)[:3],
        )  # fmt: skip
        for path in made.paths:
            path.rename(raw / f"{number}_{path.name}")
        brightest = np.argsort(made.sky.mag)[:2000]
        stars.append((made.sky.ra_deg[brightest], made.sky.dec_deg[brightest], made.sky.mag[brightest]))
    write_database(folder / "stars", *(np.concatenate(column) for column in zip(*stars, strict=True)))
    return folder


@pytest.fixture
def solve(night, tmp_path, monkeypatch):
    """Return a function that gives the night its places: where each was found, and what was said."""

    def on(method, executor="local"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / PROGRAMS[method]
        # Whoever asks first waits, so that it can be killed at it.
        program.write_text(
            f'#!/bin/sh\nmkdir "{folder}/first" 2>/dev/null && sleep 3\nexec {shutil.which(PROGRAMS[method])} "$@"\n'
        )
        program.chmod(0o755)
        shutil.rmtree(folder / "first", ignore_errors=True)
        found, said = {}, {}
        run = solve_frames.run

        def keep(*args):
            for item in run(*args):
                found[item.frame.name] = replace(item.solution, seconds=0.0, attempts=())
            raise Cancelled()

        def note(event):
            if isinstance(event, Message):
                said.setdefault(event.key, []).append(event.values)

        with monkeypatch.context() as patch:
            patch.setattr(solve_frames, "run", keep)
            with pytest.raises(Cancelled):
                run_hierarchical_mosaic(
                    night / "raw", tmp_path / "out", reporter=note, executor=executor, solver_method=method,
                    astap_executable_path=str(folder), astap_data_directory_path=str(night / "stars"),
                    astap_max_instances=3, astrometry_local_path=str(program), resume="off", gpu_mode="off",
                )  # fmt: skip
        return found, said

    return on


def have_no_solver() -> None:
    """Make the worker this runs on one where no solver is installed."""
    from zemosaic_io.solvers import astap, astrometry_net

    astap.find_astap = lambda *_, **__: None
    astrometry_net.find_solve_field = lambda *_, **__: None


def kill_who_asks(method: str, pids: list[int], killed: list[psutil.Process]) -> None:
    """Kill the first worker that has a solver at work."""
    stop_at = threading.Event()
    while not stop_at.wait(0.02):
        for pid in pids:
            children = psutil.Process(pid).children(recursive=True)
            if any(PROGRAMS[method] in " ".join(child.cmdline()) for child in children if child.is_running()):
                killed.extend([psutil.Process(pid), *children])
                killed[0].kill()
                return


@pytest.mark.parametrize("method", list(PROGRAMS))
def test_places_are_those_of_one_computer(solve, method):
    """Of three workers one has no solver, and one is killed while it asks one."""
    if shutil.which(PROGRAMS[method]) is None:
        pytest.skip(f"{PROGRAMS[method]} is not installed")
    here, _ = solve(method)
    assert len(here) == 6
    assert [solution.method for solution in here.values()].count(method) == 3
    killed: list[psutil.Process] = []
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None, silence_logs=50,
    ) as cluster:  # fmt: skip
        with distributed.Client(cluster, set_as_default=False) as client:
            without, *others = client.scheduler_info()["workers"]
            client.run(have_no_solver, workers=[without])
            pids = list(client.run(os.getpid, workers=others).values())
        watcher = threading.Thread(target=kill_who_asks, args=(method, pids, killed), daemon=True)
        watcher.start()
        there, said = solve(method, cluster.scheduler_address.replace("tcp://", "dask://"))
        watcher.join(10)
    assert there == here
    assert said["cluster_solver_missing"][0]["solver"] == method
    assert "cluster_solver_here" not in said
    assert "cluster_worker_lost" in said
    assert psutil.wait_procs(killed, timeout=10)[1] == []
