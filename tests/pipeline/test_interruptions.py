"""Stopped, killed, starved, robbed of its files: a run ends clearly, leaves nothing behind, and can go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits
from made_frames import expose, field_sky, pointings, run, write_all

from zemosaic_core.errors import Cancelled, RunFailed, SaveFailed
from zemosaic_pipeline.events import PHASES, PhaseFinished, PhaseProgress, PhaseStarted, from_queue
from zemosaic_worker import run_hierarchical_mosaic, run_hierarchical_mosaic_process

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
STATE = ".zemosaic_state"


@pytest.fixture(scope="module")
def sky():
    return field_sky()


@pytest.fixture(scope="module")
def setups():
    return [*pointings(n=4, step_px=(-120, 0), seed=1), *pointings(n=4, step_px=(120, 0), seed=2)]


@pytest.fixture(scope="module")
def raw(sky, setups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted") / "raw"
    write_all(folder, sky, setups)
    return folder


@pytest.fixture
def own_raw(raw, tmp_path):
    """A copy that a test may spoil; file times are kept."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


SETTINGS = {"cluster_panel_threshold": 0.06, "exclude_flagged_frames": False, "save_variance": True}


@pytest.fixture(scope="module")
def reference(raw, tmp_path_factory):
    """The pictures of a run nobody disturbed."""
    return pictures(run(raw, tmp_path_factory.mktemp("reference"), **SETTINGS))


def pictures(result) -> dict[str, np.ndarray]:
    return {kind: fits.getdata(result.outputs[kind]) for kind in ("science", "coverage", "variance")}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for kind, image in expected.items():
        np.testing.assert_array_equal(got[kind], image, err_msg=kind)


def leftovers(folder: Path) -> list[str]:
    """Return temporary files and folders of a run."""
    found = [*folder.rglob("*.part"), *folder.rglob("*.tmp*"), *folder.glob(f"{STATE}/run_*")]
    return [str(path.relative_to(folder)) for path in found]


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


class Disturbed:
    """A reporter that does something once, when an event of its choice passes by."""

    def __init__(self, when: Callable[[object], bool], act: Callable[[], object]) -> None:
        self.when, self.act = when, act
        self.events: list[object] = []
        self.at: int | None = None

    def __call__(self, event: object) -> None:
        self.events.append(event)
        if self.at is None and self.when(event):
            self.at = len(self.events)
            self.act()

    @property
    def afterwards(self) -> list[object]:
        """What was still told after the disturbance."""
        return self.events[self.at :]


def disturbed_run(raw: Path, out: Path, when, act, **settings):
    reporter = Disturbed(when, act)
    cancel = settings.pop("cancel_event", None)
    options = {"gpu_mode": "off", "num_processing_workers": 1, **SETTINGS, **settings}
    result = run_hierarchical_mosaic(raw, out, reporter=reporter, cancel_event=cancel, **options)
    return result, reporter


@pytest.mark.parametrize("where", ["start", "middle"])
def test_stopped_in_every_phase_and_resumed(raw, reference, tmp_path, where):
    """Stop again and again, each time later: the last run gives what an undisturbed one gives."""
    for phase in PHASES:
        stop = threading.Event()

        def here(event, phase=phase):
            if where == "start":
                return isinstance(event, PhaseStarted) and event.phase == phase
            return isinstance(event, PhaseProgress) and event.phase == phase

        reporter = Disturbed(here, stop.set)
        options = {"gpu_mode": "off", "num_processing_workers": 1, **SETTINGS}
        try:
            run_hierarchical_mosaic(raw, tmp_path, reporter=reporter, cancel_event=stop, **options)
        except Cancelled:
            # What was in work is finished, nothing new is begun.
            assert not [e for e in reporter.afterwards if isinstance(e, PhaseStarted)]
            assert len([e for e in reporter.afterwards if isinstance(e, PhaseProgress)]) <= 2
        else:
            # Only the last steps of a run have nothing left to stop.
            assert phase in ("phase7_cleanup", "phase6_export", "phase0_survey") or reporter.at is None
        assert leftovers(tmp_path) == []
        report = json.loads((tmp_path / "run_report.json").read_text(encoding="utf-8"))
        assert report["outcome"].lower() in ("cancelled", "success")
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)


def test_stopped_while_processes_measure(raw, reference, tmp_path):
    stop = threading.Event()
    with pytest.raises(Cancelled):
        disturbed_run(
            raw,
            tmp_path,
            lambda e: isinstance(e, PhaseProgress) and e.phase == "phase1_prepare",
            stop.set,
            cancel_event=stop,
            num_processing_workers=2,
        )
    assert leftovers(tmp_path) == []
    assert workers() == []
    again = run(raw, tmp_path, **SETTINGS)
    # What was measured before the stop is used.
    assert "run_info_measures_reused" in again.message_keys
    assert_same(pictures(again), reference)


@posix
def test_killed_worker_process_is_a_clear_error(raw, reference, tmp_path):
    def kill() -> None:
        workers()[0].send_signal(signal.SIGKILL)

    with pytest.raises(RunFailed) as error:
        disturbed_run(
            raw,
            tmp_path,
            lambda e: isinstance(e, PhaseProgress) and e.phase == "phase1_prepare",
            kill,
            num_processing_workers=2,
        )
    assert error.value.key == "run_error_worker_died"
    assert workers() == []
    assert leftovers(tmp_path) == []
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)


def test_result_does_not_depend_on_workers_or_memory(raw, reference, tmp_path):
    two = run(raw, tmp_path / "two", **SETTINGS, num_processing_workers=2)
    assert_same(pictures(two), reference)
    tiny = run(raw, tmp_path / "tiny", **SETTINGS, stack_ram_budget_gb=0.001)
    assert_same(pictures(tiny), reference)


def test_result_does_not_depend_on_the_order_the_folder_gives(own_raw, reference, tmp_path, monkeypatch):
    real = os.walk

    def shuffled(*args, **kwargs):
        for folder, folders, files in real(*args, **kwargs):
            yield folder, folders[::-1], sorted(files, key=lambda name: hash(name) ^ 12345)

    monkeypatch.setattr(os, "walk", shuffled)
    assert_same(pictures(run(own_raw, tmp_path / "out", **SETTINGS)), reference)


def test_other_names_for_the_files_change_next_to_nothing(own_raw, reference, tmp_path):
    """Another order of summing and of references: rounding, and the level of the whole."""
    for i, path in enumerate(sorted(own_raw.iterdir())):
        path.rename(own_raw / f"z{97 - 7 * i:03d}.fit")
    got = pictures(run(own_raw, tmp_path / "out", **SETTINGS))
    image, expected = got["science"], reference["science"]
    assert image.shape == expected.shape
    difference = image - expected
    # Which tile comes first decides whose sky level is kept; that is one number per channel.
    difference -= np.nanmedian(difference, axis=(1, 2))[:, None, None]
    assert np.nanmax(np.abs(difference)) < 0.01
    np.testing.assert_allclose(got["variance"], reference["variance"], rtol=1e-3)


def test_resume_off_trusts_nothing_stored(raw, reference, tmp_path):
    run(raw, tmp_path, **SETTINGS)
    for path in (tmp_path / STATE / "frames").glob("*.npz"):
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, "x": arrays["x"] + 30, "sky": arrays["sky"] * 2})
    for path in (tmp_path / STATE / "tiles").glob("*.fits"):
        with fits.open(path, mode="update") as hdus:
            hdus[0].data[:] = 7
    manifest = tmp_path / STATE / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"CRVAL2": 2', '"CRVAL2": 3'))
    again = run(raw, tmp_path, **SETTINGS, resume="off")
    assert not {key for key in again.message_keys if key.endswith("_reused")}
    assert_same(pictures(again), reference)


def test_damaged_state_is_made_anew(raw, reference, tmp_path):
    run(raw, tmp_path, **SETTINGS)
    frames = sorted((tmp_path / STATE / "frames").glob("*.npz"))
    frames[0].write_bytes(frames[0].read_bytes()[:500])
    frames[1].write_bytes(b"")
    frames[2].unlink()
    tile = next((tmp_path / STATE / "tiles").glob("*.fits"))
    tile.write_bytes(tile.read_bytes()[:4000])
    again = run(raw, tmp_path, **SETTINGS)
    reused = next(m for m in again.report["messages"] if m["key"] == "run_info_measures_reused")
    assert reused["values"]["frames"] == 5
    assert_same(pictures(again), reference)
    (tmp_path / STATE / "manifest.json").write_bytes(b'{"format": 1, "records": {"a": ')
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)
    records = json.loads((tmp_path / STATE / "manifest.json").read_text())
    records["records"] = {key: {"wrong": 1} for key in records["records"]}
    (tmp_path / STATE / "manifest.json").write_text(json.dumps(records))
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)


def test_one_changed_frame_costs_what_depends_on_it(own_raw, sky, setups, tmp_path):
    run(own_raw, tmp_path / "out", **SETTINGS)
    changed = own_raw / "light_006.fit"
    with fits.open(changed) as hdus:
        header = hdus[0].header.copy()
    fits.writeto(changed, expose(sky, pointings(n=8, step_px=(120, 0), seed=9)[7]), header, overwrite=True)
    with fits.open(changed, mode="update") as hdus:
        for key, value in pointings(n=8, step_px=(120, 0), seed=9)[7].cards.items():
            hdus[0].header[key] = value
    again = run(own_raw, tmp_path / "out", **SETTINGS)
    values = {m["key"]: m["values"] for m in again.report["messages"]}
    assert values["run_info_measures_reused"]["frames"] == 7
    assert values["run_info_solutions_reused"]["frames"] == 7
    resumed = pictures(again)
    assert_same(resumed, pictures(run(own_raw, tmp_path / "fresh", **SETTINGS)))


def test_new_header_wcs_of_the_same_pixels_is_used(own_raw, tmp_path):
    """Another program solves the frames anew, in place, after a first run."""
    run(own_raw, tmp_path / "out", **SETTINGS)
    for path in own_raw.iterdir():
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["CRVAL2"] += 1.0
    again = run(own_raw, tmp_path / "out", **SETTINGS)
    assert again.wcs.wcs.crval[1] == pytest.approx(21.0, abs=0.1)


def test_frames_added_in_front_do_not_mix_up_stored_tiles(own_raw, reference, tmp_path):
    """Frames and groups are numbered by name; stored tiles must follow the new numbers."""
    for path in list(own_raw.iterdir()):
        if path.name < "light_004":
            path.rename(tmp_path / path.name)
    run(own_raw, tmp_path / "out", **SETTINGS)
    for path in tmp_path.glob("light_*.fit"):
        path.rename(own_raw / path.name)
    again = run(own_raw, tmp_path / "out", **SETTINGS)
    assert [tile["tile_id"] for tile in again.report["tiles"]] == [0, 1]
    assert sorted(i for tile in again.report["tiles"] for i in tile["frames"]) == list(range(8))
    assert_same(pictures(again), reference)


class Pipe:
    """Stands for the queue of a worker."""

    def __init__(self) -> None:
        self.items: list[tuple] = []

    def put(self, item: tuple) -> None:
        self.items.append(item)

    def close(self) -> None: ...

    def join_thread(self) -> None: ...


def worker(raw: Path, out: Path, act=None, when=None, **settings) -> tuple[int, list[tuple]]:
    """Run the worker's main function here; return its exit code and what it said."""
    pipe = Pipe()
    if act is not None:
        watch = Disturbed(when, act)
        put = pipe.put
        pipe.put = lambda item: (put(item), watch(from_queue(item)))[0]
    before = signal.getsignal(signal.SIGINT)
    try:
        run_hierarchical_mosaic_process(
            pipe, raw, out, config={"gpu_mode": "off", "num_processing_workers": 1, **SETTINGS, **settings}
        )
    except SystemExit as left:
        return int(left.code), pipe.items
    finally:
        signal.signal(signal.SIGINT, before)
    raise AssertionError("the worker came back")


def after(phase: str) -> Callable[[object], bool]:
    return lambda event: isinstance(event, PhaseFinished) and event.phase == phase


def test_worker_says_done_last(raw, tmp_path):
    code, said = worker(raw, tmp_path)
    assert (code, said[-1][0]) == (0, "PROCESS_DONE")
    assert [item[0] for item in said].count("PROCESS_DONE") == 1
    for kind, path in said[-1][3]["outputs"].items():
        assert Path(path).is_file(), kind


@pytest.mark.parametrize(
    "wrong", ["unknown_value", "no_input", "output_is_file", "input_is_file", "output_is_input"]
)
def test_worker_refuses_wrong_settings_with_code_2(raw, tmp_path, wrong):
    (tmp_path / "file").write_text("x")
    source = {"no_input": tmp_path / "none", "input_is_file": tmp_path / "file"}.get(wrong, raw)
    target = {"output_is_file": tmp_path / "file", "output_is_input": raw}.get(wrong, tmp_path / "out")
    settings = {"stacking_kappa_low": -4} if wrong == "unknown_value" else {}
    code, said = worker(source, target, **settings)
    assert (code, said[-1][0]) == (2, "PROCESS_ERROR")
    assert said[-1][3]["error"] not in ("run_error_unexpected", "")
    assert "\n" not in said[-1][3]["values"]["text"]
    assert {path.suffix for path in raw.iterdir()} == {".fit"}


def test_worker_with_a_state_folder_that_is_a_file(raw, tmp_path):
    (tmp_path / STATE).write_text("not a folder")
    code, said = worker(raw, tmp_path)
    assert (code, said[-1][0], said[-1][3]["error"]) == (1, "PROCESS_ERROR", "save_failed")


@posix
@pytest.mark.parametrize(
    ("phase", "processes"),
    [
        ("phase1_prepare", 1),
        ("phase1_prepare", 2),
        ("phase3_master_tiles", 1),
        ("phase5_assemble", 1),
        ("phase6_export", 1),
    ],
)
def test_full_disk_is_a_clear_error(raw, reference, tmp_path, phase, processes):
    """From some phase on no file may grow beyond a few kilobytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

    def starts(event: object) -> bool:
        return isinstance(event, PhaseStarted) and event.phase == phase

    try:
        code, said = worker(raw, tmp_path, act=fill, when=starts, num_processing_workers=processes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, said[-1][0], said[-1][3]["error"]) == (1, "PROCESS_ERROR", "save_failed")
    assert leftovers(tmp_path) == []
    assert phase == "phase6_export" or not list(tmp_path.glob("zemosaic_MT*"))
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)


@pytest.mark.parametrize("phase", ["phase0_survey", "phase1_prepare"])
def test_input_folder_vanishes(own_raw, tmp_path, phase):
    code, said = worker(
        own_raw, tmp_path / "out", act=lambda: own_raw.rename(tmp_path / "gone"), when=after(phase)
    )
    assert (code, said[-1][0]) == (1, "PROCESS_ERROR")
    assert said[-1][3]["error"] in ("run_error_no_usable_frames", "run_error_no_tiles")
    left = [item for item in said if item[3].get("event") == "FrameLeftOut"]
    assert len(left) == 8
    assert {item[0] for item in left} == {"frame_unreadable"}
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("phase", ["phase0_survey", "phase1_prepare"])
@pytest.mark.parametrize("how", ["removed", "cut", "replaced"])
def test_one_frame_spoiled_during_the_run_costs_that_frame(own_raw, tmp_path, phase, how):
    victim = own_raw / "light_002.fit"

    def spoil() -> None:
        if how == "removed":
            victim.unlink()
        elif how == "cut":
            victim.write_bytes(victim.read_bytes()[:20_000])
        else:
            shutil.copy(own_raw / "light_003.fit", victim)

    code, said = worker(own_raw, tmp_path / "out", act=spoil, when=after(phase))
    assert (code, said[-1][0]) == (0, "PROCESS_DONE")
    report = json.loads((tmp_path / "out" / "run_report.json").read_text(encoding="utf-8"))
    left = {Path(item["path"]).name: item["key"] for item in report["left_out"]}
    if how == "replaced":
        assert set(left) <= {"light_002.fit", "light_003.fit"}
    else:
        assert set(left) == {"light_002.fit"}
        assert report["frames_used"] == 7
        image = fits.getdata(report["outputs"]["science"])
        assert np.isfinite(image[:, 60:-60, 60:-60]).mean() > 0.99


def test_two_runs_in_one_folder(raw, tmp_path):
    """The second is refused while the first is at work, and leaves it alone."""
    second: list[BaseException] = []

    def start_another() -> None:
        try:
            run(raw, tmp_path, **SETTINGS)
        except RunFailed as error:
            second.append(error)

    disturbed_run(raw, tmp_path, after("phase1_prepare"), start_another)
    assert [error.key for error in second] == ["run_error_output_busy"]


@posix
def test_killed_run_takes_its_processes_along_and_the_next_sweeps_up(raw, reference, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    config = {**SETTINGS, "gpu_mode": "off", "num_processing_workers": 2}
    process = spawn.Process(
        target=run_hierarchical_mosaic_process, args=(queue, raw, tmp_path), kwargs={"config": config}
    )
    process.start()
    while True:
        item = queue.get(timeout=60)
        if item[0] == "STAGE_PROGRESS" and item[1] == "phase1_prepare":
            break
    family = [p for p in psutil.Process(process.pid).children(recursive=True) if p.is_running()]
    assert family
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert leftovers(tmp_path)
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)
    assert leftovers(tmp_path) == []


def test_report_that_cannot_be_written_is_an_error(raw, tmp_path):
    (tmp_path / "run_report.html").mkdir()
    with pytest.raises(SaveFailed):
        run(raw, tmp_path, **SETTINGS)
