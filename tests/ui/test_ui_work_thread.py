from __future__ import annotations

import threading

from zemosaic_ui.work_thread import WorkThread


def test_jobs_are_done_in_order_and_replaced_ones_never():
    started, go, done, finished = threading.Event(), threading.Event(), [], threading.Event()

    def do(job):
        started.set()
        go.wait(60)
        done.append(job)
        if job == "last":
            finished.set()

    thread = WorkThread("test", do)
    thread.put("begun")
    assert started.wait(60)
    thread.put("a1", "b1", "last")
    thread.put("a2", first=True, replaces=lambda job: job.startswith("a"))
    assert thread.waiting == 3
    go.set()
    assert finished.wait(60)
    assert done == ["begun", "a2", "b1", "last"]
    thread.close(wait_s=5)


def test_a_closed_thread_finishes_its_job_and_forgets_the_rest():
    started, go, done = threading.Event(), threading.Event(), []

    def do(job):
        started.set()
        go.wait(60)
        done.append(job)

    thread = WorkThread("test", do)
    thread.put(1, 2)
    assert started.wait(60)
    threading.Timer(0.05, go.set).start()
    thread.close(wait_s=5)
    thread.put(3)
    assert done == [1]


def test_a_thread_without_a_job_can_be_closed():
    thread = WorkThread("test", print)
    thread.clear()
    thread.close(wait_s=5)
    assert thread.waiting == 0
