"""The one look at the pixels of a raw frame: CPU milliseconds per step, and what it finds against known truth.

python -m benchmarks.measure                     # a made-up night of 8 frames of 1080x1920
python -m benchmarks.measure --frames FOLDER     # frames of one's own: milliseconds and numbers, no truth
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from zemosaic_core.errors import SkipItem
from zemosaic_core.raw_counts import as_counts
from zemosaic_core.raw_defects import ceilings, find_defects
from zemosaic_core.raw_maxima import find_maxima
from zemosaic_core.raw_sky import sky_cells
from zemosaic_io.demo_session import DemoTruth, write_demo_night
from zemosaic_io.fits_read import read_identified, read_image
from zemosaic_io.folders import survey_files
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_pipeline.measure import MeasureOptions, measure_arrays, measure_frame

OPTIONS = MeasureOptions(quality_sigma=4.0, exclude_flagged=True, find_hot_pixels=True)
SNR_LIMITS = (5.0, 8.0, 12.0, 30.0, 1000.0, np.inf)


def cpu_ms(act: Callable[[], object], repeats: int) -> float:
    """Median CPU milliseconds: a busy machine stretches the clock, not these."""
    act()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def time_steps(info: FrameInfo, folder: Path, repeats: int) -> None:
    """Print what each step costs."""
    data = read_image(info)
    plane = as_counts(data).plane
    cells = sky_cells(plane)
    is_cfa = info.kind == "cfa"
    steps: dict[str, Callable[[], object]] = {
        "read and fingerprint": lambda: read_identified(info),
        "sky cells": lambda: sky_cells(plane),
        "defects": lambda: find_defects(plane, cells),
        "ceilings": lambda: ceilings(plane),
        "maxima": lambda: find_maxima(plane, cells, is_cfa, threshold_sigma=OPTIONS.detect_sigma),
        "measure, without file": lambda: measure_arrays(info, data, OPTIONS),
        "measure, from file to file": lambda: measure_frame((info, OPTIONS, str(folder / "arrays.npz"))),
    }
    for name, act in steps.items():
        print(f"  {name:28s} {cpu_ms(act, repeats):7.1f} ms")


def _snr(truth: DemoTruth, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stars of a frame: x, y, signal over noise of the best filter, and true noise of a pixel per channel."""
    setup = truth.frames[index].setup
    _rows, x, y, flux = truth.stars_of(index)
    noise = np.sqrt(14.3 * np.array(setup.sky_adu) + 14.3**2 + 3.2**2 / 12)
    in_luminance = np.sqrt((noise**2) @ [1, 2, 1] / 4)
    light = flux @ [1, 2, 1] / 4
    return x, y, light / (in_luminance * np.sqrt(4 * np.pi) * setup.fwhm_px / 2.3548), noise


def compare(truth: DemoTruth, arrays: dict[int, dict[str, np.ndarray]]) -> None:
    """Print recall by signal over noise, false stars and the error of the noise over all good frames."""
    found, there = np.zeros(len(SNR_LIMITS) - 1), np.zeros(len(SNR_LIMITS) - 1)
    false = listed = 0
    noise_ratio = []
    for index, measured in arrays.items():
        x, y, snr, noise = _snr(truth, index)
        height, width = truth.frames[index].setup.shape_hw
        stars = cKDTree(np.c_[x[snr > 2], y[snr > 2]])
        inside = (x > 8) & (x < width - 9) & (y > 8) & (y < height - 9)
        alone = cKDTree(np.c_[x[snr > 5], y[snr > 5]]).query(np.c_[x, y], k=2)[0][:, 1] > 8
        at = np.c_[measured["x"], measured["y"]]
        apart = cKDTree(at).query(np.c_[x, y])[0]
        for k, (low, high) in enumerate(itertools.pairwise(SNR_LIMITS)):
            wanted = inside & alone & (snr >= low) & (snr < high)
            found[k] += np.count_nonzero(apart[wanted] < 1.5)
            there[k] += np.count_nonzero(wanted)
        false += np.count_nonzero(stars.query(at)[0] > 1.5)
        listed += len(at)
        noise_ratio.append(measured["noise"] / noise)
    for k in range(len(found)):
        print(
            f"  stars of S/N {SNR_LIMITS[k]:4.0f} to {SNR_LIMITS[k + 1]:4.0f}: {found[k]:.0f} of {there[k]:.0f} found"
        )
    print(f"  {false} of {listed} listed are no stars")
    ratio = np.array(noise_ratio)
    print(
        f"  noise over photon and read noise: {ratio.min():.3f} to {ratio.max():.3f}, mean {ratio.mean():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=Path, help="a folder of raw frames")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zemosaic_measure_") as name:
        folder = Path(name)
        truth = None
        if options.frames is None:
            truth = write_demo_night(folder / "night", panels=(1, 2), frames_per_panel=4)
        paths = survey_files(options.frames) if truth is None else truth.paths
        infos = [read_frame_info(path) for path in paths]
        print(f"{paths[0].name}, {infos[0].shape_hw[0]} x {infos[0].shape_hw[1]} px:")
        time_steps(infos[0], folder, options.repeats)
        arrays = {}
        for index, info in enumerate(infos):
            try:
                measured = measure_arrays(info, read_image(info), OPTIONS)
            except SkipItem as skip:
                print(f"  {skip}")
                continue
            widths = np.median(measured["fwhm_px"]), np.median(measured["elongation"])
            print(
                f"  {paths[index].name}: {len(measured['x'])} stars, FWHM {widths[0]:.2f} px, "
                f"elongation {widths[1]:.2f}, noise {np.round(measured['noise'], 1)} ADU, "
                f"{len(measured['hot'])} single pixels"
            )
            if truth is not None and truth.frames[index].kind == "good":
                arrays[index] = measured
        if truth is not None:
            compare(truth, arrays)


if __name__ == "__main__":
    main()
