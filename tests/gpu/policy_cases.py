"""A small operation, what collects its pieces, and policies for the tests of the policy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.terms import GpuStatus, Reason
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.gpu_files import device_lease

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 64
ROWS = 40
DATA = np.random.default_rng(3).normal(size=(ROWS, WIDTH)).astype(np.float32)
OK = GpuStatus(True, Reason.GPU, "card", seam.DeviceInfo("card", "uuid"))


def workload(op="square", **changes) -> Workload:
    row = WIDTH * 4
    fields = {"rows": ROWS, "buffers": (Buffer("in", per_row=row), Buffer("out", per_row=row)), "min_rows": 4}
    return Workload(op, **(fields | changes))


@contextmanager
def held_by_another_run(uuid: str) -> Iterator[None]:
    """A card that is another run's turn all the while."""
    taken, done = threading.Event(), threading.Event()

    def other_run():
        with device_lease(uuid, timeout_s=5):
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=other_run)
    thread.start()
    assert taken.wait(5)
    try:
        yield
    finally:
        done.set()
        thread.join()


def gpu_body(device, y0, y1, next_rows):
    """The rows as they are: copied in, a kernel beside them, copied back."""
    stream = device.stream()
    source = device.empty((y1 - y0, WIDTH), np.float32)
    host = device.pinned((y1 - y0) * WIDTH * 4)[:].view(np.float32)
    host[:] = DATA[y0:y1].reshape(-1)
    device.copy_in(source, host, stream)
    out = device.empty((y1 - y0, WIDTH), np.float32)
    device.kernel(kernels.source("smoke"), "smoke")(
        (1,), (1,), (out, np.int32(1), np.float32(0), np.float32(0)), stream=stream
    )
    result = np.empty((y1 - y0, WIDTH), np.float32)
    device.copy_out(result, source, stream)
    device.synchronize(stream)
    return result


def cpu_body(y0, y1):
    return DATA[y0:y1].copy()


class Collected:
    """Puts the pieces together and insists on their order."""

    def __init__(self):
        self.image = np.full((ROWS, WIDTH), np.nan, np.float32)
        self.next = 0

    def __call__(self, y0, y1, result):
        assert y0 == self.next
        self.image[y0:y1] = result
        self.next = y1

    def check(self):
        assert self.next == ROWS
        np.testing.assert_array_equal(self.image, DATA)


def make_policy(records=None, **options) -> GpuPolicy:
    on_record = None if records is None else records.append
    environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", **options.pop("environ", {})}
    return GpuPolicy(on_record=on_record, environ=environ, **options)


def run(policy, **options):
    out = Collected()
    report = policy.run(workload(**options.pop("work", {})), gpu_body, cpu_body, emit=out, **options)
    out.check()
    return report


def assert_rows_are_accounted_for(records, *, shares=None):
    """Each row of each operation of a ledger appears once, on one side, and for the CPU with a reason.

    ``shares``: rows times elements done on the GPU per operation are added to it, to compare with a report.
    """
    open_decision, steps = None, []
    operations = 0
    for record in records:
        kind = record["kind"]
        if kind == "decision" and "device" in record:
            assert open_decision is None, "an operation began before the one before it had ended"
            open_decision, steps = record, []
        elif kind in ("split", "fallback"):
            assert record["op"] == open_decision["op"]
            steps.append(record)
        elif kind == "operation":
            assert record["op"] == open_decision["op"]
            assert record["complete"]
            _check_operation(open_decision, steps, record)
            open_decision = None
            operations += 1
            if shares is not None:
                done = shares.setdefault(record["op"], {"gpu": 0, "cpu": 0, "runs": 0})
                done["gpu"] += record["gpu_rows"]
                done["cpu"] += record["cpu_rows"]
                done["runs"] += 1
    assert open_decision is None
    assert operations


def _check_operation(decision, steps, operation):
    pieces, rows = operation["pieces"], decision["rows"]
    borders = [0, *(b for _, b, _ in pieces)]
    assert [a for a, _, _ in pieces] == borders[:-1], "rows are missing or appear twice"
    assert borders[-1] == operation["rows"] == rows
    for side in ("gpu", "cpu"):
        own = [b - a for a, b, device in pieces if device == side]
        assert (len(own), sum(own)) == (operation[f"{side}_chunks"], operation[f"{side}_rows"])
    fallbacks = [step for step in steps if step["kind"] == "fallback"]
    splits = [step for step in steps if step["kind"] == "split"]
    assert (len(fallbacks), len(splits)) == (operation["fallbacks"], operation["splits"])
    # What fallbacks say went to the CPU is what went there, each row by one of them.
    told = sorted(tuple(step["rows"]) for step in fallbacks)
    assert all(a < b <= c for (a, b), (c, _) in zip(told, [*told, (rows, rows)][1:], strict=True))
    assert sum(b - a for a, b in told) == operation["cpu_rows"]
    for a, b, device in pieces:
        inside = any(y0 <= a and b <= y1 for y0, y1 in told)
        assert inside == (device == "cpu"), (a, b, device, told)
    if decision["device"] == "gpu" and not steps:
        assert operation["gpu_chunks"] == decision["n_chunks"]
    for split in splits:
        assert split["chunk_rows"] < split["rows"][1] - split["rows"][0]
