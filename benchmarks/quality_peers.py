"""Mosaics of the same nights by other programs, where they are installed."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.synthetic_sky import Camera
from zemosaic_io.glow_session import GlowNight

__all__ = ["PEERS", "bilinear_planes", "not_installed", "run_peer"]

PEERS = ("reproject",)
# Programs that make mosaics too; nothing is said of those that are not here.
_PROGRAMS = {"SWarp": "SWarp", "Montage": "mProjExec", "Siril": "siril-cli"}
# Weights of plain bilinear demosaicing: what a user gets who has no better.
_GREEN = np.array([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]], dtype=np.float32)
_OTHER = np.array([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]], dtype=np.float32)


def not_installed() -> list[str]:
    """Return the programs that could be compared with and are not on this machine."""
    missing = [title for title, command in _PROGRAMS.items() if shutil.which(command) is None]
    return missing if importlib.util.find_spec("reproject") else ["reproject", *missing]


def run_peer(name: str, night: GlowNight, output: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the mosaic of another program and what it cost, or None where it is not installed.

    Raises
    ------
    ValueError
        For an unknown program.
    """
    if name not in PEERS:
        raise ValueError(f"peer {name!r}; known are {', '.join(PEERS)}")
    if importlib.util.find_spec("reproject") is None:
        return None
    path = output / "reproject.fits"
    note = output / "raw.fingerprint"
    if not (path.is_file() and note.is_file() and note.read_text(encoding="utf-8") == night.fingerprint()):
        output.mkdir(parents=True, exist_ok=True)
        seconds, cpu_seconds = _with_reproject(night, path)
        note.write_text(night.fingerprint(), encoding="utf-8")
        return path, {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return path, {}


def _with_reproject(night: GlowNight, path: Path) -> tuple[float, float]:
    """Write the mean of all frames after reproject's background matching; return seconds and CPU seconds."""
    from reproject import reproject_interp
    from reproject.mosaicking import find_optimal_celestial_wcs, reproject_and_coadd

    start, cpu = time.perf_counter(), time.process_time()
    frames = []
    for file in night.paths:
        raw, header = fits.getdata(file).astype(np.float32), fits.getheader(file)
        frames.append((bilinear_planes(raw), WCS(header).celestial))
    target, shape = find_optimal_celestial_wcs([(planes[0].shape, wcs) for planes, wcs in frames])
    image = np.full((3, *shape), np.nan, dtype=np.float32)
    for channel in range(3):
        pairs = [(planes[channel], wcs) for planes, wcs in frames]
        mean, footprint = reproject_and_coadd(
            pairs, target, shape_out=shape, reproject_function=reproject_interp, match_background=True
        )
        image[channel] = np.where(footprint > 0, mean, np.nan)
    fits.PrimaryHDU(image, target.to_header()).writeto(path, overwrite=True)
    return time.perf_counter() - start, time.process_time() - cpu


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
