"""Sources for the GPU tests: synthetic frames as raw rows, planes or both, with maps that turn, shear and bend."""

from __future__ import annotations

import numpy as np

from zemosaic_core.cfa import CfaColour, debayer
from zemosaic_core.clipped_light import mark_clipped_cfa, mark_clipped_planes
from zemosaic_core.hot_pixels import repair_cfa
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox
from zemosaic_core.sources import CoaddBlock, CoaddSource, RawRows

NEVER = (np.inf, np.inf, np.inf)
PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")


class FakePixels:
    """Frames in memory; every second one offers raw rows when ``raw`` is 'some', all when 'all'.

    'calibrated': all offer raw rows, every second one calibrated samples, float32 about zero.
    """

    def __init__(
        self,
        n,
        shape_hw,
        *,
        n_channels=3,
        raw="none",
        hot=0,
        missing=0.0,
        seed=0,
        weights=False,
        clipped=False,
    ):
        rng = np.random.default_rng(seed)
        self.shape_hw = shape_hw
        self.n_channels = n_channels
        height, width = shape_hw
        y, x = np.mgrid[:height, :width]
        sky = 1500 + 20 * np.sin(x / 9) + 15 * np.cos(y / 7)
        self.sensor, self.hot, self.images, self.patterns, self.colours = {}, {}, {}, {}, {}
        self.weights = rng.uniform(0, 1, shape_hw).astype(np.float32) if weights else None
        if weights:
            self.weights[:2] = 0
        # Clipped stars, some of them in all frames; spans that are missing.
        self.clip = (
            {key: (9000.0, 9100.0, 8900.0 if key % 2 else np.inf) for key in range(n)} if clipped else {}
        )
        self.masked = {}
        for key in range(n):
            frame = sky + rng.normal(0, 40, shape_hw)
            bad = rng.integers(0, frame.size, max(1, frame.size // 60))
            frame.ravel()[bad] += rng.normal(0, 3000, bad.size)
            if clipped:
                spread = 5.0 + key % 3
                star = np.exp(-((y - height / 2) ** 2 + (x - width / 2) ** 2) / spread**2)
                frame = np.minimum(frame + 30000 * star, 9100 + key % 5)
                starts = rng.integers(0, width - 5, height // 4)
                rows = np.sort(rng.choice(height, height // 4, replace=False))
                self.masked[key] = np.stack([rows, starts, starts + 5], axis=1).astype(np.int32)
            is_raw = raw in ("all", "calibrated") or (raw == "some" and key % 2 == 0)
            if is_raw:
                self.sensor[key] = np.clip(frame, 0, 65535).astype(np.uint16)
                if raw == "calibrated" and key % 2 == 0:
                    light = (self.sensor[key] - np.float32(1480.3)) * rng.uniform(0.9, 1.5, shape_hw)
                    self.sensor[key] = light.astype(np.float32)
                self.hot[key] = np.unique(rng.integers(0, frame.size, hot)) if hot else np.empty(0, np.int64)
                self.patterns[key] = PATTERNS[key % 4]
                # Every third frame tells nothing of its light.
                level = 20.0 if self.sensor[key].dtype == np.float32 else 1500.0
                known = CfaColour(
                    (level - 10.0, level, level - 15.0), (40.0, 41.0, 39.0), (0.8, 1.0, 0.6 + 0.01 * key)
                )
                self.colours[key] = None if key % 3 == 2 else known
            else:
                image = frame + rng.normal(0, 10, (n_channels, *shape_hw))
                image[:, rng.uniform(size=shape_hw) < missing] = np.nan
                self.images[key] = image.astype(np.float32)

    def read(self, key, y0, y1, x0, x1):
        if key in self.images:
            planes = self.images[key].copy()
            mark_clipped_planes(planes, self.clip.get(key, NEVER)[: len(planes)])
        else:
            sensor = repair_cfa(self.sensor[key], self.hot[key])
            planes = debayer(sensor, self.patterns[key], colour=self.colours[key])
            mark_clipped_cfa(planes, sensor, self.patterns[key], self.clip.get(key, NEVER))
        for y, first, end in self.masked.get(key, ()):
            planes[:, y, first:end] = np.nan
        return np.ascontiguousarray(planes[:, y0:y1, x0:x1])

    def read_weight(self, key, y0, y1, x0, x1):
        return None if self.weights is None else np.ascontiguousarray(self.weights[y0:y1, x0:x1])

    def read_raw(self, key, y0, y1):
        if key not in self.sensor:
            return None
        width = self.shape_hw[1]
        rows = self.sensor[key][y0:y1]
        hot = self.hot[key]
        hot = hot[(hot >= y0 * width) & (hot < y1 * width)]
        spans = self.masked.get(key, np.empty((0, 3), np.int32))
        spans = spans[(spans[:, 0] >= y0) & (spans[:, 0] < y1)]
        told = (self.patterns[key], hot, self.colours[key], self.clip.get(key, NEVER), spans)
        if key % 4 == 0 and rows.dtype == np.uint16:  # as a FITS file has it
            return RawRows((rows ^ 0x8000).byteswap(), y0, True, *told)
        return RawRows(rows.copy(), y0, False, *told)


def make_sources(
    pixels,
    n,
    out_hw,
    *,
    turn=0.0,
    scatter=3.0,
    bend=0.0,
    feather=0.0,
    weighted=False,
    seed=1,
    spread=None,
    radial=False,
) -> list[CoaddSource]:
    """Place the frames on an output grid: turned, shifted by fractions of a pixel, optionally bent as by SIP terms.

    ``spread``: shift them over the whole grid instead (a mosaic of tiles). ``radial``: two of three have a pattern
    around the centre of the detector.
    """
    rng = np.random.default_rng(seed)
    height, width = pixels.shape_hw
    sources = []
    for key in range(n):
        angle = turn * (key - n / 2)
        cos, sin = np.cos(angle), np.sin(angle)
        shift = rng.uniform(-scatter, scatter, 2)
        if spread is not None:
            shift = rng.uniform(0, [out_hw[1] - width * 0.7, out_hw[0] - height * 0.7])
        if key == 0 and turn == 0.0:
            shift = np.round(shift)

        def to_source(x, y, cos=cos, sin=sin, shift=shift):
            u, v = x - shift[0] - width / 2, y - shift[1] - height / 2
            bent = 1 + bend * (u * u + v * v)
            return cos * u * bent + sin * v + width / 2, -sin * u + cos * v * bent + height / 2

        def to_output(x, y, cos=cos, sin=sin, shift=shift):
            u, v = x - width / 2, y - height / 2
            return cos * u - sin * v + shift[0] + width / 2, sin * u + cos * v + shift[1] + height / 2

        bbox = footprint_bbox(to_output, pixels.shape_hw, out_hw, margin=4)
        if bbox == (0, 0, 0, 0):
            continue
        photometry = np.zeros((pixels.n_channels, 4), np.float32)
        photometry[:, 0] = rng.uniform(0.9, 1.1, pixels.n_channels)
        if key % 3:
            photometry[:, 1:] = rng.normal(0, 10, (pixels.n_channels, 3))
        weight = rng.uniform(0.2, 1, pixels.n_channels) if weighted else np.ones(pixels.n_channels)
        pattern = np.random.default_rng(key).normal(0, [0.1, 0.05, 20, 10], (pixels.n_channels, 4))
        surface = np.random.default_rng(50 + key).normal(0, 5, (pixels.n_channels, 21))
        if weighted and key == 1:
            weight[0] = 0
        sources.append(
            CoaddSource(
                key=key,
                shape_hw=pixels.shape_hw,
                pixel_map=build_pixel_map(to_source, bbox, steps=(16, 8, 4, 2)),
                bbox=bbox,
                photometry=photometry,
                weight=weight.astype(np.float32),
                feather_px=feather,
                feather_start=0.1 * (key % 5),
                has_weight_map=pixels.weights is not None,
                radial=pattern.astype(np.float32) if radial and key % 3 != 1 else None,
                surface=surface.astype(np.float32) if radial and key % 3 != 0 else None,
            )
        )
    return sources


def assert_blocks_agree(gpu: CoaddBlock, cpu: CoaddBlock, *, ulps: float = 4.0, flips: float = 1e-4) -> None:
    """Same numbers: all but a few rejection ties are equal, and values agree to a few units in the last place."""
    np.testing.assert_array_equal(gpu.coverage, cpu.coverage)
    same = (gpu.rejected_low == cpu.rejected_low) & (gpu.rejected_high == cpu.rejected_high)
    assert (~same).sum() <= flips * same.size, f"{(~same).sum()} of {same.size} decisions differ"
    for name in ("image", "weight", "variance"):
        a, b = getattr(gpu, name), getattr(cpu, name)
        np.testing.assert_array_equal(np.isnan(a)[same], np.isnan(b)[same], err_msg=name)
        good = same & np.isfinite(b)
        loose = 200 if name == "variance" else 1
        # A mean near zero of samples of some thousands is as exact as they are: 1e-4 is 2.5e-6 of their noise.
        near_zero = 1e-4 if name == "image" else 1e-6
        if name == "variance":
            # Of samples that are nearly equal, their own rounding is left.
            spread = np.sqrt(np.maximum(b[good], 0)) * np.abs(cpu.image[good])
            a, b = a[good], b[good]
            allowed = loose * ulps * 1.2e-7 * np.abs(b) + 40 * 1.2e-7 * spread + near_zero
            assert (np.abs(a - b) <= allowed).all(), f"variance: {np.abs(a - b).max()}"
            continue
        np.testing.assert_allclose(a[good], b[good], rtol=loose * ulps * 1.2e-7, atol=near_zero, err_msg=name)


def stitch(blocks: list[CoaddBlock]) -> CoaddBlock:
    names = ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high")
    return CoaddBlock(*(np.concatenate([getattr(b, n) for b in blocks], axis=-2) for n in names))
