"""How long the survey of a big folder takes: headers only, two processes.

Run with ``python benchmarks/survey.py [--frames 10000] [--processes 2]``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from zemosaic_io.fits_write import make_header
from zemosaic_io.folders import survey_files
from zemosaic_io.headers import read_frame_info

CARDS = (
    ("CREATOR", "ZWO Seestar S50", "Capture software"),
    ("FOCALLEN", 250, "Focal length of telescope in mm"),
    ("XPIXSZ", 2.9, "pixel size in microns (with binning)"),
    ("IMAGETYP", "Light", "Type of image"),
    ("EXPTIME", 10.0, "Exposure time in seconds"),
    ("RA", 193.04166, "Object Right Ascension in degrees"),
    ("DEC", 40.970556, "Object Declination in degrees"),
    ("DATE-OBS", "2025-03-27T01:20:32.955368", "Image created time"),
    ("FILTER", "IRCUT", "Filter used when taking image"),
    ("INSTRUME", "Seestar S50", "Camera model"),
    ("BAYERPAT", "GRBG", "Bayer pattern"),
    ("GAIN", 80, "Gain Value"),
    ("OBJECT", "M 94", "name or catalog number of object being imaged"),
    *(("COMMENT", f"filler {i}") for i in range(24)),
)


def write_frames(folder: Path, count: int, frames_per_folder: int = 500) -> None:
    """Write files with the header and the length of a Seestar frame; the pixels are a hole in the file."""
    shape = (1920, 1080)
    header = make_header(CARDS, shape, "uint16").tostring(padding=True).encode("ascii")
    size = len(header) + -(-2 * shape[0] * shape[1] // 2880) * 2880
    for i in range(count):
        path = folder / f"night{i // frames_per_folder:03d}" / f"Light_M_94_10.0s_IRCUT_{i:06d}.fit"
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(size)


def read_batch(paths: Sequence[Path]) -> int:
    """Read a batch of headers; return how many have the expected shape."""
    return sum(read_frame_info(path).shape_hw == (1920, 1080) for path in paths)


def survey(folder: Path, processes: int, batch: int = 100) -> tuple[int, float]:
    """Survey ``folder``; return the number of frames and the seconds, start of the processes included."""
    start = time.perf_counter()
    paths = survey_files(folder)
    batches = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    if processes <= 1:
        found = sum(map(read_batch, batches))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            found = sum(pool.map(read_batch, batches))
    return found, time.perf_counter() - start


def main() -> None:
    """Generate, survey, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zemosaic_survey_") as name:
        write_frames(Path(name), options.frames)
        found, seconds = survey(Path(name), options.processes)
    print(f"{found} headers with {options.processes} processes: {seconds:.2f} s")


if __name__ == "__main__":
    main()
