"""What stands in the place of a file and is none is told; opening it never waits for anybody."""

from __future__ import annotations

import os
import threading

import pytest

from zemosaic_core.errors import SaveFailed
from zemosaic_io.gpu_files import Ledger
from zemosaic_io.manifest import Manifest, file_digest
from zemosaic_io.output_lock import OutputLock
from zemosaic_io.regular_files import add_to_regular
from zemosaic_worker import _log_file

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")


@pytest.fixture
def pipe(tmp_path):
    """Return a function that makes a pipe; a test that waits for it is let go after a while, and fails."""
    made = []

    def make(name: str):
        os.mkfifo(tmp_path / name)
        made.append(tmp_path / name)
        timer.start()
        return tmp_path / name

    def let_go() -> None:
        for path in made:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    timer = threading.Timer(20, let_go)
    timer.daemon = True
    yield make
    timer.cancel()


def test_what_is_written_is_added(tmp_path):
    for text in (b"one", b"two"):
        with add_to_regular(tmp_path / "file") as file:
            file.write(text)
    assert (tmp_path / "file").read_bytes() == b"onetwo"


@pytest.mark.parametrize("read_by_somebody", [False, True])
@pipes
def test_a_pipe_is_no_file(pipe, read_by_somebody):
    path = pipe("pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read_by_somebody else None
    with pytest.raises(OSError, match="no regular file"):
        add_to_regular(path)
    if reader is not None:
        os.close(reader)


@pipes
def test_files_of_a_run_that_are_pipes_are_told_at_once(pipe, tmp_path):
    with pytest.raises(SaveFailed, match="no regular file"):
        OutputLock(tmp_path, pipe("run.lock").parent)


@pipes
def test_a_journal_that_is_a_pipe_is_told_at_once(pipe, tmp_path):
    pipe("manifest.journal")
    with pytest.raises(SaveFailed, match="no regular file"):
        Manifest(tmp_path / "manifest.json").put("key", {"a": 1})


@pipes
def test_a_ledger_that_is_a_pipe_is_an_error_of_the_system(pipe):
    with pytest.raises(OSError, match="no regular file"):
        Ledger(pipe("gpu_ledger.jsonl")).write({"a": 1})


@pipes
def test_a_run_goes_without_a_log_that_is_a_pipe(pipe, tmp_path):
    pipe("zemosaic_worker.log")
    with _log_file(tmp_path / "in", tmp_path, "INFO"):
        pass


@pipes
def test_a_stored_file_that_is_a_pipe_was_never_made(pipe):
    assert file_digest(pipe("tile.fits")) is None


def test_a_log_is_added_to_and_begun_anew_when_it_is_long(tmp_path, monkeypatch):
    import logging

    for size, kept in ((100, True), (10, False)):
        monkeypatch.setattr("zemosaic_worker.LOG_MAX_BYTES", size)
        (tmp_path / "zemosaic_worker.log").write_text("earlier lines of a run\n")
        with _log_file(tmp_path / "in", tmp_path, "INFO"):
            logging.getLogger("zemosaic").info("a line with \x1b[31m colours")
        text = (tmp_path / "zemosaic_worker.log").read_text()
        assert ("earlier" in text) is kept
        assert "a line with" in text
        assert "\x1b" not in text
