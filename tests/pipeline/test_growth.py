"""What a run keeps of each frame is little: thousands of them must not take the memory that their blocks need."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import psutil
from made_frames import field_sky, pointings, write_all

from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_core.transforms import Transform
from zemosaic_core.wcs_cards import WcsCards
from zemosaic_io.headers import read_frame_info
from zemosaic_io.manifest import Manifest
from zemosaic_io.mapped_arrays import mapped_arrays
from zemosaic_pipeline.records import Frame, FrameMeasure, FrameTerms, RegisteredFrame, Solution, SolvedFrame

N = 300
# Bytes of Python and NumPy for one frame. Measured: 3.4 kB when it is solved, 5.6 kB when it lies on the mosaic; with
# a dict in every record and stored records as objects it was 13.0 and 15.4 kB.
MOST_SOLVED, MOST_PLACED = 4_000, 7_000
# A WCS of Astropy takes 6 kB.
MOST_PER_WCS = 2_500


def from_a_process(value):
    """Return what comes out of the pipe of a process that made it."""
    return pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def solved_frame(first, i, manifest):
    """Return what a run holds of frame ``i`` when it has its place in the sky."""
    cards = tan_cards(80.0 + i / 977, 10.0 + i / 983, scale_arcsec=2.4 + i / 1e6, shape_hw=first.shape_hw)
    path = first.path.with_name(f"light_{i:05d}.fit")
    info = from_a_process(
        replace(first, path=path, date_obs=f"2025-10-18T20:30:{i / 9:09.6f}", mtime_ns=10**18 + i, inode=10**6 + i,
                ra_deg=80.0 + i / 977, dec_deg=10.0 + i / 983, wcs_cards=cards)
    )  # fmt: skip
    key = f"{i:032x}"
    light = tuple(1000.0 + i + c for c in range(3)), tuple(20.0 + i / 7 + c for c in range(3))
    measure = from_a_process(
        FrameMeasure(
            key, *light, 80 + i, 2.0 + i / 997, 1.1 + i / 991, f"/some/where/.zemosaic_state/frames/{key}.npz"
        )
    )
    solution = Solution(dict(cards), "star_match", 0.2 + i / 1013, 30 + i, confirmed=True)
    manifest.put(key, asdict(solution))
    wcs_of(solution.wcs_cards)
    return SolvedFrame(Frame(i, info), measure, solution)


def placed_frame(solved, terms):
    """Return the frame on the mosaic, with its terms."""
    i = solved.frame.index

    def transform(sign):
        return Transform("poly3", (100.0 + i, 80.0 + i), 100.5 + i, *(sign * (np.ones((2, 10)) + i)).copy())

    gain = tuple(1.0 + (i + c) / 1009 for c in range(3))
    frame = RegisteredFrame(solved, transform(1), transform(-1), 0.1 + i / 1021, 30 + i, gain, "affine")
    return frame, FrameTerms(terms[0][i], terms[1][i], terms[2][i])


def test_a_frame_more_is_little_more(tmp_path):
    write_all(tmp_path / "raw", field_sky(), pointings(n=1))
    first = read_frame_info(next((tmp_path / "raw").iterdir()))
    manifest = Manifest(tmp_path / "manifest.json")
    terms = [np.ones((N, 3, k), np.float32) for k in (4, 4, 21)]
    solved_frame(first, N, manifest)
    gc.collect()
    tracemalloc.start()
    try:
        solved = [solved_frame(first, i, manifest) for i in range(N)]
        gc.collect()
        per_solved = tracemalloc.get_traced_memory()[0] / N
        placed = [placed_frame(frame, terms) for frame in solved]
        gc.collect()
        per_placed = tracemalloc.get_traced_memory()[0] / N
    finally:
        tracemalloc.stop()
    assert len(placed) == N
    assert (per_solved < MOST_SOLVED) & (per_placed < MOST_PLACED), (per_solved, per_placed)


def test_no_wcs_is_kept_for_a_frame():
    """Of what Astropy's library holds Python knows nothing: the process is asked."""
    cards = [
        WcsCards(tan_cards(80.0 + i / 977, 10.0, scale_arcsec=2.4, shape_hw=(1080, 1920)))
        for i in range(2000)
    ]
    wcs_of(cards[0])
    process = psutil.Process()
    before = process.memory_info().rss
    for one in cards:
        wcs_of(one)
    assert (process.memory_info().rss - before) / len(cards) < MOST_PER_WCS


def test_arrays_in_a_file_are_the_same(tmp_path):
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(3, 5)), np.arange(7, dtype=np.uint32), np.empty((0, 4)), np.float32([[2]])]
    found = mapped_arrays(iter(arrays), tmp_path)
    for a, b in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert list(tmp_path.iterdir()) == []
    assert mapped_arrays([], tmp_path) == []
    assert mapped_arrays([np.empty((0, 4))], tmp_path)[0].shape == (0, 4)
    # Who writes to one changes nothing but what it holds itself.
    found[1][0] = 9
    assert found[1][0] == 9
