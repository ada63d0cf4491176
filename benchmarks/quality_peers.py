"""Mosaics of the same nights by other programs, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.synthetic_sky import Camera
from zemosaic_io.glow_session import GlowNight

__all__ = ["PEERS", "bilinear_planes", "not_installed", "run_peer"]

# Programs that make mosaics too; nothing is said of those that are not here.
_PROGRAMS = {"SWarp": "SWarp", "Montage": "mProjExec", "Siril": "siril-cli"}
# As a careful user would set it: its own background, in cells larger than most galaxies, and outliers clipped.
_SWARP_OPTIONS = (
    "-COMBINE_TYPE", "CLIPPED", "-WEIGHT_TYPE", "NONE", "-SUBTRACT_BACK", "Y", "-BACK_SIZE", "256",
    "-RESAMPLING_TYPE", "LANCZOS3", "-VERBOSE_TYPE", "QUIET", "-WRITE_XML", "N",
)  # fmt: skip
# What the tutorials of Montage say: planes between neighbours, levelled over all of them, then the mean.
_MONTAGE_STEPS = (
    "mImgtbl raw raw.tbl",
    "mMakeHdr raw.tbl mosaic.hdr",
    "mProjExec -p raw raw.tbl mosaic.hdr projected stats.tbl",
    "mImgtbl projected projected.tbl",
    "mOverlaps projected.tbl diffs.tbl",
    "mDiffExec -p projected diffs.tbl mosaic.hdr diffs",
    "mFitExec diffs.tbl fits.tbl diffs",
    "mBgModel projected.tbl fits.tbl corrections.tbl",
    "mBgExec -p projected projected.tbl corrections.tbl corrected",
    "mImgtbl corrected corrected.tbl",
    "mAdd -p corrected corrected.tbl mosaic.hdr mosaic.fits",
)
# What its tutorials do with a panel: a plane is taken off the sky of each frame, stars register, Winsorized rejection.
_SIRIL_SCRIPT = """requires 1.0.0
convert light -debayer -out=process
cd process
seqsubsky light 1
setref bkg_light 1
register bkg_light
stack r_bkg_light rej 3 3 -norm=addscale -out=panel
"""
# Some releases of Siril die now and then while they convert frames.
_SIRIL_TRIES = 4
_SIRIL_ADU = 65535.0
# Weights of plain bilinear demosaicing: what a user gets who has no better.
_GREEN = np.array([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]], dtype=np.float32)
_OTHER = np.array([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]], dtype=np.float32)


def not_installed() -> list[str]:
    """Return the programs that could be compared with and are not on this machine."""
    missing = [title for title, command in _PROGRAMS.items() if shutil.which(command) is None]
    return missing if importlib.util.find_spec("reproject") else ["reproject", *missing]


def run_peer(name: str, night: GlowNight, output: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the mosaic of another program and what it cost, or None where it is not installed.

    None also where a program needs panels and every frame of the night lies elsewhere.

    Raises
    ------
    ValueError
        For an unknown program.
    subprocess.CalledProcessError
        It ended with an error.
    """
    if name not in PEERS:
        raise ValueError(f"peer {name!r}; known are {', '.join(PEERS)}")
    if name in {title.lower() for title in map(str, not_installed())}:
        return None
    if name == "siril" and night.spec.layout == "walk":
        return None
    path = output / f"{name}.fits"
    note = output / "raw.fingerprint"
    if not (path.is_file() and note.is_file() and note.read_text(encoding="utf-8") == night.fingerprint()):
        output.mkdir(parents=True, exist_ok=True)
        seconds, cpu_seconds = PEERS[name](night, path)
        note.write_text(night.fingerprint(), encoding="utf-8")
        return path, {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return path, {}


def _with_swarp(night: GlowNight, path: Path) -> tuple[float, float]:
    """Write the clipped mean of SWarp, colour by colour."""

    def one(folder: Path) -> Path:
        names = folder / "frames.txt"
        frames = sorted((folder / "raw").glob("*.fits"))
        names.write_text("\n".join(str(frame) for frame in frames), encoding="utf-8")
        _run(["SWarp", f"@{names}", *_SWARP_OPTIONS], folder)
        return folder / "coadd.fits"

    return _by_colours(night, path, one)


def _with_montage(night: GlowNight, path: Path) -> tuple[float, float]:
    """Write the mean of Montage after its levelling, colour by colour."""

    def one(folder: Path) -> Path:
        for name in ("projected", "diffs", "corrected"):
            (folder / name).mkdir()
        for step in _MONTAGE_STEPS:
            _run(step.split(), folder)
        return folder / "mosaic.fits"

    return _by_colours(night, path, one)


def _cd_cards(wcs: WCS) -> fits.Header:
    """Return a header that old programs understand: they take CDELT for the scale whatever stands beside it."""
    header = fits.Header()
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = wcs.wcs.ctype[axis - 1]
        header[f"CRVAL{axis}"] = wcs.wcs.crval[axis - 1]
        header[f"CRPIX{axis}"] = wcs.wcs.crpix[axis - 1]
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = wcs.pixel_scale_matrix[axis - 1, other - 1]
    header["EQUINOX"] = 2000.0
    return header


def _run(words: list[str], folder: Path) -> None:
    subprocess.run(words, cwd=folder, check=True, stdin=subprocess.DEVNULL, capture_output=True)


def _by_colours(night: GlowNight, path: Path, make: Callable[[Path], Path]) -> tuple[float, float]:
    """Let a program that knows one colour only make three mosaics; return seconds and CPU seconds it took.

    ``make`` gets a folder with the frames in ``raw`` and returns its mosaic.
    """
    folders = [path.parent / name for name in "RGB"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "raw").mkdir(parents=True)
    for file in night.paths:
        header = _cd_cards(WCS(fits.getheader(file)).celestial)
        for folder, plane in zip(
            folders, bilinear_planes(fits.getdata(file).astype(np.float32)), strict=True
        ):
            fits.writeto(folder / "raw" / f"{Path(file).stem}.fits", plane, header)
    start, before = time.perf_counter(), os.times()
    made = [make(folder) for folder in folders]
    after, seconds = os.times(), time.perf_counter() - start
    planes = []
    for mosaic in made:
        image, header = fits.getdata(mosaic).astype(np.float32), fits.getheader(mosaic)
        # Both write zeros, or NaN, where there is nothing.
        planes.append(np.where(image == 0, np.nan, image))
    fits.writeto(path, np.stack(planes), WCS(header).celestial.to_header(), overwrite=True)
    for folder in folders:
        shutil.rmtree(folder)
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, cpu


def _with_reproject(night: GlowNight, path: Path) -> tuple[float, float]:
    """Write the mean of all frames after reproject's background matching; return seconds and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    frames = []
    for file in night.paths:
        raw, header = fits.getdata(file).astype(np.float32), fits.getheader(file)
        frames.append((bilinear_planes(raw), WCS(header).celestial))
    _join_matched(frames, path)
    return time.perf_counter() - start, time.process_time() - cpu


def _with_siril(night: GlowNight, path: Path) -> tuple[float, float]:
    """Write panels of Siril, frames less a plane each, joined by reproject's background matching.

    A panel lies where its first frame lay, which it is registered on.
    """
    start, before = time.perf_counter(), os.times()
    panels = []
    for panel in sorted({frame.panel for frame in night.frames}):
        files = [file for file, frame in zip(night.paths, night.frames, strict=True) if frame.panel == panel]
        folder = path.parent / f"panel_{panel}"
        stacked = _siril_panel(files, folder)
        planes = _SIRIL_ADU * fits.getdata(stacked).astype(np.float32)
        panels.append((np.where(planes == 0, np.nan, planes), WCS(fits.getheader(files[0])).celestial))
        shutil.rmtree(folder)
    _join_matched(panels, path)
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def _siril_panel(files: Sequence[Path], folder: Path) -> Path:
    """Stack the frames of a panel in a folder; return the file of the stack.

    Raises
    ------
    FileNotFoundError
        When Siril wrote none.
    """
    made = folder / "process" / "panel.fit"
    for _ in range(_SIRIL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
        script = folder / "panel.ssf"
        script.write_text(_SIRIL_SCRIPT, encoding="utf-8")
        subprocess.run(
            ["siril-cli", "-d", str(folder), "-s", str(script)],
            cwd=folder, check=False, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        if made.is_file():
            return made
    raise FileNotFoundError(f"siril-cli wrote no stack of {folder}")


def _join_matched(pictures: Sequence[tuple[np.ndarray, WCS]], path: Path) -> None:
    """Write the mean of pictures (3, H, W) with their positions, after reproject's background matching."""
    from reproject import reproject_interp
    from reproject.mosaicking import find_optimal_celestial_wcs, reproject_and_coadd

    target, shape = find_optimal_celestial_wcs([(planes[0].shape, wcs) for planes, wcs in pictures])
    image = np.full((3, *shape), np.nan, dtype=np.float32)
    for channel in range(3):
        pairs = [(planes[channel], wcs) for planes, wcs in pictures]
        mean, footprint = reproject_and_coadd(
            pairs, target, shape_out=shape, reproject_function=reproject_interp, match_background=True
        )
        image[channel] = np.where(footprint > 0, mean, np.nan)
    fits.PrimaryHDU(image, target.to_header()).writeto(path, overwrite=True)


def bilinear_planes(raw: np.ndarray) -> np.ndarray:
    """Colour planes (3, H, W) of a raw frame, each missing value the mean of its nearest neighbours."""
    pattern = np.array(list(Camera().pattern)).reshape(2, 2)
    y, x = np.indices(raw.shape) % 2
    planes = np.empty((3, *raw.shape), dtype=np.float32)
    for channel, name in enumerate("RGB"):
        here = (pattern[y, x] == name).astype(np.float32)
        kernel = _GREEN if name == "G" else _OTHER
        weight = ndimage.convolve(here, kernel, mode="constant")
        planes[channel] = ndimage.convolve(raw * here, kernel, mode="constant") / weight
    return planes


PEERS: dict[str, Callable[[GlowNight, Path], tuple[float, float]]] = {
    "reproject": _with_reproject,
    "swarp": _with_swarp,
    "montage": _with_montage,
    "siril": _with_siril,
}
