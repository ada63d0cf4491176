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
import tifffile
from astropy.io import fits
from made_frames import expose, field_sky, pointings, run, write_all
from PIL import Image

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_core.errors import Cancelled, RunFailed, SaveFailed
from zemosaic_core.synthetic_sky import make_sky
from zemosaic_io import tile_bands
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_pipeline import solve_frames, solver_answers, solver_questions, star_matches
from zemosaic_pipeline.events import PHASES, Message, PhaseFinished, PhaseProgress, PhaseStarted, from_queue
from zemosaic_ui.footprints import find_outputs
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
PANELS = {**SETTINGS, "route": "panels", "cluster_min_frames": 0}


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    return run(raw, tmp_path_factory.mktemp("reference"), **SETTINGS)


@pytest.fixture(scope="module")
def reference(undisturbed):
    """The pictures of a run nobody disturbed."""
    return pictures(undisturbed)


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
            # What was in work is finished, nothing new is begun; laying out is one piece of work in three steps.
            assert not [e for e in reporter.afterwards if isinstance(e, PhaseStarted)]
            assert len([e for e in reporter.afterwards if isinstance(e, PhaseProgress)]) <= 3
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
def test_killed_worker_processes_cost_nothing(raw, reference, tmp_path):
    """The frames they were at work on are measured by others, and there is one process less."""

    def kill() -> None:
        workers()[0].send_signal(signal.SIGKILL)

    result, reporter = disturbed_run(
        raw,
        tmp_path,
        lambda e: isinstance(e, PhaseProgress) and e.phase == "phase1_prepare",
        kill,
        num_processing_workers=2,
    )
    said = [e.key for e in reporter.events if isinstance(e, Message)]
    assert "run_warn_fewer_workers" in said
    assert result.report["left_out"] == []
    assert workers() == []
    assert leftovers(tmp_path) == []
    assert_same(pictures(result), reference)


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


def test_names_of_the_files_change_nothing(own_raw, reference, tmp_path):
    for i, path in enumerate(sorted(own_raw.iterdir())):
        path.rename(own_raw / f"z{97 - 7 * i:03d}.fit")
    assert_same(pictures(run(own_raw, tmp_path / "out", **SETTINGS)), reference)


@pytest.mark.parametrize("name", ["a_copy.fit", "z_copy.fit"])
def test_the_copy_that_knows_most_is_used_whatever_it_is_called(own_raw, reference, tmp_path, name):
    """A second copy without position and time, before or after the good one."""
    with fits.open(own_raw / "light_003.fit") as hdus:
        header = hdus[0].header.copy()
        for key in ("CRVAL1", "CRVAL2", "CTYPE1", "CTYPE2", "RA", "DEC", "DATE-OBS"):
            del header[key]
        fits.writeto(own_raw / name, hdus[0].data, header)
    result = run(own_raw, tmp_path / "out", **SETTINGS)
    assert result.left_out == {name: "frame_duplicate"}
    assert_same(pictures(result), reference)


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


def test_frames_added_in_front_do_not_mix_up_stored_tiles(own_raw, tmp_path):
    """Frames and groups are numbered by name; stored tiles must follow the new numbers."""
    for path in list(own_raw.iterdir()):
        if path.name < "light_004":
            path.rename(tmp_path / path.name)
    fewer = fits.getheader(run(own_raw, tmp_path / "out", **PANELS).outputs["science"])
    for path in tmp_path.glob("light_*.fit"):
        path.rename(own_raw / path.name)
    again = run(own_raw, tmp_path / "out", **PANELS)
    # The pixels of the mosaic stay where they are in the sky.
    more = fits.getheader(again.outputs["science"])
    for key in ("CRVAL1", "CRVAL2", "CDELT1", "CDELT2"):
        assert more[key] == fewer[key]
    moved = np.array([more[key] - fewer[key] for key in ("CRPIX1", "CRPIX2")])
    assert np.array_equal(moved, np.round(moved))
    assert np.abs(moved).max() > 100
    assert [tile["tile_id"] for tile in again.report["tiles"]] == [0, 1]
    assert sorted(i for tile in again.report["tiles"] for i in tile["frames"]) == list(range(8))
    assert_same(pictures(again), pictures(run(own_raw, tmp_path / "fresh", **PANELS)))


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


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_worker_stops_cleanly_on_a_signal(raw, tmp_path, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    code, said = worker(raw, tmp_path, act=lambda: os.kill(os.getpid(), number), when=after("phase0_survey"))
    assert (code, said[-1][0]) == (130, "PROCESS_ERROR")
    assert json.loads((tmp_path / "run_report.json").read_text())["outcome"].lower() == "cancelled"
    assert leftovers(tmp_path) == []
    assert signal.getsignal(number) == before


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
        item = queue.get(timeout=250)
        if item[0] == "STAGE_PROGRESS" and item[1] == "phase1_prepare":
            break
    family = [p for p in psutil.Process(process.pid).children(recursive=True) if p.is_running()]
    assert family
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert leftovers(tmp_path)
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)
    assert leftovers(tmp_path) == []


# Blocks of a few rows, so that small frames give many of them.
LOW_BLOCKS = {**SETTINGS, "stack_ram_budget_gb": 0.052}


def stacking(share: float) -> Callable[[object], bool]:
    return lambda e: (
        isinstance(e, PhaseProgress) and e.phase == "phase3_master_tiles" and share <= e.within < 1
    )


def rows_taken_up(result) -> int:
    said = [m["values"]["rows"] for m in result.report["messages"] if m["key"] == "run_info_rows_reused"]
    return sum(said)


@pytest.fixture
def seals_at_once(monkeypatch):
    """Every block is sealed when it is finished; else those of a second are sealed together."""
    real = tile_bands.TileBands.__init__

    def init(self, *args, **kwargs):
        real(self, *args, **kwargs, every_s=0.0)

    monkeypatch.setattr(tile_bands.TileBands, "__init__", init)


def stopped_half_way(raw: Path, out: Path) -> Path:
    """Stop a run in the middle of its one co-add; return the folder of the rows that are finished."""
    stop = threading.Event()
    with pytest.raises(Cancelled):
        disturbed_run(raw, out, stacking(0.5), stop.set, cancel_event=stop, **LOW_BLOCKS)
    assert leftovers(out) == []
    (folder,) = (out / STATE / "bands").iterdir()
    return folder


def test_finished_rows_are_taken_up(raw, undisturbed, reference, tmp_path, seals_at_once):
    folder = stopped_half_way(raw, tmp_path)
    assert len(list(folder.glob("rows_*.npz"))) > 3
    # As much disk as the tile and its weights take, and little more.
    with fits.open(folder / "tile.fits") as hdus:
        assert sum(p.stat().st_size for p in folder.iterdir()) < 1.4 * sum(h.size for h in hdus)
    again = run(raw, tmp_path, **LOW_BLOCKS)
    assert 0.4 < rows_taken_up(again) / again.image.shape[1] < 0.9
    assert_same(pictures(again), reference)
    got, expected = ([t | {"path": ""} for t in r.report["tiles"]] for r in (again, undisturbed))
    assert got == expected
    assert not (tmp_path / STATE / "bands").exists()


@pytest.mark.parametrize("what", ["pixels", "last record"])
def test_damaged_rows_are_made_anew(raw, reference, tmp_path, seals_at_once, what):
    folder = stopped_half_way(raw, tmp_path)
    records = sorted(folder.glob("rows_*.npz"))
    if what == "pixels":
        with open(folder / "tile.fits", "r+b") as file:
            file.seek(2880 * 4 + 400 * 4 * 30)
            file.write(b"\x41" * 4000)
    else:
        content = bytearray(records[-1].read_bytes())
        content[len(content) // 2] ^= 1
        records[-1].write_bytes(content)
    again = run(raw, tmp_path, **LOW_BLOCKS)
    assert_same(pictures(again), reference)
    assert (rows_taken_up(again) > 100) == (what == "last record")


def test_rows_of_other_frames_are_dropped(own_raw, raw, reference, tmp_path, seals_at_once):
    out = tmp_path / "out"
    first = stopped_half_way(own_raw, out)
    (own_raw / "light_003.fit").unlink()
    assert stopped_half_way(own_raw, out).name != first.name
    shutil.copy2(raw / "light_003.fit", own_raw)
    again = run(own_raw, out, **LOW_BLOCKS)
    assert rows_taken_up(again) == 0
    assert_same(pictures(again), reference)


def test_resume_off_takes_no_rows_up(raw, tmp_path, seals_at_once):
    stopped_half_way(raw, tmp_path)
    assert rows_taken_up(run(raw, tmp_path, **LOW_BLOCKS, resume="off")) == 0


@posix
def test_killed_in_the_one_co_add_and_taken_up(raw, reference, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    config = {**LOW_BLOCKS, "gpu_mode": "off", "num_processing_workers": 1}
    process = spawn.Process(target=killed_while_stacking, args=(queue, raw, tmp_path, config))
    process.start()
    process.join(timeout=250)
    assert process.exitcode == -signal.SIGKILL
    again = run(raw, tmp_path, **LOW_BLOCKS)
    assert rows_taken_up(again) > 0
    assert_same(pictures(again), reference)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / STATE / "bands").exists()


def killed_while_stacking(queue, raw: Path, out: Path, config: dict) -> None:
    """Run, and be killed by the system after 200 of some 320 rows, without a word."""
    real = tile_bands.TileBands.record

    def record(self, file):
        real(self, file)
        if self._bands and self._bands[-1][1] > 200:
            os.kill(os.getpid(), signal.SIGKILL)

    tile_bands.TileBands.record = record
    init = tile_bands.TileBands.__init__
    tile_bands.TileBands.__init__ = lambda self, *args, **kwargs: init(self, *args, **kwargs, every_s=0.0)
    run_hierarchical_mosaic_process(queue, raw, out, config=config)


def test_report_that_cannot_be_written_is_an_error(raw, tmp_path):
    (tmp_path / "run_report.html").mkdir()
    with pytest.raises(SaveFailed):
        run(raw, tmp_path, **SETTINGS)


def overwrite_pixels(path: Path, value: int = -20_000) -> None:
    """Write other pixels into a file, its header as before."""
    content = path.read_bytes()
    start = (content.find(b"END     ") // 2880 + 1) * 2880
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(np.full(300 * 400, value, ">i2").tobytes())


def grow_header(path: Path) -> None:
    """Move the pixels by one block, as a program does that writes its solution into the header."""
    content = path.read_bytes()
    end = content.find(b"END     ")
    start = (end // 2880 + 1) * 2880
    header = (
        content[:end] + b"".join(f"HISTORY line {i}".encode().ljust(80) for i in range(36)) + b"END".ljust(80)
    )
    path.write_bytes(header.ljust(-(-len(header) // 2880) * 2880) + content[start:])


def same_times(path: Path, act: Callable[[Path], None]) -> None:
    """Do something with a file and put its times back, as a restored backup does."""
    times = path.stat()
    act(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("keeps_times", [False, True])
def test_frame_overwritten_before_it_is_stacked(own_raw, raw, reference, tmp_path, keeps_times):
    """It is left out by name, and nothing that was made from it is stored."""
    victim = own_raw / "light_001.fit"
    whole = victim.read_bytes()

    def act() -> None:
        (same_times(victim, overwrite_pixels) if keeps_times else overwrite_pixels(victim))

    out = tmp_path / "out"
    result, _ = disturbed_run(own_raw, out, after("phase4_grid"), act)
    assert [(Path(i["path"]).name, i["key"]) for i in result.report["left_out"]] == [
        ("light_001.fit", "frame_changed")
    ]
    assert result.report["frames_used"] == 7
    victim.write_bytes(whole)
    assert_same(pictures(run(own_raw, out, **SETTINGS)), reference)


def test_frame_overwritten_while_it_is_stacked(own_raw, reference, tmp_path, monkeypatch):
    """The file system cannot tell any more, the bytes that go into the tile can."""
    from zemosaic_pipeline import phase3_master_tiles as phase3

    victim = own_raw / "light_002.fit"
    whole = victim.read_bytes()
    real = phase3.coadd_on_grid
    calls = []

    def late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            # The last rows only: most of the tile is made before.
            with open(victim, "r+b") as file:
                file.seek(-2880 - 400 * 2 * 3, os.SEEK_END)
                file.write(b"\x12\x34" * 400)
        return real(*args, **kwargs)

    monkeypatch.setattr(phase3, "coadd_on_grid", late)
    result = run(own_raw, tmp_path / "out", **SETTINGS)
    assert result.left_out == {"light_002.fit": "frame_changed"}
    monkeypatch.undo()
    victim.write_bytes(whole)
    assert_same(pictures(run(own_raw, tmp_path / "out", **SETTINGS)), reference)


def test_header_rewritten_during_the_run_costs_nothing(own_raw, reference, tmp_path):
    """The same pixels in another place of the file are the same frame."""
    for phase, name in (("phase0_survey", "light_000.fit"), ("phase4_grid", "light_005.fit")):
        out = tmp_path / phase
        result, _ = disturbed_run(own_raw, out, after(phase), lambda name=name: grow_header(own_raw / name))
        assert result.report["left_out"] == []
        assert_same(pictures(result), reference)
        assert_same(pictures(run(own_raw, out, **SETTINGS)), reference)


def test_other_pixels_with_the_old_times_are_noticed(own_raw, sky, tmp_path):
    run(own_raw, tmp_path / "out", **SETTINGS)
    victim = own_raw / "light_006.fit"
    data = expose(sky, pointings(n=8, step_px=(120, 0), seed=2)[2])

    def act(path: Path) -> None:
        with fits.open(path) as hdus:
            header = hdus[0].header.copy()
        fits.writeto(path, data + np.uint16(400), header, overwrite=True)

    size = victim.stat().st_size
    same_times(victim, act)
    assert victim.stat().st_size == size
    again = run(own_raw, tmp_path / "out", **SETTINGS)
    values = {m["key"]: m["values"] for m in again.report["messages"]}
    assert values["run_info_measures_reused"]["frames"] == 7
    assert_same(pictures(again), pictures(run(own_raw, tmp_path / "fresh", **SETTINGS)))


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    same_times(path, lambda p: p.write_bytes(content))


@pytest.mark.parametrize("what", ["arrays", "arrays_swapped", "tile", "tile_header", "tiles_swapped"])
def test_flipped_bits_in_stored_files_are_noticed(raw, tmp_path, what):
    settings = PANELS if what == "tiles_swapped" else SETTINGS
    undisturbed = pictures(run(raw, tmp_path, **settings))
    arrays = sorted((tmp_path / STATE / "frames").glob("*.npz"))
    tiles = sorted((tmp_path / STATE / "tiles").glob("*.fits"))
    if what == "arrays":
        for i, path in enumerate(arrays):
            flip_bit(path, (i + 1) * path.stat().st_size // 10)
    elif what == "tile":
        for path in tiles:
            flip_bit(path, path.stat().st_size // 3)
    elif what == "tile_header":
        flip_bit(tiles[0], 90)
    else:
        one, other = (arrays if what == "arrays_swapped" else tiles)[:2]
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    assert_same(pictures(run(raw, tmp_path, **settings)), undisturbed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: "[" * 100_000,
        lambda m: json.dumps(m | {"records": []}),
        lambda m: json.dumps(m | {"records": dict.fromkeys(m["records"], 5)}),
        lambda m: json.dumps(m | {"checksums": 7}),
        lambda m: json.dumps(m).replace('"CRVAL1": 1', '"CRVAL1": 2'),
        lambda m: json.dumps(m).replace('"median_coverage"', '"median"'),
        lambda m: json.dumps(m).replace('"noise_adu": [', '"noise_adu": [null, '),
    ],
    ids=["deep", "list", "numbers", "no_checksums", "moved", "renamed", "longer"],
)
def test_nonsense_in_the_manifest_never_was(raw, reference, tmp_path, damage):
    run(raw, tmp_path, **SETTINGS)
    path = tmp_path / STATE / "manifest.json"
    path.write_text(damage(json.loads(path.read_text())))
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)


def test_a_killed_run_loses_no_measurement(raw, tmp_path, monkeypatch):
    """What a process measured counts without anything the main process would have written later."""
    run(raw, tmp_path, **SETTINGS)
    (tmp_path / STATE / "manifest.json").unlink()
    again = run(raw, tmp_path, **SETTINGS)
    values = {m["key"]: m["values"] for m in again.report["messages"]}
    assert values["run_info_measures_reused"]["frames"] == 8


def test_state_names_no_place(raw, reference, tmp_path):
    """The output folder may be moved; its state goes on being used."""
    run(raw, tmp_path / "out", **SETTINGS)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert str(tmp_path) not in (tmp_path / "moved" / STATE / "manifest.json").read_text()
    again = run(raw, tmp_path / "moved", **SETTINGS)
    assert {
        "run_info_measures_reused",
        "run_info_solutions_reused",
        "run_info_tiles_reused",
    } <= again.message_keys
    assert_same(pictures(again), reference)


@pytest.fixture(scope="module")
def unsolved(tmp_path_factory):
    """Two panels without positions that the catalogue knows; the faintest frames come first."""
    centre = (83.0, 22.0)
    catalogue = catalogue_stars_near(*centre, 1.0)
    sky = make_sky(centre, 1.4, seed=4, stars_per_deg2=35, catalogue=catalogue)
    made = [
        *pointings(centre, n=4, shape_hw=(640, 480), step_px=(-120, 0), seed=3),
        *pointings(centre, n=4, shape_hw=(640, 480), step_px=(120, 0), seed=4),
    ]
    folder = tmp_path_factory.mktemp("unsolved") / "raw"
    write_all(folder, sky, made, with_wcs=False)
    return folder


UNSOLVED = {**SETTINGS, "solver_method": "EMBEDDED", "astap_default_search_radius": 0.3}


@pytest.fixture
def as_told(monkeypatch):
    """What these headers tell is right; frames too poor for the solver are not looked for elsewhere as well."""
    monkeypatch.setattr(solve_frames, "other_readings", lambda told: [])


@pytest.mark.parametrize("left_out", [(0,), (0, 1, 5)], ids=str)
def test_frames_added_or_removed_give_what_a_fresh_run_gives(unsolved, tmp_path, as_told, left_out):
    """Bit for bit, though the new frames may be the better neighbours, or the old ones be gone."""
    raw, few, out = tmp_path / "raw", tmp_path / "few", tmp_path / "out"
    for folder in (raw, few):
        shutil.copytree(unsolved, folder)
    gone = [sorted(raw.iterdir())[i].name for i in left_out]
    for name in gone:
        (raw / name).unlink()
        (few / name).unlink()
    fresh_few = pictures(run(few, tmp_path / "fresh_few", **UNSOLVED))
    run(raw, out, **UNSOLVED)
    for name in gone:
        shutil.copy2(unsolved / name, raw / name)
    all_frames = run(raw, out, **UNSOLVED)
    assert "run_info_measures_reused" in all_frames.message_keys
    assert_same(pictures(all_frames), pictures(run(raw, tmp_path / "fresh", **UNSOLVED)))
    for name in gone:
        (raw / name).unlink()
    again = run(raw, out, **UNSOLVED)
    assert {"run_info_measures_reused", "run_info_solutions_reused"} <= again.message_keys
    assert_same(pictures(again), fresh_few)


def test_a_solution_is_used_again_for_what_it_follows_from(unsolved, tmp_path, as_told, monkeypatch):
    """Of a run that only repeats, every step is known."""
    run(unsolved, tmp_path, **UNSOLVED)

    def never(*_):
        raise AssertionError("asked again")

    for module, name in (
        (solver_answers, "check_wcs"),
        (star_matches, "match_frame"),
        (solver_questions, "solve_with_chain"),
    ):
        monkeypatch.setattr(module, name, never)
    again = run(unsolved, tmp_path, **UNSOLVED)
    values = {m["key"]: m["values"] for m in again.report["messages"]}
    assert values["run_info_solutions_reused"]["frames"] == 8


class Killed(BaseException):
    """Stands for the end of a process: nothing that would clean up may run after it."""


def killed_run(raw: Path, out: Path, when, monkeypatch, **settings) -> None:
    """End a run at an event as a kill would: what lies on disk then stays as it is."""
    from zemosaic_pipeline import runner

    def die() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # The lock is given back, as the system does it; nothing else is done.
        patch.setattr(runner.RunContext, "close", lambda self: (self.memory.close(), self._lock.close()))
        patch.setattr(runner._ClassicRun, "report_failure", lambda self, error: None)
        with pytest.raises(Killed):
            disturbed_run(raw, out, when, die, **settings)


def run_ids(folder: Path) -> set[str]:
    """Return the runs that the products in a folder name; each has to name one."""
    ids = {json.loads((folder / "run_report.json").read_text(encoding="utf-8"))["run_id"]}
    for path in folder.glob("zemosaic_MT*"):
        if path.suffix == ".fits":
            ids.add(fits.getheader(path)["ZMRUNID"])
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                ids.add(picture.text["ZMRUNID"])
        else:
            with tifffile.TiffFile(path) as picture:
                ids.add(picture.pages[0].description.removeprefix("ZMRUNID="))
    return ids


EVERYTHING = {**SETTINGS, "save_final_as_uint16": True, "save_viewer_tiff": True}


def test_results_of_one_run_belong_together(raw, reference, tmp_path, monkeypatch):
    """Every product names its run; until the new ones are complete the old ones are all there is."""
    first = run(raw, tmp_path, **EVERYTHING)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("zemosaic_MT*")}
    assert run_ids(tmp_path) == {first.report["run_id"]}
    page = (tmp_path / "run_report.html").read_text(encoding="utf-8")
    assert first.report["run_id"] in page
    killed_run(
        raw, tmp_path, after("phase6_export"), monkeypatch, **EVERYTHING, stacking_rejection_algorithm="none"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.glob("zemosaic_MT*")} == before
    running = json.loads((tmp_path / "run_report.json").read_text(encoding="utf-8"))
    assert (running["outcome"], running["finished"], running["outputs"]) == ("running", None, {})
    assert running["run_id"] != first.report["run_id"]
    assert running["earlier_results"]["run_id"] == first.report["run_id"]
    started = ZeMosaicLocalization("en").moment(running["started"])
    assert started in (tmp_path / "run_report.html").read_text(encoding="utf-8")
    # The report of what lies in the folder is kept, and found.
    assert find_outputs(tmp_path)["science"] == first.outputs["science"]
    second = run(raw, tmp_path, **EVERYTHING)
    told = next(m for m in second.report["messages"] if m["key"] == "run_info_interrupted")
    assert told["values"]["run_id"] == running["run_id"]
    assert told["level"] == "WARN"
    assert running["run_id"] in (tmp_path / "run_report.html").read_text(encoding="utf-8")
    assert run_ids(tmp_path) == {second.report["run_id"]}
    assert_same(pictures(second), reference)
    kept = {path.name for path in tmp_path.iterdir() if "log" not in path.suffix}
    assert kept == {*before, "run_report.json", "run_report.html", "gpu_ledger.jsonl", STATE}
    third = run(raw, tmp_path, **SETTINGS)
    # What this run was not asked for is not left from the one before.
    assert run_ids(tmp_path) == {third.report["run_id"]}
    assert "run_info_interrupted" not in third.message_keys


def test_a_run_killed_while_its_results_take_their_place(raw, tmp_path, monkeypatch):
    """The next start puts the rest of them there, whatever becomes of itself."""
    run(raw, tmp_path, **SETTINGS)
    real, calls = os.replace, []

    def some(source, target):
        if Path(source).parent.name == ".zemosaic_new" and Path(target).parent == tmp_path:
            calls.append(source)
            if len(calls) > 2:
                raise Killed
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", some)
        from zemosaic_pipeline import runner

        patch.setattr(runner.RunContext, "close", lambda self: (self.memory.close(), self._lock.close()))
        patch.setattr(runner._ClassicRun, "report_failure", lambda self, error: None)
        with pytest.raises(Killed):
            run(raw, tmp_path, **SETTINGS, stacking_rejection_algorithm="none")
    assert len(run_ids(tmp_path)) == 2
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        run_hierarchical_mosaic(raw, tmp_path, cancel_event=stop, gpu_mode="off", **SETTINGS)
    made = {fits.getheader(path)["ZMRUNID"] for path in tmp_path.glob("zemosaic_MT*.fits")}
    assert len(made) == 1
    assert not (tmp_path / ".zemosaic_new").exists()


def test_a_night_moved_with_its_state_is_not_measured_again(raw, reference, tmp_path, monkeypatch):
    """To another folder, or to another disk where times of change and inodes are new."""
    from zemosaic_pipeline import measure

    home = tmp_path / "home"
    shutil.copytree(raw, home / "raw")
    run(home / "raw", home / "out", **SETTINGS)
    home.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "end_look", never)
    for place in ("moved", "copied"):
        again = run(tmp_path / place / "raw", tmp_path / place / "out", **SETTINGS)
        values = {m["key"]: m["values"] for m in again.report["messages"]}
        assert values["run_info_measures_reused"]["frames"] == 8
        assert {"run_info_solutions_reused", "run_info_tiles_reused"} <= again.message_keys
        assert_same(pictures(again), reference)


NONSENSE = (
    5, [], "text", {"wrong": 1}, {"wcs_cards": {"CTYPE1": 5}}, {"rms_px": "x", "n_matched": None}, {"path": 7}, True,
)  # fmt: skip


def test_nonsense_with_a_checksum_never_was_either(raw, reference, tmp_path):
    """As another version of the program could have written it."""
    from zemosaic_io.manifest import Manifest

    run(raw, tmp_path, **SETTINGS)
    manifest = Manifest(tmp_path / STATE / "manifest.json")
    for number, key in enumerate(manifest._texts):
        manifest.put(key, NONSENSE[number % len(NONSENSE)])
    manifest.save()
    assert_same(pictures(run(raw, tmp_path, **SETTINGS)), reference)
