"""Damage FITS files where it hurts and read them as a run does: ``python -m tools.fuzz --files 10000``.

Each number makes one file, always the same: a good frame in one of the forms cameras write (plain, float, three
planes, packed in tiles), with a few changes made by somebody who knows the format. Reading may refuse a file for any
reason it names; an exception nobody expected, 20 s or 1 GB are findings. With ``--nights`` fuzzed files lie among good
frames of a real run, which has to use every good one.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_core.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline.child import limit_memory
from zemosaic_pipeline.frame_boundary import NO_MEMORY, TRACEBACK, result_or_skip
from zemosaic_pipeline.header_batches import read_batch
from zemosaic_pipeline.measure import MeasureOptions, measure_frame
from zemosaic_pipeline.records import LeftOut
from zemosaic_pipeline.worker_pool import WorkerPool

__all__ = ["Finding", "fuzz_files", "fuzz_nights", "fuzzed", "good_frames", "main", "read_as_a_run"]

BLOCK, CARD = 2880, 80
MOST_SECONDS = 20.0
MOST_BYTES = 1_000_000_000
SHAPE_HW = (160, 200)
OPTIONS = MeasureOptions(quality_sigma=4.0, exclude_flagged=False, find_hot_pixels=True)

_NUMBERS = (
    "0", "-1", "1", "2", "3", "4", "7", "16", "-32", "-64", "64", "99999", "2147483647", "-2147483648", "2147483648",
    "9223372036854775807", "-9223372036854775808", "999999999999999999999999", "1E308", "-1E308", "1E-320", "NaN",
    "Inf", "-Inf", "T", "F", "0.5", "1D5", "32768", "1E999",
)  # fmt: skip
_TEXTS = (
    "''", "'x'", "'", "'unclosed", "'RA---TAN-SIP'", "'DEC--TAN-SIP'", "'RA---ZPN'", "'GLON-CAR'", "'\xff\xe9\x00'",
    "'BGGR'", "'RGBG'", "'0001-01-01T00:00:00'", "'9999-12-31T23:59:60'", "'2025-13-45'", "'1PB(99999999)'", "'1QB'",
    "'GZIP_1'", "'RICE_1'", "'HCOMPRESS_1'", "'PLIO_1'", "'COMPRESSED_DATA'", "'25:61:61'", "'deg'", "''''''''", "",
)  # fmt: skip
_LAYOUT = (
    "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "PCOUNT", "GCOUNT", "BZERO", "BSCALE", "BLANK", "TFIELDS",
    "THEAP", "ZBITPIX", "ZNAXIS", "ZNAXIS1", "ZNAXIS2", "ZTILE1", "ZTILE2", "ZCMPTYPE", "ZVAL1", "ZVAL2", "TFORM1",
    "TTYPE1", "XTENSION", "SIMPLE", "ZIMAGE", "EXTNAME", "ZQUANTIZ", "ZDITHER0", "ZBLANK",
)  # fmt: skip
_MEANING = (
    "CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2", "CDELT1",
    "CDELT2", "CROTA2", "PC1_1", "CUNIT1", "LONPOLE", "LATPOLE", "RADESYS", "EQUINOX", "A_ORDER", "B_ORDER", "A_2_0",
    "B_0_2", "PV1_1", "PV2_1", "BAYERPAT", "ROWORDER", "XBAYROFF", "YBAYROFF", "EXPTIME", "DATE-OBS", "FOCALLEN",
    "XPIXSZ", "RA", "DEC", "GAIN", "SITELAT", "SITELONG", "STACKCNT", "TOTALEXP", "IMAGETYP", "FILTER", "XBINNING",
    "INSTRUME", "OBJECT", "WCSAXES",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one fuzzed file came to: the reason or ``used``, processor time (s), what was wrong with that."""

    number: int
    outcome: str
    seconds: float
    wrong: str = ""


def good_frames(folder: Path, n: int = 6) -> list[Path]:
    """Write ``n`` small good frames of one pointing, with WCS, and return their paths."""
    night = write_demo_night(
        folder,
        panels=(1, 1),
        frames_per_panel=n,
        shape_hw=SHAPE_HW,
        with_wcs=True,
        bad_frames=False,
        n_satellites=0,
    )
    return night.paths


@cache
def _forms(source: str) -> tuple[tuple[str, bytes], ...]:
    """Return name and bytes of one good frame in the forms cameras and programs write."""
    data, header = fits.getdata(source, header=True)
    for key in ("BZERO", "BSCALE", "CHECKSUM", "DATASUM"):
        header.remove(key, ignore_missing=True)
    plain = fits.Header(header, copy=True)
    plain.remove("BAYERPAT", ignore_missing=True)
    planes = np.stack([data, data[::-1], data])
    small = (data >> 5).astype(np.int16)
    units = {
        "plain.fit": fits.PrimaryHDU(data, header),
        "float.fits": fits.PrimaryHDU(data.astype(np.float32), header),
        "planes.fits": fits.PrimaryHDU(planes, plain),
        "pixels.fits": fits.PrimaryHDU(np.ascontiguousarray(np.moveaxis(planes, 0, -1)), plain),
        "rice.fits.fz": fits.CompImageHDU(data, header, compression_type="RICE_1"),
        "rice_float.fits.fz": fits.CompImageHDU(data.astype(np.float32), plain, compression_type="RICE_1"),
        "gzip1.fits.fz": fits.CompImageHDU(data, header, compression_type="GZIP_1", tile_shape=(40, 200)),
        "gzip2.fits.fz": fits.CompImageHDU(data, header, compression_type="GZIP_2", tile_shape=(40, 200)),
        "hcompress.fits.fz": fits.CompImageHDU(small, plain, compression_type="HCOMPRESS_1"),
        "plio.fits.fz": fits.CompImageHDU(small, plain, compression_type="PLIO_1"),
    }
    made = []
    for name, unit in units.items():
        stream = io.BytesIO()
        hdus = [unit] if isinstance(unit, fits.PrimaryHDU) else [fits.PrimaryHDU(), unit]
        fits.HDUList(hdus).writeto(stream)
        made.append((name, stream.getvalue()))
    return tuple(made)


def fuzzed(number: int, source: Path) -> tuple[str, bytes]:
    """Return name and bytes of fuzzed file ``number``, made from the good frame ``source``."""
    rng = np.random.default_rng([number, 20251])
    name, content = _forms(str(source))[number % len(_forms(str(source)))]
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        _CHANGES[int(rng.integers(len(_CHANGES)))](rng, changed)
    return f"fuzz_{number:06d}_{name}", bytes(changed)


# ------------------------------------------------------------------ changes


def _headers(content: bytearray) -> list[tuple[int, int]]:
    """Return first byte and end of every header that can be found."""
    found, start = [], 0
    while start < len(content) and (content[start : start + 6] in (b"SIMPLE", b"XTENSI")) and len(found) < 50:
        end = content.find(b"END" + b" " * 77, start)
        if end < 0:
            return found
        found.append((start, end))
        start = -(-(end + CARD) // BLOCK) * BLOCK
        following = content.find(b"XTENSION", start)
        start = following if following >= 0 else len(content)
    return found


def _a_card(rng: np.random.Generator, content: bytearray) -> int:
    headers = _headers(content)
    if not headers:
        return 0
    start, end = headers[int(rng.integers(len(headers)))]
    return start + CARD * int(rng.integers(max(1, (end - start) // CARD)))


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _literal(rng: np.random.Generator, key: str) -> bytes:
    value = _pick(rng, _NUMBERS if rng.random() < 0.6 else _TEXTS)
    if rng.random() < 0.2:
        value = str(int(rng.integers(0, 5000)))
    return f"{key:8}= {value:>20}".encode("latin-1").ljust(CARD)[:CARD]


def _set(rng: np.random.Generator, content: bytearray, keys: Sequence[str]) -> None:
    key = _pick(rng, keys)
    position = content.find(f"{key:8}=".encode())
    if position < 0 or position % CARD:
        position = _a_card(rng, content)
    content[position : position + CARD] = _literal(rng, key)


def _set_layout(rng: np.random.Generator, content: bytearray) -> None:
    _set(rng, content, _LAYOUT)


def _set_meaning(rng: np.random.Generator, content: bytearray) -> None:
    _set(rng, content, _MEANING)


def _drop_card(rng: np.random.Generator, content: bytearray) -> None:
    position = _a_card(rng, content)
    content[position : position + CARD] = b" " * CARD


def _double_card(rng: np.random.Generator, content: bytearray) -> None:
    position, other = _a_card(rng, content), _a_card(rng, content)
    content[other : other + CARD] = content[position : position + CARD]


def _insert_bytes(rng: np.random.Generator, content: bytearray) -> None:
    """Move everything behind some place: by cards, by blocks, by a few bytes."""
    length = int(_pick(rng, ("1", "7", "80", "2880", "28800")))
    position = int(rng.integers(len(content) + 1)) if rng.random() < 0.5 else _a_card(rng, content)
    content[position:position] = rng.integers(32, 127, length, dtype=np.uint8).tobytes()


def _cut(rng: np.random.Generator, content: bytearray) -> None:
    end = int(rng.integers(len(content) + 1))
    del content[end // BLOCK * BLOCK if rng.random() < 0.3 else end :]


def _cut_out(rng: np.random.Generator, content: bytearray) -> None:
    start = int(rng.integers(len(content) + 1))
    del content[start : start + int(rng.integers(1, 6000))]


def _flip_bits(rng: np.random.Generator, content: bytearray) -> None:
    if not content:
        return
    low, high = (0, min(len(content), 12_000)) if rng.random() < 0.4 else (0, len(content))
    for position in rng.integers(low, high, int(rng.integers(1, 60))):
        content[position] ^= 1 << int(rng.integers(8))


def _set_integers(rng: np.random.Generator, content: bytearray) -> None:
    """Overwrite whole numbers where a table of tiles may be, and what the tiles begin with."""
    headers = _headers(content)
    if not headers:
        return
    start = -(-(headers[-1][1] + CARD) // BLOCK) * BLOCK
    values = (0, 1, -1, 2**31 - 1, -(2**31), 255, 65535, int(rng.integers(2**31)))
    for _ in range(int(rng.integers(1, 8))):
        position = start + 4 * int(rng.integers(600))
        value = values[int(rng.integers(len(values)))]
        content[position : position + 4] = value.to_bytes(4, "big", signed=True)


def _fill(rng: np.random.Generator, content: bytearray) -> None:
    """Make a piece of the data constant: no sky, no noise; or, as floats, no numbers."""
    start = int(rng.integers(len(content) + 1))
    length = min(int(rng.integers(1, 200_000)), len(content) - start)
    pattern = (
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x7f\x80\x00\x00",
        b"\x7f\xff\x00\x00",
        b"\x7f\x7f\xff\xff",
    )
    content[start : start + length] = (pattern[int(rng.integers(len(pattern)))] * (length // 4 + 1))[:length]


def _add_units(rng: np.random.Generator, content: bytearray) -> None:
    """Put extensions between the first unit and the rest, or behind everything."""
    cards = [b"XTENSION= 'IMAGE   '", b"BITPIX  =                    8", b"NAXIS   =                    0"]
    cards += [_literal(rng, _pick(rng, _LAYOUT)) for _ in range(int(rng.integers(0, 4)))]
    unit = b"".join(card.ljust(CARD) for card in cards) + b"END".ljust(CARD)
    unit = unit.ljust(-(-len(unit) // BLOCK) * BLOCK) * int(rng.integers(1, 200))
    headers = _headers(content)
    position = headers[1][0] if len(headers) > 1 else len(content)
    content[position:position] = unit


def _continue(rng: np.random.Generator, content: bytearray) -> None:
    """A text that goes on and on."""
    piece = b"CONTINUE  '" + b"x" * 60 + b"&'"
    chain = b"OBJECT  = 'a&'".ljust(CARD) + piece.ljust(CARD) * int(rng.integers(1, 3000))
    position = _a_card(rng, content)
    content[position : position + CARD] = chain.ljust(-(-len(chain) // BLOCK) * BLOCK + CARD)


def _drop_end(rng: np.random.Generator, content: bytearray) -> None:
    position = content.find(b"END" + b" " * 77)
    if position >= 0:
        content[position : position + 3] = b"   "


_CHANGES: tuple[Callable[[np.random.Generator, bytearray], None], ...] = (
    _set_layout, _set_layout, _set_layout, _set_meaning, _set_meaning, _set_meaning, _set_meaning, _drop_card,
    _double_card, _insert_bytes, _cut, _cut_out, _flip_bits, _flip_bits, _set_integers, _set_integers, _fill,
    _add_units, _continue, _drop_end,
)  # fmt: skip


# ------------------------------------------------------------------ reading


def read_as_a_run(task: tuple[int, str, str]) -> Finding:
    """Write one fuzzed file and do with it what a run does before frames meet; runs in a worker process.

    Parameters
    ----------
    task : tuple
        Number of the file, path of the good frame, folder for the file.
    """
    number, source, folder = task
    name, content = fuzzed(number, Path(source))
    path = Path(folder) / name
    path.write_bytes(content)
    # Of the processor: how long others keep it busy is not the file's doing.
    start = time.process_time()
    try:
        outcome, wrong = _read(path, f"{folder}/{number}.npz")
    finally:
        path.unlink()
    seconds = time.process_time() - start
    if seconds > MOST_SECONDS:
        wrong = f"took {seconds:.0f} s"
    return Finding(number, outcome, seconds, wrong)


def _read(path: Path, arrays_path: str) -> tuple[str, str]:
    """Return the reason a file is refused for, or ``used``; and what an unexpected one was."""
    (found,) = read_batch([str(path)], path.parent)
    if isinstance(found, LeftOut):
        return found.key, _unexpected(found.key, found.values)
    measured = measure_frame((found, OPTIONS, arrays_path))
    Path(arrays_path).unlink(missing_ok=True)
    if isinstance(measured, SkipItem):
        return measured.key, _unexpected(measured.key, measured.values)
    if found.wcs_cards is not None:
        built = result_or_skip(path, _build, found.wcs_cards, found.shape_hw)
        if isinstance(built, SkipItem):
            return built.key, _unexpected(built.key, built.values)
    return "used", ""


def _build(cards: dict, shape_hw: tuple[int, int]) -> None:
    try:
        build_frame_wcs(cards, shape_hw)
    except UnusableWcs:
        return


def _unexpected(key: str, values: dict) -> str:
    if key == NO_MEMORY:
        return "more memory than allowed\n" + str(values.get(TRACEBACK, ""))
    return str(values.get(TRACEBACK) or values.get("reason")) if key == "frame_unexpected" else ""


def unread(number: int, skipped: SkipItem) -> Finding:
    """What a file came to whose process gave no answer: a decoder may die of it, but nothing may keep one."""
    kept = skipped.key in ("frame_endless", "frame_silent")
    return Finding(number, skipped.key, 0.0, str(skipped) if kept else "")


def _read_limited(task: tuple[int, str, str]) -> Finding:
    _warm_up(*task[1:])
    return read_as_a_run(task)


@cache
def _warm_up(source: str, folder: str) -> None:
    """Compile everything with a good frame: that is not the time a file takes."""
    limit_memory(MOST_BYTES)
    _read(Path(source), f"{folder}/warm_{os.getpid()}.npz")


def fuzz_files(numbers: range, workers: int) -> list[Finding]:
    """Read fuzzed files in processes, as a run does."""
    with tempfile.TemporaryDirectory(prefix="zemosaic_fuzz_") as folder:
        source = good_frames(Path(folder) / "good", 1)[0]
        pool = WorkerPool(workers, alone_bytes=MOST_BYTES)
        findings = []
        try:
            tasks = [(number, str(source), folder) for number in numbers]
            for position, answer in pool.map(_read_limited, tasks, name_of=lambda task: str(task[0])):
                number = numbers[position]
                if isinstance(answer, SkipItem):
                    answer = unread(number, answer)
                findings.append(answer)
        finally:
            pool.close()
    return findings


def fuzz_nights(nights: int, per_night: int, first: int) -> list[str]:
    """Run nights of 6 good frames and many fuzzed ones; return what went wrong."""
    from zemosaic_worker import run_hierarchical_mosaic

    wrong = []
    for night in range(nights):
        with tempfile.TemporaryDirectory(prefix="zemosaic_fuzz_night_") as name:
            folder = Path(name)
            good = good_frames(folder / "raw")
            numbers = range(first + night * per_night, first + (night + 1) * per_night)
            for number in numbers:
                fuzz_name, content = fuzzed(number, good[number % len(good)])
                (folder / "raw" / fuzz_name).write_bytes(content)
            start = time.perf_counter()
            try:
                result = run_hierarchical_mosaic(
                    folder / "raw", folder / "out", gpu_mode="off", exclude_flagged_frames=False
                )
            except Exception as error:  # noqa: BLE001 - any end of the run is a finding
                wrong.append(f"night {night} (files {numbers}): {error!r}")
                continue
            left = {Path(item["path"]).name: item["key"] for item in result.report["left_out"]}
            lost = {
                p.name: left[p.name] for p in good if left.get(p.name, "frame_duplicate") != "frame_duplicate"
            }
            if lost:
                wrong.append(f"night {night} (files {numbers}): good frames left out: {lost}")
            unexpected = {name for name, key in left.items() if key == "frame_unexpected"}
            used = result.report["frames_used"]
            print(f"night {night}: {used} used, {len(left)} left out, unexpected {sorted(unexpected)}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nights", type=int, default=0, help="real runs with fuzzed files among good frames")
    parser.add_argument("--per-night", type=int, default=100)
    options = parser.parse_args(argv)
    start = time.perf_counter()
    warnings.simplefilter("ignore")
    findings = fuzz_files(range(options.first, options.first + options.files), options.workers)
    for outcome, count in Counter(finding.outcome for finding in findings).most_common():
        print(f"{count:6}  {outcome}")
    wrong = [f"file {f.number}: {f.outcome}: {f.wrong}" for f in findings if f.wrong]
    slowest = max((f.seconds for f in findings), default=0.0)
    print(f"{len(findings)} files in {time.perf_counter() - start:.0f} s, slowest {slowest:.1f} s")
    wrong += fuzz_nights(options.nights, options.per_night, options.first)
    print("\n".join(wrong) or "nothing unexpected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
