"""A made-up sensor with hot pixels, an amplifier that glows, vignetting and dust; its frames of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from made_frames import SHAPE_HW, base_cards, write

from zemosaic_core.synthetic_sky import Camera, FrameSetup, Sky, render_frame, vignette

__all__ = ["Sensor", "write_calibration"]

# Light without noise: every electron is a thousandth of an ADU.
_QUIET = {"adu_per_electron": 1e-3, "read_noise_e": 0.0, "pedestal_adu": 0.0, "step_adu": 1.0}
PEDESTAL_ADU = 440.0
ADU_PER_ELECTRON = 2.0
READ_NOISE_ADU = 6.0


class Sensor:
    """What a camera adds and takes."""

    def __init__(self, shape_hw: tuple[int, int] = SHAPE_HW, *, seed: int = 5, n_hot: int = 400) -> None:
        rng = np.random.default_rng(seed)
        height, width = shape_hw
        y, x = np.mgrid[:height, :width].astype(float)
        self.shape_hw = shape_hw
        flat = vignette(shape_hw, 0.3).astype(float)
        for _ in range(6):
            cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(9, 18)
            distance = np.hypot(y - cy, x - cx)
            # Dust out of focus is a ring.
            flat *= 1 - 0.12 * np.exp(-(((distance - radius) / 5) ** 2)) - 0.05 * (distance < radius)
        self.flat = flat * rng.normal(1.0, 0.01, shape_hw)
        # Dark current of 10 s.
        self.current = 4.0 + 260.0 * np.exp(-np.hypot(y - height, x) / 60.0)
        hot = rng.choice(height * width, n_hot, replace=False)
        self.hot = np.sort(hot)
        self.current.ravel()[hot] += rng.lognormal(5.0, 1.1, n_hot)

    def light(self, sky: Sky, setup: FrameSetup, pattern: str = "GRBG") -> np.ndarray:
        """Light above the pedestal that reaches a perfect sensor, ADU; 0.5 ADU rounded."""
        return render_frame(sky, replace(setup, n_cosmics=0), Camera(pattern=pattern, **_QUIET)).astype(float)

    def read_out(self, light: np.ndarray, *, seconds: float, seed: int, cosmics: int = 0) -> np.ndarray:
        """Return an exposure of that light, uint16."""
        rng = np.random.default_rng([seed, 3])
        mean = light * self.flat + self.current * seconds / 10.0
        adu = PEDESTAL_ADU + ADU_PER_ELECTRON * rng.poisson(mean / ADU_PER_ELECTRON)
        adu = adu + rng.normal(0, READ_NOISE_ADU, self.shape_hw)
        hits = rng.integers(0, adu.size, cosmics)
        adu.ravel()[hits] += rng.lognormal(7.5, 0.6, cosmics)
        return np.clip(np.rint(adu), 0, 65535).astype(np.uint16)


def write_calibration(
    folder: Path,
    sensor: Sensor,
    setup: FrameSetup,
    *,
    n: int = 12,
    kinds: str = "DFB",
    form: str = "GRBG",
    **cards,
) -> None:
    """Write ``n`` darks, flats and biases as a telescope with a camera of that sensor does."""
    told = base_cards(setup, 0, form=form, with_wcs=False, RA=None, DEC=None, **cards)
    y, x = np.mgrid[: sensor.shape_hw[0], : sensor.shape_hw[1]]
    for i in range(n):
        if "D" in kinds:
            data = sensor.read_out(np.zeros(sensor.shape_hw), seconds=10.0, seed=1000 + i, cosmics=20)
            write(folder / "darks" / f"dark_{i:03d}.fit", data, told | {"IMAGETYP": "Dark"})
        if "F" in kinds:
            # The lamp is blue and fades.
            lamp = 24_000.0 * (1 - 0.02 * i)
            light = np.full(sensor.shape_hw, lamp)
            if form != "mono":
                colour = np.array([form[k] for k in range(4)]).reshape(2, 2)[y % 2, x % 2]
                light = lamp * np.where(colour == "R", 0.5, np.where(colour == "B", 1.2, 1.0))
            data = sensor.read_out(light, seconds=0.1, seed=2000 + i)
            write(folder / "flats" / f"flat_{i:03d}.fit", data, told | {"IMAGETYP": "Flat", "EXPTIME": 0.1})
        if "B" in kinds:
            data = sensor.read_out(np.zeros(sensor.shape_hw), seconds=0.0, seed=3000 + i)
            write(folder / "biases" / f"bias_{i:03d}.fit", data, told | {"IMAGETYP": "Bias", "EXPTIME": 0.0})
