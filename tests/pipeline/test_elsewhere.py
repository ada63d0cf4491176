"""What a worker says of itself and of a call: without a cluster."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_frames import base_cards, expose, field_sky, pointings, write

from zemosaic_core.errors import Cancelled, SkipItem
from zemosaic_io.calibration_sets import CalibrationSet, forget_received, receive_set, require_set
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import elsewhere
from zemosaic_pipeline.cluster_blocks import _most_touching
from zemosaic_pipeline.elsewhere import Call, Requirements, frame_there, unfit_of_disk, versions, work
from zemosaic_pipeline.measure import MEASURE_ELSEWHERE, MeasureOptions, measure_frame
from zemosaic_settings.executor import PathMap

pytest.importorskip("distributed", reason="the extra cluster (distributed) is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    setup = pointings(n=1)[0]
    path = tmp_path_factory.mktemp("elsewhere") / "night" / "light.fit"
    return write(path, expose(field_sky(), setup), base_cards(setup, 0))


def test_worker_is_refused_with_the_reason(tmp_path):
    file = tmp_path / "a.fit"
    file.write_bytes(b"12345")
    wanted = Requirements("run", {"numpy": "9.9"}, ((str(file), 5),), 1000)
    refused = elsewhere._unfit(wanted, {"numpy": "2.0"}, 0)
    assert (refused.key, refused.values["there"], refused.values["here"]) == ("cluster_version", "2.0", "9.9")
    assert elsewhere._unfit(wanted, {"numpy": "9.9"}, 999).key == "cluster_memory"
    assert elsewhere._unfit(wanted, {"numpy": "9.9"}, 0) is None
    file.write_bytes(b"1")
    assert elsewhere._unfit(wanted, {"numpy": "9.9"}, 1000).key == "cluster_other_file"
    file.unlink()
    gone = elsewhere._unfit(wanted, {"numpy": "9.9"}, 1000)
    assert (gone.key, gone.values["file"]) == ("cluster_not_mounted", str(file))
    assert set(versions()) >= {"zemosaic", "python", "numpy", "numba"}


def fail(error):
    raise error


def test_frame_is_not_to_blame_where_the_folder_is_gone(tmp_path):
    skip = SkipItem("frame_unreadable", "gone", path="x")
    gone = ((str(tmp_path / "nobody"), 1),)
    assert work(Call("a", gone, fail, (skip,))).unfit.key == "cluster_not_mounted"
    answer = work(Call("a", (), fail, (skip,)))
    assert (answer.unfit, answer.error.key) == (None, "frame_unreadable")
    assert unfit_of_disk(OSError(errno.ENOSPC, "full")).key == "cluster_disk_full"
    assert unfit_of_disk(OSError(errno.EIO, "broken")) is None


def test_call_of_a_stopped_run_is_not_begun():
    elsewhere.stop("ended")
    assert isinstance(work(Call("ended", (), fail, (ValueError(),))).error, Cancelled)
    assert work(Call("another", (), pow, (2, 3))).value == 8
    assert elsewhere.RunStop("ended").is_set()


def test_frame_measured_elsewhere_is_stored_as_here(frame, tmp_path):
    info, options = read_frame_info(frame), MeasureOptions(3.0, False, True)
    here = measure_frame((info, options, str(tmp_path / "here.npz"), ""))
    there = frame.parent.with_name("mounted")
    if not there.exists():
        there.symlink_to(frame.parent, target_is_directory=True)
    paths = PathMap(((str(frame.parent), str(there)),))
    task = (info, options, str(tmp_path / "there.npz"), "")
    sent = pickle.loads(pickle.dumps(MEASURE_ELSEWHERE.send(task, paths)))
    assert str(sent[0].path).startswith(str(there))
    found = MEASURE_ELSEWHERE.receive(task, MEASURE_ELSEWHERE.function(sent))
    assert found.content_key == here.content_key
    for name, column in here.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], column, err_msg=name)
    # Pixels that are known already are not measured again.
    again = MEASURE_ELSEWHERE.receive(task, MEASURE_ELSEWHERE.function(MEASURE_ELSEWHERE.send(task, paths)))
    assert again.was_stored


def test_part_of_a_store_reads_the_same_pixels_on_another_machine(frame):
    info = read_frame_info(frame)
    hot = np.array([5000, 90, 41234])
    flat = np.full(info.shape_hw, 1.1, np.float32)
    made = CalibrationSet(None, flat, np.empty(0, np.int64), 0.0, 0.0, "F")
    receive_set("C:\\state\\key.npz", made)
    try:
        assert require_set("/elsewhere/key.npz") is made
        store = FrameStore(
            {0: info, 1: info},
            {0: hot, 1: hot},
            calibrations={0: "/state/key.npz"},
            masked={0: np.array([[3, 1, 9]])},
        )
        part = pickle.loads(pickle.dumps(store.part([0], lambda found: frame_there(found, PathMap()))))
        window = (0, 0, 60, 10, 120)
        np.testing.assert_array_equal(part.read(*window), store.read(*window))
        with pytest.raises(KeyError):
            part.info(1)
    finally:
        forget_received()
    assert len(pickle.dumps(store)) < 12_000


def test_frames_of_the_fullest_block_are_counted():
    boxes = [(0, 10, 0, 5), (5, 20, 0, 5), (10, 12, 0, 5), (19, 30, 0, 5)]
    blocks = [(0, 5), (5, 10), (10, 19), (19, 30)]
    by_hand = max(sum(a < y1 and b > y0 for a, b, *_ in boxes) for y0, y1 in blocks)
    assert _most_touching(boxes, blocks) == by_hand == 2
    assert _most_touching(boxes, [(0, 30)]) == 4


def test_workers_import_no_more_than_blocks_need():
    code = (
        "import sys, zemosaic_pipeline.cluster_block_work; print(*{n.partition('.')[0] for n in sys.modules}); "
        "print(*{'scipy.ndimage', 'zemosaic_gpu_policy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    loaded = set(first.split())
    assert "numba" in loaded
    assert not second.strip()
    assert not {"astropy", "pydantic", "distributed", "zemosaic_settings", "zemosaic_utils"} & loaded
