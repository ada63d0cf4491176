"""A mosaic of a made-up night beside what it should show, on its own pixels and flux scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.synthetic_sky import (
    Camera,
    FrameSetup,
    Sky,
    pixel_to_sky,
    render_ideal,
    sky_to_pixel,
    tan_cards,
)
from zemosaic_io.glow_session import GlowNight

__all__ = ["CFA_DENSITY", "Scene", "Stars", "load_scene", "panel_spread"]

APERTURE_PX = 5.0
RING_PX = (9.0, 14.0)
# Share of the pixels that have the filter.
CFA_DENSITY = np.array([0.25, 0.5, 0.25])
STAR_MASK_ADU = 4.0
BRIGHT_TEXTURE_ADU = 250.0
LATTICE_PX = 8
# Seeing of the painted truth, in the middle of what the frames have.
TRUTH_FWHM_PX = 2.65


@dataclass(frozen=True)
class Scene:
    """A mosaic beside what it should show; all images (3, H, W) float32 or (H, W).

    Attributes
    ----------
    image : ndarray
        The mosaic divided by the flux scale of its stars; NaN where it has no value.
    diffuse, stars : ndarray
        True light without and of stars, ADU.
    clean : ndarray of bool, (H, W)
        No star and no bright or sharp detail.
    coverage : ndarray, (H, W)
        Frames per pixel.
    frames : ndarray, (H, W)
        Frames whose field holds the pixel, from the truth.
    noise : ndarray, (3, H, W)
        Noise in ADU of the best possible mean of all frames, for a pixel that is measured in each of them.
    scale : tuple of float
        The factor that was divided out, per channel.
    cards : dict
        TAN cards of the mosaic.
    """

    image: np.ndarray
    diffuse: np.ndarray
    stars: np.ndarray
    clean: np.ndarray
    coverage: np.ndarray
    frames: np.ndarray
    noise: np.ndarray
    scale: tuple[float, float, float]
    cards: dict[str, Any]

    @property
    def residual(self) -> np.ndarray:
        """Mosaic minus truth, (3, H, W)."""
        return np.asarray(self.image - self.diffuse - self.stars)


def load_scene(mosaic_path: Path | str, truth: GlowNight) -> Scene:
    """Read a mosaic and paint what it should show on its own pixels."""
    mosaic_path = Path(mosaic_path)
    with fits.open(mosaic_path) as hdus:
        header, image = hdus[0].header.copy(), np.asarray(hdus[0].data, dtype=np.float32)
    if image.ndim == 2:
        image = np.repeat(image[None], 3, axis=0)
    wcs = WCS(header).celestial
    matrix = wcs.pixel_scale_matrix
    cards: dict[str, Any] = {
        "CRVAL1": wcs.wcs.crval[0],
        "CRVAL2": wcs.wcs.crval[1],
        "CRPIX1": wcs.wcs.crpix[0],
        "CRPIX2": wcs.wcs.crpix[1],
    }
    cards |= {f"CD{i + 1}_{j + 1}": float(matrix[i, j]) for i in range(2) for j in range(2)}
    shape = (image.shape[1], image.shape[2])
    setup = FrameSetup(cards=cards, shape_hw=shape, fwhm_px=TRUTH_FWHM_PX)
    none = np.zeros(0)
    empty = replace(truth.sky, ra_deg=none, dec_deg=none, mag=none, flux=np.zeros((0, 3)))
    diffuse = render_ideal(empty, setup)
    stars = render_ideal(replace(truth.sky, texture=np.zeros((3, 0, 0), dtype=np.float32)), setup)
    frames, noise = _frames_and_noise(truth, cards, shape)
    beside = mosaic_path.with_name(f"{mosaic_path.stem}_coverage.fits")
    coverage = np.asarray(fits.getdata(beside), dtype=np.float32) if beside.is_file() else frames
    detail = np.abs(diffuse[1] - ndimage.gaussian_filter(diffuse[1], 3.0))
    clean = (stars.max(axis=0) < STAR_MASK_ADU) & (diffuse.max(axis=0) < BRIGHT_TEXTURE_ADU) & (detail < 8.0)
    raw = Scene(image, diffuse, stars, clean, coverage, frames, noise, (1.0, 1.0, 1.0), cards)
    scale = [Stars.measured(raw, truth, channel).mean_ratio() for channel in range(3)]
    factor = np.array(scale, dtype=np.float32)[:, None, None]
    return replace(raw, image=image / factor, scale=(scale[0], scale[1], scale[2]))


def _frames_and_noise(
    truth: GlowNight, cards: Mapping[str, Any], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Frames per pixel and noise of their best mean, computed on a lattice."""
    ny, nx = (-(-n // LATTICE_PX) + 1 for n in shape)
    x, y = np.meshgrid(np.arange(nx) * LATTICE_PX, np.arange(ny) * LATTICE_PX)
    ra, dec = pixel_to_sky(cards, x, y)
    count = np.zeros((ny, nx))
    precision = np.zeros((3, ny, nx))
    # A larger output pixel holds more of a frame's pixels.
    area = abs(cards["CD1_1"] * cards["CD2_2"] - cards["CD1_2"] * cards["CD2_1"]) * 3600.0**2
    area /= truth.spec.scale_arcsec**2
    for index in range(len(truth.frames)):
        inside, variance = variance_at(truth, index, ra, dec)
        count += inside
        precision += np.where(inside, area / variance, 0.0)
    with np.errstate(divide="ignore"):
        noise = np.where(precision > 0.0, 1.0 / np.sqrt(precision), np.nan)
    sample = np.mgrid[0 : shape[0], 0 : shape[1]] / LATTICE_PX
    near = np.rint(sample).astype(int)
    return count[near[0], near[1]].astype(np.float32), noise[:, near[0], near[1]].astype(np.float32)


def variance_at(
    truth: GlowNight, index: int, ra: np.ndarray, dec: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a frame holds sky positions, and the variance of one of its pixels there on the scale of the zenith."""
    camera = Camera()
    setup = truth.frames[index].setup
    height, width = setup.shape_hw
    x, y = sky_to_pixel(setup.cards, ra, dec)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
    radius2 = ((2 * x - width + 1) ** 2 + (2 * y - height + 1) ** 2) / float(height**2 + width**2)
    flat = 1.0 - setup.vignetting * radius2
    air = np.asarray(setup.transparency).reshape(3, *([1] * x.ndim))
    light = truth.glow_at(index, x, y) * flat
    variance = camera.adu_per_electron * light + (camera.adu_per_electron * camera.read_noise_e) ** 2
    return inside, variance / (air * flat) ** 2


@dataclass(frozen=True)
class Stars:
    """Well exposed lonely stars: place (px), flux over truth, expected relative noise."""

    x: np.ndarray
    y: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    ratio: np.ndarray
    noise: np.ndarray

    @classmethod
    def measured(cls, scene: Scene, truth: GlowNight, channel: int) -> Stars:
        sky = truth.sky
        image = np.ascontiguousarray(scene.image[channel])
        height, width = image.shape
        x, y = sky_to_pixel(scene.cards, sky.ra_deg, sky.dec_deg)
        with np.errstate(invalid="ignore"):
            use = (x > 16) & (x < width - 17) & (y > 16) & (y < height - 17)
        use &= (sky.flux[:, channel] > 8_000) & (sky.flux.max(axis=1) < 250_000)
        row = np.flatnonzero(use)
        row = row[scene.coverage[np.rint(y[row]).astype(int), np.rint(x[row]).astype(int)] >= 3]
        x, y, flux = x[row], y[row], sky.flux[row, channel]
        mask = ~np.isfinite(image)
        got, _, flag = sep.sum_circle(
            np.where(mask, 0, image).astype(np.float32), x, y, APERTURE_PX, mask=mask, bkgann=RING_PX
        )
        whole = np.ascontiguousarray(scene.stars[channel] + scene.diffuse[channel])
        expected, _, _ = sep.sum_circle(whole, x, y, APERTURE_PX, bkgann=RING_PX)
        share = expected / flux
        # The seeing of the frames decides how much of a star the aperture holds.
        expected = expected * _seeing_factor(truth, sky.ra_deg[row], sky.dec_deg[row])
        good = (np.abs(share - np.median(share)) < 0.05) & (flag == 0) & (got > 0)
        good &= scene.diffuse[channel][np.rint(y).astype(int), np.rint(x).astype(int)] < BRIGHT_TEXTURE_ADU
        row, x, y, flux = row[good], x[good], y[good], flux[good]
        noise = _flux_noise(truth, channel, sky.ra_deg[row], sky.dec_deg[row], flux) / flux
        return cls(x, y, sky.ra_deg[row], sky.dec_deg[row], (got / expected)[good], noise)

    def mean_ratio(self) -> float:
        """Robust mean of the ratios."""
        if not len(self.ratio):
            raise ValueError("no star of the mosaic can be measured; is it of this night?")
        weight = 1.0 / (self.noise**2 + 0.005**2)
        centre = float(np.median(self.ratio))
        keep = np.abs(self.ratio / centre - 1.0) < 4.0 * np.sqrt(self.noise**2 + 0.01**2)
        return float(np.average(self.ratio[keep], weights=weight[keep]))

    def scatter(self) -> float:
        z = (self.ratio / self.mean_ratio() - 1.0) / self.noise
        return float(1.4826 * np.median(np.abs(z - np.median(z))))


def _flux_noise(
    truth: GlowNight, channel: int, ra: np.ndarray, dec: np.ndarray, flux: np.ndarray
) -> np.ndarray:
    """Noise of aperture fluxes in the best mean of all frames: photons of star and sky, read noise; ADU."""
    pixels = np.pi * APERTURE_PX**2
    ring = np.pi * (RING_PX[1] ** 2 - RING_PX[0] ** 2)
    precision = np.zeros(ra.size)
    for index, frame in enumerate(truth.frames):
        inside, variance = variance_at(truth, index, ra, dec)
        photons = Camera().adu_per_electron * flux / frame.setup.transparency[channel]
        total = (variance[channel] * pixels * (1.0 + pixels / ring) + photons) / CFA_DENSITY[channel]
        precision += np.where(inside, 1.0 / total, 0.0)
    return np.asarray(1.0 / np.sqrt(np.maximum(precision, 1e-30)))


def _seeing_factor(truth: GlowNight, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Share of a star's light in the aperture above its ring, relative to the seeing of the painted truth."""
    widths = [frame.setup.fwhm_px for frame in truth.frames]
    share = {width: _aperture_share(width) for width in {*widths, TRUTH_FWHM_PX}}
    total, weights = np.zeros(ra.size), np.zeros(ra.size)
    for index, width in enumerate(widths):
        inside, variance = variance_at(truth, index, ra, dec)
        weight = np.where(inside, 1.0 / variance[1], 0.0)
        total += weight * share[width]
        weights += weight
    return np.asarray(total / np.maximum(weights, 1e-30) / share[TRUTH_FWHM_PX])


def _aperture_share(fwhm_px: float) -> float:
    """Flux of a star of unit flux in the aperture after the ring is subtracted, measured as stars are."""
    setup = FrameSetup(cards=tan_cards(0.0, 0.0, shape_hw=(61, 61)), shape_hw=(61, 61), fwhm_px=fwhm_px)
    none = np.zeros((3, 0, 0), dtype=np.float32)
    one = Sky(np.zeros(1), np.zeros(1), np.zeros(1), np.full((1, 3), 1e6), none, dict(setup.cards))
    image = np.ascontiguousarray(render_ideal(one, setup)[1])
    flux, _, _ = sep.sum_circle(image, [30.0], [30.0], APERTURE_PX, bkgann=RING_PX)
    return float(flux[0]) / 1e6


def panel_spread(stars: Stars, truth: GlowNight) -> tuple[float, float]:
    """Scatter in percent of the mean flux ratio of panels, and what their noise gives."""
    if truth.spec.layout == "panels":
        centres: dict[int, tuple[float, float]] = {}
        for frame in truth.frames:
            centres.setdefault(
                frame.panel, (float(frame.setup.cards["CRVAL1"]), float(frame.setup.cards["CRVAL2"]))
            )
        ra, dec = np.array(list(centres.values())).T
        turn = (stars.ra[:, None] - ra + 180.0) % 360.0 - 180.0
        place = np.argmin((turn * np.cos(np.deg2rad(dec))) ** 2 + (stars.dec[:, None] - dec) ** 2, axis=1)
    else:
        thirds = [np.searchsorted(np.quantile(v, [1 / 3, 2 / 3]), v) for v in (stars.x, stars.y)]
        place = 3 * thirds[1] + thirds[0]
    weight = 1.0 / (stars.noise**2 + 0.004**2)
    means, errors = [], []
    for number in np.unique(place):
        here = place == number
        if here.sum() < 4:
            continue
        centre = np.median(stars.ratio[here])
        here &= np.abs(stars.ratio / centre - 1.0) < 4.0 * np.sqrt(stars.noise**2 + 0.01**2)
        means.append(float(np.average(stars.ratio[here], weights=weight[here])))
        errors.append(float(1.0 / np.sqrt(weight[here].sum())))
    if len(means) < 2:
        return float("nan"), float("nan")
    return 100.0 * float(np.std(means)), 100.0 * float(np.sqrt(np.mean(np.square(errors))))
