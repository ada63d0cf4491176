"""Small frames of one made-up sky in every form a camera may write them, and stars measured on the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.synthetic_sky import (
    NOMINAL_SCALE_ARCSEC,
    Camera,
    FrameSetup,
    HotPixels,
    Sky,
    make_sky,
    render_frame,
    render_ideal,
    tan_cards,
)
from zemosaic_worker import run_hierarchical_mosaic

__all__ = ["Result", "base_cards", "expose", "field_sky", "pointings", "run", "write", "write_all"]

SHAPE_HW = (300, 400)
SCALE_DEG = NOMINAL_SCALE_ARCSEC / 3600
CENTRE = (150.0, 20.0)
# As many stars as a full-size frame sees.
STARS_PER_DEG2 = 35 * 0.902 / (SHAPE_HW[0] * SHAPE_HW[1] * SCALE_DEG**2)


def field_sky(centre=CENTRE, *, size_deg=0.7, seed=11, colours=False) -> Sky:
    """Stars only; with ``colours`` every second star is red and the others are blue, 4 to 1."""
    sky = make_sky(centre, size_deg, seed=seed, stars_per_deg2=STARS_PER_DEG2)
    if not colours:
        return sky
    flux = sky.flux[:, 1:2] * np.where(
        np.arange(len(sky.flux))[:, None] % 2, [2.0, 1.0, 0.5], [0.5, 1.0, 2.0]
    )
    return replace(sky, flux=flux)


def pointings(
    centre=CENTRE,
    *,
    n=6,
    shape_hw=SHAPE_HW,
    step_px=(0.0, 0.0),
    rotation_deg=0.0,
    turn_deg=0.6,
    seed=1,
    **setup: Any,
) -> list[FrameSetup]:
    """Return ``n`` dithered exposures around a centre; ``step_px`` moves the centre in the plane of the sky."""
    rng = np.random.default_rng([seed, 77])
    made = []
    for i in range(n):
        cards = tan_cards(*centre, rotation_deg=rotation_deg + turn_deg * i, shape_hw=shape_hw)
        moved = np.array(step_px) + rng.uniform(-6, 6, 2)
        x = cards["CRPIX1"] - 1 + moved[0]
        y = cards["CRPIX2"] - 1 + moved[1]
        ra, dec = WCS(cards).all_pix2world(x, y, 0)
        cards = tan_cards(float(ra), float(dec), rotation_deg=rotation_deg + turn_deg * i, shape_hw=shape_hw)
        air = rng.uniform(0.85, 1.0)
        values = {
            "transparency": (air, air, air),
            "sky_adu": tuple(np.array([300.0, 430.0, 270.0]) * rng.uniform(0.9, 1.1)),
            "sky_shape": tuple(rng.normal(0, [0.04, 0.05, 0.01, 0.01, 0.01])),
            "fwhm_px": float(rng.uniform(2.4, 2.8)),
            "seed": (seed, i),
            **setup,
        }
        made.append(FrameSetup(cards=cards, shape_hw=shape_hw, **values))
    return made


def expose(sky: Sky, setup: FrameSetup, form: str = "GRBG") -> np.ndarray:
    """Return a CFA frame of the pattern ``form``, or ``mono``, or ``rgb`` (CHW); uint16."""
    if form == "rgb":
        planes = [
            render_frame(sky, replace(setup, seed=(*setup.seed, c)), Camera(pattern=4 * "RGB"[c]))
            for c in range(3)
        ]
        return np.stack(planes)
    return render_frame(sky, setup, Camera(pattern="GGGG" if form == "mono" else form))


def base_cards(setup: FrameSetup, number: int, *, form="GRBG", with_wcs=True, **more: Any) -> dict[str, Any]:
    """Return header cards as a telescope writes them."""
    cards: dict[str, Any] = {
        "INSTRUME": "Test camera", "EXPTIME": 10.0, "IMAGETYP": "Light", "GAIN": 80, "FOCALLEN": 250, "XPIXSZ": 2.877,
        "DATE-OBS": f"2025-10-18T{20 + number // 60:02d}:{number % 60:02d}:00",
        "RA": round(float(setup.cards["CRVAL1"]), 6), "DEC": round(float(setup.cards["CRVAL2"]), 6),
    }  # fmt: skip
    if form not in ("mono", "rgb"):
        cards["BAYERPAT"] = form
    if with_wcs:
        cards |= dict(setup.cards)
    return {key: value for key, value in (cards | more).items() if value is not None}


def write(path: Path, data: np.ndarray, cards: dict[str, Any]) -> Path:
    """Write a frame; a name ending in ``.fz`` is tile-compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = fits.Header()
    for key, value in cards.items():
        header[key] = value
    if path.name.lower().endswith(".fz"):
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(data, header)]
        fits.HDUList(hdus).writeto(path)
    else:
        fits.PrimaryHDU(data, header).writeto(path)
    return path


def write_all(
    folder: Path, sky: Sky, setups: Iterable[FrameSetup], *, form="GRBG", suffix=".fit", first=0, **cards: Any
) -> list[Path]:
    """Write one frame per exposure and return the paths."""
    paths = []
    for i, setup in enumerate(setups, start=first):
        data = expose(sky, setup, form)
        paths.append(write(folder / f"light_{i:03d}{suffix}", data, base_cards(setup, i, form=form, **cards)))
    return paths


def with_hot_pixels(setups: Sequence[FrameSetup], flat: Sequence[int], adu: float) -> list[FrameSetup]:
    """Return the exposures with the same defects on every one."""
    hot = HotPixels(np.array(flat, np.int64), np.full(len(flat), adu, np.float32))
    return [replace(setup, hot_pixels=hot) for setup in setups]


@dataclass(frozen=True)
class Result:
    """A finished mosaic read back from its files; `load` it before another run takes its place."""

    report: dict[str, Any]
    outputs: dict[str, str]

    def load(self) -> Result:
        """Read everything now."""
        assert self.image.shape[1:] == self.coverage.shape
        assert self.wcs.has_celestial
        return self

    @property
    def folder(self) -> Path:
        return Path(self.outputs["science"]).parent

    @cached_property
    def image(self) -> np.ndarray:
        data = fits.getdata(self.outputs["science"]).astype(np.float32)
        return data if data.ndim == 3 else data[None]

    @cached_property
    def header(self) -> fits.Header:
        return fits.getheader(self.outputs["science"])

    @cached_property
    def wcs(self) -> WCS:
        return WCS(self.header).celestial

    @cached_property
    def coverage(self) -> np.ndarray:
        return fits.getdata(self.outputs["coverage"]).astype(np.float32)

    @property
    def left_out(self) -> dict[str, str]:
        """File name -> reason."""
        return {Path(item["path"]).name: item["key"] for item in self.report["left_out"]}

    @property
    def message_keys(self) -> set[str]:
        return {message["key"] for message in self.report["messages"]}

    def truth(self, sky: Sky, fwhm_px=2.6) -> np.ndarray:
        """Return the noiseless light (3, H, W) on the pixels of the mosaic."""
        matrix = self.wcs.pixel_scale_matrix
        cards = {key: self.header[key] for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")}
        cards |= {f"CD{i + 1}_{j + 1}": matrix[i, j] for i in range(2) for j in range(2)}
        return render_ideal(sky, FrameSetup(cards, self.coverage.shape, fwhm_px=fwhm_px))

    def stars(
        self, sky: Sky, *, faintest=8_000.0, brightest=250_000.0, min_frames=2
    ) -> dict[str, np.ndarray]:
        """Return positions (x, y), row in the sky's table, position error (px) and flux ratio (C, n) to the truth."""
        image, coverage, truth = self.image, self.coverage, self.truth(sky)
        truth = truth if len(image) == 3 else truth[1:2]
        flux = sky.flux if len(image) == 3 else sky.flux[:, 1:2]
        x, y = self.wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0)
        height, width = coverage.shape
        inside = (x > 16) & (x < width - 17) & (y > 16) & (y < height - 17)
        inside &= (flux.max(axis=1) > faintest) & (flux.max(axis=1) < brightest)
        rows = np.flatnonzero(inside)
        whole = [
            coverage[round(y[k]) - 15 : round(y[k]) + 16, round(x[k]) - 15 : round(x[k]) + 16].min()
            >= min_frames
            for k in rows
        ]
        rows = rows[np.array(whole, dtype=bool)]
        # Alone: nobody of a tenth of its light where seeing could tell; the truth shows the fainter ones too.
        tree = np.hypot(x[rows, None] - x[None, :], y[rows, None] - y[None, :])
        near = (tree < 11) & (tree > 0) & (flux.max(axis=1)[None, :] > 0.1 * flux.max(axis=1)[rows, None])
        rows = rows[~near.any(axis=1)]
        x, y = x[rows], y[rows]
        got = [
            _aperture(plane, x, y) / _aperture(ideal, x, y) for plane, ideal in zip(image, truth, strict=True)
        ]
        # A red star is faint in blue: noise there tells nothing.
        ratio = np.where(0.7 * faintest < flux[rows].T, np.array(got), np.nan)
        best = np.ascontiguousarray(
            np.nan_to_num(image[len(image) // 2] - np.nanmedian(image[len(image) // 2]))
        )
        px, py, _ = sep.winpos(best, x, y, 1.3)
        return {"x": x, "y": y, "row": rows, "offset": np.hypot(px - x, py - y), "ratio": ratio}


def _aperture(plane: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mask = ~np.isfinite(plane)
    filled = np.ascontiguousarray(np.where(mask, 0, plane), dtype=np.float32)
    return sep.sum_circle(filled, x, y, 6.0, mask=mask, bkgann=(9.0, 14.0))[0]


def run(source: Path, target: Path, **settings: Any) -> Result:
    """Run in this process with one worker unless told otherwise."""
    result = run_hierarchical_mosaic(
        source, target, **{"gpu_mode": "off", "num_processing_workers": 1, **settings}
    )
    return Result(result.report, result.outputs)
