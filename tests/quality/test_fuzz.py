"""A thousand damaged files: each is read or refused for a reason with a name, none costs more than itself."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tools.fuzz import fuzz_files, fuzz_nights, fuzzed, good_frames, unread
from zemosaic_core.errors import SkipItem


def test_files_are_the_same_every_time(tmp_path):
    source = good_frames(tmp_path, 1)[0]
    assert [fuzzed(n, source) for n in range(20)] == [fuzzed(n, source) for n in range(20)]
    assert len({content for _, content in (fuzzed(n, source) for n in range(20))}) == 20


def test_a_thousand_damaged_files():
    findings = fuzz_files(range(1000), workers=1)
    assert [f for f in findings if f.wrong] == []
    assert sorted(f.number for f in findings) == list(range(1000))
    outcomes = Counter(f.outcome for f in findings)
    # Files that are all refused at the door, or all sound, would prove nothing.
    assert 200 < outcomes["used"] < 700
    assert len(outcomes) > 8
    assert np.percentile([f.seconds for f in findings], 99) < 5


def test_good_frames_among_damaged_ones_are_all_used():
    assert fuzz_nights(1, 40, first=500) == []


def test_a_file_that_keeps_its_process_is_a_finding():
    assert unread(7, SkipItem("frame_endless", "7: computed for 300 s", path="7")).wrong
    assert unread(7, SkipItem("frame_silent", "7: neither computed nor read", path="7")).wrong
    assert not unread(7, SkipItem("frame_killed_worker", "7: SIGSEGV", path="7")).wrong
