"""The same run on a Dask cluster: what it costs on one machine, and a simulation of many.

python -m benchmarks.cluster                       # local, then 1, 2 and 4 workers on this machine
python -m benchmarks.cluster --frames 24 --keep FOLDER
python -m benchmarks.cluster --simulate            # 200,000 frames on paper, from the numbers measured before

Times are CPU seconds of all processes as well as the clock's: other programs stretch the latter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from astropy.io import fits

from benchmarks.cluster_model import Machines, Work, simulate
from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline import cluster as cluster_module
from zemosaic_pipeline.cluster_engine import OWN_DASK
from zemosaic_pipeline.events import PhaseFinished
from zemosaic_worker import run_hierarchical_mosaic

RESULTS = Path(__file__).parent / "results" / "cluster.json"
CORES = 4
PHASES = ("phase1_prepare", "phase3_master_tiles")


def cpu_of(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += sum(times[:4]) if hasattr(times, "children_user") else sum(times[:2])
    return total


def bytes_of(sent: object) -> int:
    """Return how large something is on its way; arrays are not copied for it, which would count as work of the run."""
    buffers: list[pickle.PickleBuffer] = []
    return len(pickle.dumps(sent, 5, buffer_callback=buffers.append)) + sum(b.raw().nbytes for b in buffers)


def sizes_sent() -> dict[str, list[int]]:
    """Note how large calls and answers are, by the name of their function, from now on in this process."""
    noted: dict[str, list[int]] = {}
    call, settle = cluster_module.Cluster._call, cluster_module.Cluster._settle

    def noting_call(self, function, args):
        noted.setdefault(f"call {function.__name__}", []).append(bytes_of(args))
        return call(self, function, args)

    def noting_settle(self, job):
        if job.inner.done() and not job.inner.cancelled() and job.inner.exception() is None:
            value = job.inner.result().value
            noted.setdefault(f"answer {job.call.function.__name__}", []).append(bytes_of(value))
        settle(self, job)

    # Blocks of a co-add are sent by other ways than the rest; all make their calls here.
    cluster_module.Cluster._call = noting_call
    cluster_module.Cluster._settle = noting_settle
    return noted


def run_once(answers: Any, night: Path, out: Path, workers: int, with_sizes: bool) -> None:
    """Run in this process with so many workers, 0: on this machine alone; answer with what it took."""
    noted = sizes_sent() if with_sizes else {}
    me = psutil.Process()
    watched, started, executor = [me], None, "local"
    if workers:
        import dask
        from distributed import LocalCluster

        with dask.config.set(OWN_DASK):
            started = LocalCluster(
                n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                worker_dashboard_address=None, silence_logs=50,
            )  # fmt: skip
        watched += [p for p in me.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        executor = started.scheduler_address.replace("tcp://", "dask://")
    before, start = cpu_of(watched), time.perf_counter()
    spent: dict[str, float] = {}

    def note(event: object) -> None:
        if isinstance(event, PhaseFinished):
            spent[event.phase] = cpu_of(watched) - before

    result = run_hierarchical_mosaic(
        night, out, reporter=note, executor=executor, gpu_mode="off", resume="off"
    )
    seconds = time.perf_counter() - start
    cpu = cpu_of(watched) - before
    report = result.report
    order = [phase["phase"] for phase in report["phases"]]
    of_phase = {
        name: spent[name] - (spent[order[order.index(name) - 1]] if order.index(name) else 0.0)
        for name in order
    }
    answers.put(
        {
            "workers": workers,
            "seconds": round(seconds, 1),
            "cpu_s": round(cpu, 1),
            "phases": {
                phase["phase"]: {
                    "seconds": round(phase["seconds"], 1),
                    "cpu_s": round(of_phase[phase["phase"]], 1),
                }
                for phase in report["phases"]
                if phase["phase"] in PHASES
            },
            "frames": report["frames_used"],
            "bytes": {name: round(float(np.mean(found))) for name, found in noted.items()},
            "tasks": {name: len(found) for name, found in noted.items()},
            "science": result.outputs["science"],
        }
    )
    if started is not None:
        started.close()


def measure(folder: Path, n_frames: int, counts: list[int]) -> dict[str, Any]:
    night = folder / f"night_{n_frames}"
    if not night.is_dir():
        write_demo_night(night, frames_per_panel=n_frames // 4, with_wcs=True)
    spawn = multiprocessing.get_context("spawn")
    runs = []
    # The first one fills the page cache and compiles what is not compiled yet; it does not count.
    for number, workers in enumerate([0, 0, *counts]):
        answers = spawn.Queue()
        process = spawn.Process(
            target=run_once,
            args=(answers, night, folder / f"out_{number}", workers, workers == max(counts)),
        )
        process.start()
        found = answers.get()
        process.join()
        if number == 0:
            continue
        found["same_as_local"] = bool(
            not runs or np.array_equal(
                fits.getdata(found["science"]), fits.getdata(runs[0]["science"]), equal_nan=True
            )
        )  # fmt: skip
        runs.append(found)
        print(f"{'local' if not workers else f'{workers} workers':10s} {found['seconds']:7.1f} s  "
              f"{found['cpu_s']:7.1f} CPU s  " + "  ".join(
                  f"{name} {p['seconds']} s {p['cpu_s']} CPU s" for name, p in found["phases"].items()),
              "same" if found["same_as_local"] else "OTHER MOSAIC")  # fmt: skip
    for found in runs:
        found.pop("science")
    return {
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "frames": n_frames,
        "runs": runs,
    }


def on_paper() -> list[dict[str, Any]]:
    """200,000 frames of 2 megapixels, 2,000 over each other at most, on more and more computers of four cores."""
    rows = []
    networks = (("1 Gbit/s", 110e6), ("10 Gbit/s", 1100e6))
    # The last one of three computers takes four times as long.
    clusters = [(n, ()) for n in (1, 2, 3, 4, 8, 16)] + [(3, (1.0,) * 2 * CORES + (4.0,) * CORES)]
    for (computers, slow), stretches in itertools.product(clusters, (False, True)):
        for network, bytes_per_s in networks:
            machines = Machines(
                computers * CORES, of_computer=CORES, slow=slow, stretches=stretches,
                nas_bytes_per_s=bytes_per_s, net_bytes_per_s=bytes_per_s,
            )  # fmt: skip
            found = simulate(Work(), machines)
            rows.append(
                {"computers": computers, "one_is_slow": bool(slow), "stretches": stretches, "network": network, **found}
            )  # fmt: skip
            print(f"{computers:2d} computers{', one slow' if slow else ''}, "
                  f"{'neighbours together' if stretches else 'whoever is free':19s}, {network:9s}: "
                  f"{found['seconds'] / 3600:6.2f} h, "
                  f"{found['tasks']} tasks, {found['read_bytes'] / 1e12:.2f} TB read, "
                  f"{found['sent_bytes'] / 1e9:.0f} GB between machines; {found['busiest']}")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keep", type=Path, help="folder to work in; frames already there are used again")
    parser.add_argument("--simulate", action="store_true", help="only the simulation")
    arguments = parser.parse_args()
    if sys.flags.dont_write_bytecode and not arguments.simulate:
        parser.error(
            "PYTHONDONTWRITEBYTECODE is set: each worker would read the source of everything again; unset it"
        )
    facts = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if not arguments.simulate:
        with tempfile.TemporaryDirectory() as scratch:
            facts["measured"] = measure(arguments.keep or Path(scratch), arguments.frames, arguments.workers)
    facts["on_paper"] = on_paper()
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
