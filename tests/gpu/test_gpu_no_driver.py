"""The real CuPy on a machine without an NVIDIA driver: everywhere the true reason, and never an exception."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from policy_cases import ROOT

from zemosaic_core.gpu.probe import has_driver
from zemosaic_core.gpu.terms import Reason
from zemosaic_pipeline.events import GpuRecorded, from_queue
from zemosaic_ui.child_process import ChildProcess
from zemosaic_ui.run_controller import WORKER_TARGET

pytestmark = [
    pytest.mark.skipif(has_driver()[0], reason="this machine has an NVIDIA driver"),
    pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed"),
]


def told_by(script: str, home: str) -> dict:
    """Run a script in a fresh interpreter and return the JSON of its last line."""
    environment = {**os.environ, "HOME": home, "PYTHONPATH": str(ROOT), "QT_QPA_PLATFORM": "offscreen"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CUPY_CACHE_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=["writable", "read-only"])
def home(request, tmp_path):
    if request.param == "writable":
        return str(tmp_path)
    if not sys.platform.startswith("linux"):
        pytest.skip("needs a folder that refuses even an administrator")
    return "/proc"


IMPORTS = """
import json, sys
import zemosaic_gpu_policy, zemosaic_utils, zemosaic_align_stack, zemosaic_worker, cuda_utils
before = "cupy" in sys.modules
status = zemosaic_gpu_policy.gpu_status()
answers = [zemosaic_utils.GPU_AVAILABLE, zemosaic_utils.gpu_is_available(), cuda_utils.enforce_nvidia_gpu(),
           zemosaic_utils.gpu_memory_sufficient(1), zemosaic_align_stack._has_gpu_budget(1)]
zemosaic_utils.ensure_cupy_pool_initialized()
zemosaic_utils.free_cupy_memory_pools()
print(json.dumps({"reason": status.reason.value, "detail": status.detail, "answers": answers,
                  "cupy": before or "cupy" in sys.modules}))
"""


def test_at_import_time(home):
    told = told_by(IMPORTS, home)
    assert told["reason"] == "no_driver"
    assert "libcuda" in told["detail"] or "nvcuda" in told["detail"]
    assert told["answers"] == [False] * 5
    assert not told["cupy"]  # the answer does not need it


WITH_CUPY = """
import json, sys
from zemosaic_core.gpu import device, probe
import zemosaic_gpu_policy as p
from zemosaic_core.chunks import Buffer, Workload
records, done = [], []
policy = p.GpuPolicy(on_record=records.append)
work = Workload("stack", 4, (Buffer("a", per_row=8),))
policy.run(work, None, lambda a, b: 1, emit=lambda *x: done.append(x))
policy.close()
probe.has_driver = lambda: (True, "pretended")
findings = [probe.probe()[0] for _ in range(2)]
cupy = device.import_cupy()
try:
    device.CupyDevice(0)
except Exception as error:
    fault = device.classify(error)
print(json.dumps({"keys": [r["key"] for r in records], "reasons": sorted({r["reason"] for r in records}),
                  "stages": [f.stage for f in findings], "detail": findings[0].detail, "done": done,
                  "version": cupy.__version__, "fault": [fault.kind, fault.status]}))
"""


def test_in_a_run_and_when_cupy_itself_is_asked(home):
    told = told_by(WITH_CUPY, home)
    assert told["reasons"] == ["no_driver"]
    assert "gpu_fallback_unavailable" in told["keys"]
    assert told["done"] == [[0, 4, 1]]
    # With the driver file pretended, CuPy is really loaded and says what is wrong, the second time too.
    assert told["stages"] == ["driver_too_old"] * 2, told["detail"]
    assert told["fault"] == ["error", 35]
    assert int(told["version"].split(".")[0]) >= 13


WINDOW = """
import json, queue, sys
import zemosaic_gui_qt
from zemosaic_pipeline.doctor import _gpu
from zemosaic_settings import Settings
from zemosaic_ui import jobs
answers = queue.Queue()
jobs.gpu_facts(answers, {}, cancel_event=None)
facts = answers.get_nowait()[1]
finding = _gpu(Settings())
print(json.dumps({"facts": facts, "doctor": finding.key, "cupy": "cupy" in sys.modules}))
"""


@pytest.mark.skipif(find_spec("PySide6") is None, reason="PySide6 is not installed")
def test_in_the_process_of_the_window(home):
    told = told_by(WINDOW, home)
    assert (told["facts"]["ok"], told["facts"]["reason_key"]) == (False, "gpu_reason_no_driver")
    assert told["doctor"] == "gpu_reason_no_driver"
    assert not told["cupy"]


def test_in_the_child_of_the_window_that_looks_for_the_card():
    child = ChildProcess("zemosaic_ui.jobs:gpu_facts", {})
    try:
        assert child.wait(60), child.error_text()
        ((kind, facts),) = child.poll()
    finally:
        child.close()
    assert (kind, facts["ok"], facts["reason_key"]) == ("gpu", False, "gpu_reason_no_driver")


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_in_the_worker(tmp_path, mode):
    """The reason is told before the first frame is read, so an empty folder shows it."""
    (tmp_path / "frames").mkdir()
    config = {"gpu_mode": mode, "use_gpu_phase5": True}
    child = ChildProcess(WORKER_TARGET, str(tmp_path / "frames"), str(tmp_path / "out"), config=config)
    try:
        assert child.wait(120), child.error_text()
        events = [from_queue(item) for item in child.poll(limit=10_000)]
    finally:
        child.close()
    records = [event.record for event in events if isinstance(event, GpuRecorded)]
    first = records[0]
    assert (first["kind"], first["reason"]) == ("probe", Reason.NO_DRIVER.value)
    assert first["key"] == "gpu_fallback_unavailable"
    ledger = (tmp_path / "out" / "gpu_ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in ledger] == ["no_driver"] * len(records)
    end = events[-1]
    assert (end.key == "gpu_required") == (mode == "require"), end
    if mode == "require":
        assert end.values["reason_key"] == "gpu_reason_no_driver"


def answer_from_a_process(queue):
    from zemosaic_gpu_policy import gpu_status

    status = gpu_status()
    queue.put((status.reason.value, status.reason.fallback_key, "cupy" in sys.modules))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_in_a_process_started_in_any_way(method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=answer_from_a_process, args=(queue,))
    process.start()
    assert queue.get(timeout=60)[:2] == ("no_driver", "gpu_fallback_unavailable")
    process.join()
