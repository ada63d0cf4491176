"""The same run on a Dask cluster: the same mosaic, whatever becomes of its workers."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from astropy.io import fits
from made_frames import field_sky, pointings, run, write_all

from run_zemosaic import main
from zemosaic_core import spread
from zemosaic_core.errors import Cancelled, RunFailed, SettingsError
from zemosaic_core.spread import results_in_order
from zemosaic_pipeline import cluster as cluster_module
from zemosaic_pipeline import cluster_engine, cluster_jobs, cluster_workers, elsewhere
from zemosaic_pipeline.cluster import Cluster, WorkerDied
from zemosaic_pipeline.cluster_desks import SecondCoadd
from zemosaic_pipeline.cluster_engine import OWN_DASK, Engine
from zemosaic_pipeline.cluster_jobs import Job, Pace
from zemosaic_pipeline.elsewhere import Answer, Call, Elsewhere, Requirements, Unfit, WorkerFacts
from zemosaic_pipeline.events import Message, PhaseProgress
from zemosaic_pipeline.plan import make_plan
from zemosaic_settings import Settings
from zemosaic_settings.executor import ExecutorChoice, PathMap
from zemosaic_worker import run_hierarchical_mosaic

distributed = pytest.importorskip("distributed", reason="the extra cluster (distributed) is not installed")
dask = pytest.importorskip("dask")

SETTINGS = {"exclude_flagged_frames": False, "save_variance": True, "gpu_mode": "off"}
KINDS = ("science", "coverage", "variance")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Dithered frames of one pointing, enough for a second pass; one is packed with gzip."""
    folder = tmp_path_factory.mktemp("cluster") / "raw"
    write_all(folder, field_sky(), pointings(n=9))
    plain = min(folder.glob("*.fit"))
    with gzip.open(f"{plain}.gz", "wb") as packed:
        packed.write(plain.read_bytes())
    plain.unlink()
    return folder


@pytest.fixture(scope="module")
def reference(raw, tmp_path_factory):
    return pictures(run(raw, tmp_path_factory.mktemp("reference"), **SETTINGS))


@pytest.fixture(scope="module")
def cluster():
    """Four workers on the loopback address, and their scheduler."""
    with distributed.LocalCluster(
        n_workers=4,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None,
        silence_logs=50,
    ) as started:
        yield started


def pictures(result) -> dict[str, np.ndarray]:
    return {kind: fits.getdata(result.outputs[kind]) for kind in KINDS}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for kind, image in expected.items():
        np.testing.assert_array_equal(got[kind], image, err_msg=kind)


def address_of(cluster) -> str:
    return cluster.scheduler_address.replace("tcp://", "dask://")


def see_nothing() -> None:
    """Make the worker this runs on one whose folder is not mounted."""
    elsewhere._unseen = lambda probes: Unfit("cluster_not_mounted", "", file=probes[0][0], reason="gone")


def be_older() -> None:
    """Make the worker this runs on one with another version."""
    older = {**elsewhere.versions(), "zemosaic": "4.9"}
    elsewhere.versions = lambda: older


class Watching:
    """A reporter that keeps what is said, and acts once a phase has got somewhere."""

    def __init__(self, act=lambda: None, phase="phase1_prepare") -> None:
        self.said: dict[str, list[dict]] = {}
        self.items: list[str] = []
        self._act, self._phase = act, phase

    def __call__(self, event: object) -> None:
        if isinstance(event, Message):
            self.said.setdefault(event.key, []).append(event.values)
        if isinstance(event, PhaseProgress):
            self.items.append(event.item)
        if isinstance(event, PhaseProgress) and event.phase == self._phase:
            act, self._act = self._act, lambda: None
            act()


def test_same_mosaic_with_workers_lost_refused_and_unmounted(raw, reference, cluster, tmp_path):
    """Of four workers one has another version, one does not see the folder, one is killed at work."""
    there = tmp_path / "elsewhere"
    there.symlink_to(raw, target_is_directory=True)
    with distributed.Client(cluster, set_as_default=False) as client:
        blind, older, doomed, *_ = client.scheduler_info()["workers"]
        client.run(see_nothing, workers=[blind])
        client.run(be_older, workers=[older])
        pid = client.run(os.getpid, workers=[doomed])[doomed]
    settings = Settings.from_mapping(
        {**SETTINGS, "executor": address_of(cluster), "map_path": f"{raw}={there}"}
    )
    plan = make_plan(raw, tmp_path / "planned", settings)
    assert plan.run.elsewhere == 2
    assert {line["key"] for line in plan.cluster} == {
        "cluster_workers",
        "cluster_version",
        "cluster_not_mounted",
    }
    watching = Watching(lambda: os.kill(pid, signal.SIGKILL))
    result = run_hierarchical_mosaic(
        raw,
        tmp_path / "out",
        reporter=watching,
        executor=address_of(cluster),
        map_path=f"{raw}={there}",
        **SETTINGS,
    )
    assert_same(pictures(result), reference)
    assert result.report["left_out"] == []
    workers = result.report["cluster"]["workers"]
    assert sum(worker["calls"] for worker in workers) >= 9
    assert any(re.fullmatch(r"light_\d+\.fit \(\d, .+\)", item) for item in watching.items)
    assert watching.said["cluster_version"][0]["there"] == "4.9"
    assert watching.said["cluster_not_mounted"][0]["file"].startswith(str(there))
    assert all(w["calls"] == 0 for w in workers if w["refused"] is not None)


def test_same_mosaic_when_one_worker_dies_and_one_stands_still_at_blocks(
    raw, reference, tmp_path, monkeypatch
):
    monkeypatch.setattr(spread, "_LEAST_ROWS", 16)
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None, silence_logs=50,
    ) as three:  # fmt: skip
        with distributed.Client(three, set_as_default=False) as client:
            doomed, still, _ = client.run(os.getpid).values()

        def happen() -> None:
            os.kill(doomed, signal.SIGKILL)
            os.kill(still, signal.SIGSTOP)

        watching = Watching(happen, "phase3_master_tiles")
        try:
            result = run_hierarchical_mosaic(
                raw, tmp_path / "out", reporter=watching, executor=address_of(three), **SETTINGS
            )
        finally:
            os.kill(still, signal.SIGCONT)
    assert_same(pictures(result), reference)
    calls = {worker["pid"]: worker["calls"] for worker in result.report["cluster"]["workers"]}
    # Dask starts another one for the one that died, which may come in time to take a part.
    assert sum(n for pid, n in calls.items() if pid not in (doomed, still)) > 8
    assert "cluster_worker_lost" in watching.said


def test_run_that_lost_its_scheduler_or_was_stopped_goes_on_here(raw, reference, cluster, tmp_path):
    before = set(psutil.Process().children(recursive=True))
    lost = distributed.LocalCluster(
        n_workers=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None,
        silence_logs=50,
    )
    with pytest.raises(RunFailed) as failed:
        run_hierarchical_mosaic(
            raw, tmp_path, reporter=Watching(lost.close), executor=address_of(lost), **SETTINGS
        )
    assert failed.value.key == "cluster_lost"
    assert [p for p in set(psutil.Process().children(recursive=True)) - before if p.is_running()] == []
    n_measured = len(list(tmp_path.glob(".zemosaic_state/frames/*.npz")))
    assert 0 < n_measured < 9
    stop = threading.Event()
    with pytest.raises(Cancelled):
        run_hierarchical_mosaic(
            raw,
            tmp_path,
            reporter=Watching(stop.set, "phase3_master_tiles"),
            cancel_event=stop,
            executor=address_of(cluster),
            **SETTINGS,
        )
    with distributed.Client(cluster, set_as_default=False) as client:
        assert not any(client.processing().values())
    again = run(raw, tmp_path, **SETTINGS)
    assert "run_info_measures_reused" in again.message_keys
    assert_same(pictures(again), reference)


def test_wrong_address_and_missing_extra_are_one_sentence_and_code_2(raw, tmp_path, capsys, monkeypatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        nobody = f"dask://127.0.0.1:{deaf.getsockname()[1]}"
        assert main(["run", str(raw), str(tmp_path / "a"), "--quiet", "--executor", nobody]) == 2
    told = capsys.readouterr()
    assert "No Dask scheduler answers" in told.out + told.err
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"zemosaic\[cluster\]"):
        run_hierarchical_mosaic(raw, tmp_path / "c", executor="dask", **SETTINGS)
    assert not (tmp_path / "c" / "run_report.json").exists()


def test_cluster_of_this_machine_ends_with_the_run(tmp_path):
    cluster = Cluster(ExecutorChoice("dask"), PathMap(), "test", folder=tmp_path)
    try:
        cluster.require(Requirements("test", elsewhere.versions()))
        assert dict(cluster.map_items(Elsewhere(abs), [-1, 2, -3], name_of=str)) == {0: 1, 1: 2, 2: 3}
        # What the workers of its own were told not to do.
        told = dict(cluster.map_items(Elsewhere(dask.config.get), list(OWN_DASK), name_of=str))
        assert [told[position] for position in sorted(told)] == list(OWN_DASK.values())
        processes = [psutil.Process(worker["pid"]) for worker in cluster.facts()["workers"]]
    finally:
        cluster.shutdown()
    assert processes
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def pages_of_arrays(n: int) -> int:
    """Return how many fresh pages it takes to make and free so many arrays of 1 MB, one after the other."""
    from resource import RUSAGE_SELF, getrusage

    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(n):
        np.ones(1 << 17)
    return getrusage(RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="what is looked at is the GNU C library")
def test_worker_uses_freed_memory_again(cluster):
    """Dask starts workers so that each array is made of fresh pages: 256 of them for each MB."""
    with Cluster(ExecutorChoice("scheduler", cluster.scheduler_address), PathMap(), "test") as joined:
        joined.require(Requirements("test", elsewhere.versions()))
        fresh = dict(joined.map_items(Elsewhere(pages_of_arrays), [200] * 8, name_of=str))
    assert max(fresh.values()) < 50 * 256


def test_another_program_at_the_address_is_not_waited_for(monkeypatch):
    """Dask itself waits for good for the rest of what a web server answers."""
    monkeypatch.setattr(cluster_engine, "_MOST_S", 1.0)
    until_s = time.monotonic() + 10.0

    def check() -> None:
        assert time.monotonic() < until_s, "still waiting"

    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        choice = ExecutorChoice("scheduler", f"tcp://127.0.0.1:{server.server_address[1]}")
        try:
            with pytest.raises(SettingsError) as wrong:
                Cluster(choice, PathMap(), "test", check=check)
        finally:
            server.shutdown()
    assert wrong.value.key == "cluster_unreachable"
    assert "no Dask scheduler" in wrong.value.values["reason"]


def test_a_web_server_that_answers_at_once_is_no_scheduler(raw, tmp_path, capsys):
    """Dask takes the first letters for the length of what comes, some million terabytes."""

    class Refusing(BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
            self.request.recv(1000)

    with ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"dask://127.0.0.1:{server.server_address[1]}"
        try:
            assert main(["run", str(raw), str(tmp_path), "--quiet", "--executor", address]) == 2
        finally:
            server.shutdown()
    told = capsys.readouterr()
    assert "No Dask scheduler answers" in told.out + told.err


class MadeUpClient:
    """Stands for Dask: two workers, and what happens to the calls whose argument is in ``accidents``."""

    status = "running"

    def __init__(self, accidents) -> None:
        self.accidents = {argument: list(found) for argument, found in accidents.items()}
        self.submitted: list[int] = []
        self.sent_to: list[tuple[int, str]] = []
        self.dismissed: list[str] = []
        self.names = {"tcp://a": "a", "tcp://b": "b"}

    @property
    def scheduler(self):
        return SimpleNamespace(identity=lambda n_workers: {"workers": self.names if n_workers == -1 else {}})

    def sync(self, function, **values):
        return function(**values)

    def run(self, function, *args, workers, on_error):
        if function is elsewhere.dismiss:
            self.dismissed += workers
            return {}
        return {at: WorkerFacts(self.names[at], "host", 0, 1, 0, False) for at in workers}

    def run_on_scheduler(self, function, *args):
        return None

    def processing(self):
        return {"tcp://b": ["work-1"]}

    def submit(self, function, packed, *, pure, resources, **only):
        call = pickle.loads(packed)
        self.submitted.append(call.args[0])
        if only:
            assert only["allow_other_workers"] is False
            self.sent_to.append((call.args[0], *only["workers"]))
        accidents = self.accidents.get(call.args[0])
        accident = accidents.pop(0) if accidents else None
        if callable(accident):
            accident = accident(*only["workers"])
        return MadeUpRemote(call, accident)

    def close(self, timeout):
        self.status = "closed"


class MadeUpRemote:
    def __init__(self, call, accident) -> None:
        self._call, self._accident = call, accident

    def add_done_callback(self, function) -> None:
        if self._accident != "never":
            function(self)

    def result(self, timeout):
        if isinstance(self._accident, BaseException):
            raise self._accident
        if self._accident is not None:
            return Answer(self._accident, "host", unfit=Unfit("cluster_disk_full", "", reason="full"))
        return Answer("a", "host", self._call.function(*self._call.args))

    def cancel(self) -> None:
        self._accident = self._accident or CancelledError()


@pytest.fixture
def made_up(monkeypatch):
    """Return what makes a cluster of two made-up workers, and its client."""
    made = []

    def make(accidents):
        client = MadeUpClient(accidents)
        monkeypatch.setattr(cluster_module, "connect", lambda *_, **__: Engine(client))
        until_s = time.monotonic() + 20.0

        def check() -> None:
            assert time.monotonic() < until_s, "still waiting"

        cluster = Cluster(ExecutorChoice("scheduler", "tcp://nowhere:1"), PathMap(), "made-up", check=check)
        cluster.require(Requirements("made-up", {}))
        made.append(cluster)
        return cluster, client

    yield make
    for cluster in made:
        cluster.shutdown()


def killed():
    return distributed.KilledWorker("task", SimpleNamespace(address="tcp://a"), 0)


def test_item_over_which_workers_die_twice_is_left_out_by_name(made_up):
    cluster, client = made_up({2: [killed(), killed()], 3: [killed()]})
    answers = dict(cluster.map_items(Elsewhere(abs), [1, 2, 3, 4], name_of=str))
    assert (answers[0], answers[2], answers[3]) == (1, 3, 4)
    assert (answers[1].key, answers[1].values["path"]) == ("frame_killed_worker", "2")
    # It was tried again when nothing else was at work.
    assert client.submitted[-2:] == [2, 3]


def test_lost_results_and_calls_of_unfit_workers_are_made_again(made_up):
    cluster, client = made_up({2: [CancelledError(), "b"], 3: [OSError("gone")]})
    answers = dict(cluster.map_items(Elsewhere(abs), [1, 2, 3], name_of=str))
    assert answers == {0: 1, 1: 2, 2: 3}
    assert client.submitted.count(2) == 3
    cluster._workers._questions.submit(int).result()
    assert client.dismissed == ["tcp://b"]
    assert cluster.workers == 1
    refused = {w["name"]: w["refused"] for w in cluster.facts()["workers"]}
    assert refused["a"] is None
    assert refused["b"]["key"] == "cluster_disk_full"


def test_what_a_slow_worker_has_is_done_again_by_an_idle_one(made_up, monkeypatch):
    monkeypatch.setattr(cluster_jobs, "_LATE_S", 0.05)
    cluster, client = made_up({2: ["never"]})
    answers = dict(cluster.map_items(Elsewhere(abs), [1, 2, 3, 4], name_of=str))
    assert answers == {0: 1, 1: 2, 2: 3, 3: 4}
    assert sorted(client.submitted) == [1, 2, 2, 3, 4]


def test_calls_are_late_when_none_was_answered_for_longer_than_they_take():
    def job(sent_s, **values):
        return Job(Call("run", (), abs, ()), Future(), sent_s=sent_s, **values)

    first, second = job(1.0), job(2.0)
    pace = Pace()
    assert pace.late([first], 99.0) is None  # nobody knows how long it should take
    pace.note(job(0.0), 10.0, now_s=200.0)
    assert pace.late([second, first], 214.0) is None
    assert pace.late([second, first], 216.0) is first
    assert pace.late([second, first, first.twin()], 216.0) is second
    assert pace.late([job(210.0)], 216.0) is None
    assert pace.late([job(1.0, needs=("ASTAP",)), job(1.0, deaths=1)], 216.0) is None


def test_run_ends_when_nobody_is_left(made_up, monkeypatch):
    cluster, _ = made_up({1: ["a", "b"]})
    monkeypatch.setattr(cluster_module, "_PATIENCE_S", 0.0)
    with pytest.raises(RunFailed) as failed:
        list(cluster.map_items(Elsewhere(abs), [1], name_of=str))
    assert failed.value.key == "cluster_no_worker"


def blocks_on(cluster, numbers, most=8):
    """Return what becomes of blocks, in their order."""
    return list(results_in_order(cluster.in_rows(most), ((abs, (n,)) for n in numbers), most))


def test_blocks_go_to_fit_workers_only(made_up, monkeypatch):
    """One of the two turns out to be unfit for a block."""
    left_out, n_sent = [], []

    def unfit_there(address):
        left_out.append(address)
        return address[-1]

    leave_out = cluster_workers.Workers.leave_out

    def noting(self, name, unfit):
        leave_out(self, name, unfit)
        n_sent.append(len(client.sent_to))

    monkeypatch.setattr(cluster_workers.Workers, "leave_out", noting)

    cluster, client = made_up({3: [unfit_there]})
    assert blocks_on(cluster, range(12)) == list(range(12))
    cluster._workers._questions.submit(int).result()
    assert client.dismissed == left_out
    later = client.sent_to[n_sent[0] :]
    assert 3 in {n for n, _ in later}
    assert len({address for _, address in later} | set(left_out)) == 2
    assert not set(left_out) & {address for _, address in later}


def test_blocks_of_a_lost_worker_go_to_the_others(made_up, monkeypatch):
    monkeypatch.setattr(cluster_workers, "_LOOK_S", 0.0)
    lost = []

    def lose(address):
        lost.append(address)
        client.names = {at: name for at, name in client.names.items() if at != address}
        return "never"

    cluster, client = made_up({2: [lose]})
    assert blocks_on(cluster, range(12)) == list(range(12))
    assert [w["lost"] for w in cluster.facts()["workers"]].count(True) == 1
    after = client.sent_to.index((2, *lost))
    assert {address for n, address in client.sent_to[after + 1 :] if n == 2} == set(client.names)


def test_a_worker_that_stands_still_gets_no_more_blocks(made_up, monkeypatch):
    monkeypatch.setattr(cluster_jobs, "_LATE_S", 0.05)
    cluster, client = made_up({2: ["never"]})
    assert blocks_on(cluster, range(12)) == list(range(12))
    (still,) = {address for n, address in client.sent_to[:3] if n == 2}
    assert [address for n, address in client.sent_to if n == 2][1:] == [a for a in client.names if a != still]
    twice = [position for position, (n, _) in enumerate(client.sent_to) if n == 2][1]
    assert still not in {address for _, address in client.sent_to[twice:]}
    # The next co-add of the run finds it still at work.
    n_before = len(client.sent_to)
    assert blocks_on(cluster, range(20, 26)) == list(range(20, 26))
    assert still not in {address for _, address in client.sent_to[n_before:]}


def test_block_over_which_workers_die_twice_is_told_and_no_other_is_blamed(made_up):
    cluster, client = made_up({2: [killed(), killed()]})
    with pytest.raises(WorkerDied):
        blocks_on(cluster, range(12))
    assert client.submitted.count(2) == 2
    cluster, client = made_up({2: [killed()], 5: [killed()]})
    assert blocks_on(cluster, range(12)) == list(range(12))


def test_block_over_which_workers_are_lost_again_and_again_is_tried_alone(made_up, monkeypatch):
    """Dask itself gives a call four workers before it says that it kills them; so does this."""
    monkeypatch.setattr(cluster_workers, "_LOOK_S", 0.0)

    def lose(address):
        client.names = {at: name for at, name in client.names.items() if at != address}
        client.names[f"{address}+"] = f"{client.names.get(address, 'x')}+"
        return "never"

    cluster, client = made_up({2: [lose] * 4 + [killed()]})
    with pytest.raises(WorkerDied):
        blocks_on(cluster, range(6))
    assert len([n for n, _ in client.sent_to if n == 2]) == 4
    assert client.submitted.count(2) == 5


def test_two_co_adds_at_a_time_are_refused(made_up):
    """Blocks are known by their numbers: those of two co-adds would be taken for each other."""
    cluster, _ = made_up({1: ["never"]})
    early = cluster.in_rows(4)
    series = cluster.in_rows(4)
    with pytest.raises(SecondCoadd, match="can send no more blocks"):
        early.submit(abs, 5)
    first, second = series.submit(abs, 0), series.submit(abs, 1)
    with pytest.raises(SecondCoadd, match=r"blocks \[0, 1\]"):
        cluster.in_rows(4)
    assert first.result() == 0
    with pytest.raises(SecondCoadd, match=r"blocks \[1\]"):
        cluster.in_rows(4)
    second.cancel()
    assert blocks_on(cluster, range(20, 23)) == [20, 21, 22]


def test_blocks_of_a_stopped_co_add_are_not_sent(made_up):
    cluster, client = made_up({n: ["never"] for n in range(6)})
    series = cluster.in_rows(6)
    waiting = [series.submit(abs, n) for n in range(6)]
    cluster.wait(waiting, 0.2)
    for future in waiting:
        future.cancel()
    assert blocks_on(cluster, range(20, 23)) == [20, 21, 22]
    assert [n for n, _ in client.sent_to] == [0, 1, 2, 3, 20, 21, 22]
