"""Judges a finished mosaic of a made-up night against its truth, by its files alone.

    from benchmarks.quality_judge import judge
    from zemosaic_io.glow_session import NightSpec, write_glow_night      # or plan_glow_night: same truth, no files

    truth = write_glow_night(folder, NightSpec())
    found = judge(path_of_science_fits, truth)
    found["bg_rms_adu"]     # background residual in ADU rms, per channel (R, G, B); see `Verdict` for the rest

Every value is on the mosaic's own flux scale divided by the factor that its stars show, so a mosaic whose unit is
another is judged alike. The coverage map is ``<stem>_coverage.fits`` beside the mosaic; without it (mosaics of other
programs) the number of frames follows from the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.synthetic_sky import (
    NOMINAL_SCALE_ARCSEC,
    Camera,
    FrameSetup,
    pixel_to_sky,
    render_ideal,
    sky_to_pixel,
)
from zemosaic_io.glow_session import GlowNight

__all__ = ["Scene", "Verdict", "judge", "load_scene", "vignetting_error"]

CELL_PX = 64
APERTURE_PX = 5.0
RING_PX = (9.0, 14.0)
# Share of the pixels that have the filter.
CFA_DENSITY = np.array([0.25, 0.5, 0.25])
STAR_MASK_ADU = 4.0
BRIGHT_TEXTURE_ADU = 250.0
OUTLIER_SIGMA = 6.0
LATTICE_PX = 8
STRIP_LENGTH_PX, STRIP_DEPTH_PX = 64, 32


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


@dataclass(frozen=True)
class Verdict:
    """What `judge` measures; lists of three are R, G, B.

    Attributes
    ----------
    bg_rms_adu : list of float
        Residual of the sky in cells of 64 px, after one constant per channel.
    bg_rms_after_plane_adu : list of float
        The same after one plane.
    bg_p5_p95_adu : list of float
        Distance of the 5th and 95th percentile of those cells.
    slope : list of float
        Slope of diffuse light against truth; NaN where the truth has less than 20 ADU of it.
    seam_rms_adu, seam_noise_adu : float
        Steps across the outlines of panels or frames in G, per 64 px of outline, and what noise alone would give.
    seam_worst_adu, seam_worst_sigma : float
        Largest mean step along one whole side, and in units of its noise.
    seam_sides : int
        Sides compared.
    panel_spread_pct, panel_spread_noise_pct : float
        Scatter of the fluxes of stars from panel to panel (walks: ninths of the mosaic) in G, and of noise alone.
    flux_scatter : list of float
        Scatter of fluxes in units of photon and sky noise; 1 is perfect.
    n_stars : int
        Stars measured in G.
    outliers_ppm : float
        Pixels beyond 6 sigma, away from stars, where at least 4 frames overlap, per million, all channels.
    outliers_by_coverage : dict
        Frames -> (pixels looked at, outliers), from 1 on.
    satellites, satellites_left, satellite_worst_adu : int, int, float
        Trails in the frames where at least 4 frames overlap, those seen in the mosaic, and the brightest in G.
    noise_ratio : list of float
        Pixel noise of the mosaic divided by that of the best possible mean.
    flux_scale : list of float
        Flux of the mosaic's stars per true flux at the zenith.
    """

    bg_rms_adu: list[float]
    bg_rms_after_plane_adu: list[float]
    bg_p5_p95_adu: list[float]
    slope: list[float]
    seam_rms_adu: float
    seam_noise_adu: float
    seam_worst_adu: float
    seam_worst_sigma: float
    seam_sides: int
    panel_spread_pct: float
    panel_spread_noise_pct: float
    flux_scatter: list[float]
    n_stars: int
    outliers_ppm: float
    outliers_by_coverage: dict[int, tuple[int, int]]
    satellites: int
    satellites_left: int
    satellite_worst_adu: float
    noise_ratio: list[float]
    flux_scale: list[float]


def judge(mosaic_path: Path | str, truth: GlowNight) -> dict[str, Any]:
    """Compare a science mosaic with the truth of its night; the keys are the attributes of `Verdict`."""
    scene = load_scene(mosaic_path, truth)
    cells = [_cells(scene, channel) for channel in range(3)]
    stars = [_Stars.measured(scene, truth, channel) for channel in range(3)]
    seam = _seams(scene, truth)
    spread = _panel_spread(stars[1], truth)
    outliers, ratio = _outliers(scene, cells)
    deep = [counts for n, counts in outliers.items() if n >= 4]
    looked, beyond = (sum(counts[k] for counts in deep) for k in (0, 1))
    trails = _satellites(scene, truth, cells[1])
    return asdict(
        Verdict(
            bg_rms_adu=[c.rms() for c in cells],
            bg_rms_after_plane_adu=[c.rms_after_plane() for c in cells],
            bg_p5_p95_adu=[c.spread() for c in cells],
            slope=[c.slope() for c in cells],
            seam_rms_adu=seam[0],
            seam_noise_adu=seam[1],
            seam_worst_adu=seam[2],
            seam_worst_sigma=seam[3],
            seam_sides=seam[4],
            panel_spread_pct=spread[0],
            panel_spread_noise_pct=spread[1],
            flux_scatter=[s.scatter() for s in stars],
            n_stars=len(stars[1].ratio),
            outliers_ppm=1e6 * beyond / looked if looked else float("nan"),
            outliers_by_coverage=outliers,
            satellites=trails[0],
            satellites_left=trails[1],
            satellite_worst_adu=trails[2],
            noise_ratio=ratio,
            flux_scale=list(scene.scale),
        )
    )


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
    setup = FrameSetup(cards=cards, shape_hw=shape, fwhm_px=2.65)
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
    scale = [_Stars.measured(raw, truth, channel).mean_ratio() for channel in range(3)]
    factor = np.array(scale, dtype=np.float32)[:, None, None]
    return replace(raw, image=image / factor, scale=(scale[0], scale[1], scale[2]))


def vignetting_error(truth: GlowNight, coefficients: tuple[float, float]) -> dict[str, float]:
    """Compare a radial flat ``ln V = a r^2 + b r^4`` (r = 1 in the corners) with the truth.

    Returns
    -------
    dict
        ``rms_pct`` and ``max_pct`` over the detector, with the mean of the ratio divided out, and what no flat at all
        would leave (``without_rms_pct``).
    """
    flat = truth.flat()[::4, ::4].astype(np.float64)
    radius2 = (1.0 - flat) / truth.spec.vignetting if truth.spec.vignetting > 0 else None
    if radius2 is None:
        height, width = truth.spec.shape_hw
        y, x = np.mgrid[0:height:4, 0:width:4]
        radius2 = ((2 * y - height + 1) ** 2 + (2 * x - width + 1) ** 2) / float(height**2 + width**2)
    found = np.exp(coefficients[0] * radius2 + coefficients[1] * radius2**2)
    ratio = found / flat
    ratio = 100.0 * (ratio / ratio.mean() - 1.0)
    return {
        "rms_pct": float(np.sqrt((ratio**2).mean())),
        "max_pct": float(np.abs(ratio).max()),
        "without_rms_pct": float(100.0 * flat.std() / flat.mean()),
    }


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
        inside, variance = _variance_at(truth, index, ra, dec)
        count += inside
        precision += np.where(inside, area / variance, 0.0)
    with np.errstate(divide="ignore"):
        noise = np.where(precision > 0.0, 1.0 / np.sqrt(precision), np.nan)
    sample = np.mgrid[0 : shape[0], 0 : shape[1]] / LATTICE_PX
    near = np.rint(sample).astype(int)
    return count[near[0], near[1]].astype(np.float32), noise[:, near[0], near[1]].astype(np.float32)


def _variance_at(
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


# ------------------------------------------------------------------------------------------------ background


@dataclass(frozen=True)
class _Cells:
    """Medians of residual and truth in cells of 64 px; NaN where a cell holds too few clean pixels."""

    residual: np.ndarray
    truth: np.ndarray

    def _centred(self) -> np.ndarray:
        return np.asarray(self.residual - np.nanmedian(self.residual))

    def rms(self) -> float:
        return float(np.sqrt(np.nanmean(self._centred() ** 2)))

    def rms_after_plane(self) -> float:
        use = np.isfinite(self.residual)
        y, x = np.nonzero(use)
        design = np.c_[np.ones(x.size), x, y]
        values = self.residual[use]
        left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        return float(np.sqrt((left**2).mean()))

    def spread(self) -> float:
        low, high = np.nanpercentile(self.residual, [5.0, 95.0])
        return float(high - low)

    def slope(self) -> float:
        use = np.isfinite(self.residual)
        truth = self.truth[use]
        if np.ptp(np.percentile(truth, [2.0, 98.0])) < 20.0:
            return float("nan")
        centred = truth - truth.mean()
        return float(1.0 + (centred * self.residual[use]).sum() / (centred**2).sum())


def _cells(scene: Scene, channel: int) -> _Cells:
    ok = scene.clean & np.isfinite(scene.image[channel])
    residual = np.where(ok, scene.residual[channel], np.nan)
    truth = np.where(ok, scene.diffuse[channel], np.nan)
    return _Cells(_cell_medians(residual), _cell_medians(truth))


def _cell_medians(image: np.ndarray, enough: float = 0.15) -> np.ndarray:
    height, width = image.shape
    ny, nx = -(-height // CELL_PX), -(-width // CELL_PX)
    padded = np.full((ny * CELL_PX, nx * CELL_PX), np.nan, dtype=np.float32)
    padded[:height, :width] = image
    cells = padded.reshape(ny, CELL_PX, nx, CELL_PX).swapaxes(1, 2).reshape(ny, nx, -1)
    filled = np.isfinite(cells).mean(axis=2) >= enough
    found = np.full((ny, nx), np.nan)
    found[filled] = np.nanmedian(cells[filled], axis=1)
    return found


def _upsampled(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cells between their centres, holes filled from the nearest cell."""
    holes = ~np.isfinite(cells)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    filled = cells[tuple(nearest)]
    grid = np.meshgrid(*((np.arange(n) + 0.5) / CELL_PX - 0.5 for n in shape), indexing="ij")
    return np.asarray(ndimage.map_coordinates(filled, grid, order=1, mode="nearest"))


# ------------------------------------------------------------------------------------------------ stars


@dataclass(frozen=True)
class _Stars:
    """Well exposed lonely stars: place (px), flux over truth, expected relative noise."""

    x: np.ndarray
    y: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    ratio: np.ndarray
    noise: np.ndarray

    @classmethod
    def measured(cls, scene: Scene, truth: GlowNight, channel: int) -> _Stars:
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
        inside, variance = _variance_at(truth, index, ra, dec)
        photons = Camera().adu_per_electron * flux / frame.setup.transparency[channel]
        total = (variance[channel] * pixels * (1.0 + pixels / ring) + photons) / CFA_DENSITY[channel]
        precision += np.where(inside, 1.0 / total, 0.0)
    return np.asarray(1.0 / np.sqrt(np.maximum(precision, 1e-30)))


def _panel_spread(stars: _Stars, truth: GlowNight) -> tuple[float, float]:
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


# ------------------------------------------------------------------------------------------------ seams


def _seams(scene: Scene, truth: GlowNight) -> tuple[float, float, float, float, int]:
    """Steps of the residual in G across outlines: rms per 64 px, its noise, worst whole side, its sigma, sides."""
    cells = _cells(scene, 1).residual
    use = np.isfinite(cells)
    y, x = np.nonzero(use)
    # A slope of the whole is no seam; it must not add to the differences over the width of the strips.
    surface = np.linalg.lstsq(_quadric(x, y), cells[use], rcond=None)[0]
    good = scene.clean & np.isfinite(scene.image[1])
    steps: list[tuple[float, float]] = []
    sides: list[tuple[float, float]] = []
    for cards, gap in _outlines(truth):
        for start, direction, inward, length in _sides(truth.spec.shape_hw):
            side: list[tuple[float, float]] = []
            for begin in np.arange(0.0, length - STRIP_LENGTH_PX + 1.0, STRIP_LENGTH_PX):
                s, d = np.meshgrid(begin + np.arange(STRIP_LENGTH_PX), gap + np.arange(STRIP_DEPTH_PX))
                strips = []
                for sign in (1.0, -1.0):
                    fx = start[0] + s * direction[0] + sign * d * inward[0]
                    fy = start[1] + s * direction[1] + sign * d * inward[1]
                    mx, my = sky_to_pixel(scene.cards, *pixel_to_sky(cards, fx, fy))
                    strips.append(_strip_mean(scene, good, surface, mx, my))
                if all(strip is not None for strip in strips):
                    (inside, v_in), (outside, v_out) = strips  # type: ignore[misc]
                    side.append((inside - outside, v_in + v_out))
            steps += side
            if len(side) >= 3:
                values, variances = np.array(side).T
                mean = float(np.average(values, weights=1.0 / variances))
                sides.append((mean, float(1.0 / np.sqrt((1.0 / variances).sum()))))
    nan = float("nan")
    if not steps:
        return nan, nan, nan, nan, 0
    values, variances = np.array(steps).T
    worst = max(sides, key=lambda side: abs(side[0]), default=(nan, 1.0))
    return (
        float(np.sqrt((values**2).mean())),
        float(np.sqrt(variances.mean())),
        abs(worst[0]),
        abs(worst[0]) / worst[1],
        len(sides),
    )


def _quadric(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, t = x / 20.0, y / 20.0
    return np.stack([np.ones_like(u), u, t, u * u, u * t, t * t], axis=-1)


def _strip_mean(
    scene: Scene, good: np.ndarray, surface: np.ndarray, mx: np.ndarray, my: np.ndarray
) -> tuple[float, float] | None:
    """Mean residual in G and its variance over places of the mosaic; None where too few can be used."""
    ix, iy = np.rint(mx).astype(int).ravel(), np.rint(my).astype(int).ravel()
    on = (ix >= 0) & (iy >= 0) & (ix < good.shape[1]) & (iy < good.shape[0])
    ix, iy = ix[on], iy[on]
    keep = good[iy, ix] & np.isfinite(scene.noise[1][iy, ix])
    ix, iy = ix[keep], iy[keep]
    if ix.size < 0.2 * STRIP_LENGTH_PX * STRIP_DEPTH_PX:
        return None
    smooth = _quadric((ix + 0.5) / CELL_PX - 0.5, (iy + 0.5) / CELL_PX - 0.5) @ surface
    residual = scene.image[1][iy, ix] - scene.diffuse[1][iy, ix] - scene.stars[1][iy, ix] - smooth
    sigma = scene.noise[1][iy, ix] / np.sqrt(CFA_DENSITY[1])
    calm = np.abs(residual - np.median(residual)) < 5.0 * sigma
    return float(residual[calm].mean()), float((sigma[calm] ** 2).mean() / calm.sum())


def _sides(
    shape_hw: tuple[int, int],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Start, direction, inward normal and length of the sides of a frame, px."""
    height, width = shape_hw[0] - 1.0, shape_hw[1] - 1.0
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - start)))
        direction = (end - start) / length
        yield start, direction, np.array([-direction[1], direction[0]]), length


def _outlines(truth: GlowNight) -> Iterator[tuple[Mapping[str, Any], float]]:
    """WCS of a frame, and how far (px) the others of its visit stray from it: frames that agree have one outline."""
    height, width = truth.spec.shape_hw
    corner_x, corner_y = (
        np.array([0.0, width - 1.0, width - 1.0, 0.0]),
        np.array([0, 0, height - 1.0, height - 1.0]),
    )
    visits: dict[int, list[Mapping[str, Any]]] = {}
    for frame in truth.frames:
        visits.setdefault(frame.visit, []).append(frame.setup.cards)
    for members in visits.values():
        middle = members[len(members) // 2]
        stray = 0.0
        for cards in members:
            x, y = sky_to_pixel(middle, *pixel_to_sky(cards, corner_x, corner_y))
            stray = max(stray, float(np.hypot(x - corner_x, y - corner_y).max()))
        if stray <= 30.0:
            yield middle, stray + 2.0
        else:
            yield from ((cards, 2.0) for cards in members)


# ------------------------------------------------------------------------------------------------ pixels


def _outliers(scene: Scene, cells: list[_Cells]) -> tuple[dict[int, tuple[int, int]], list[float]]:
    """Pixels looked at and outliers per number of frames, and the noise over that of the best mean per channel."""
    counts: dict[int, tuple[int, int]] = {}
    ratios = []
    depth = np.rint(scene.coverage).astype(int)
    for channel in range(3):
        smooth = _upsampled(cells[channel].residual, depth.shape)
        z = (scene.residual[channel] - smooth) / scene.noise[channel]
        use = scene.clean & np.isfinite(z)
        ratios.append(float(1.4826 * np.median(np.abs(z[use & (depth >= min(4, depth.max()))]))))
        for frames in np.unique(depth[use]):
            here = z[use & (depth == frames)]
            if frames < 1 or here.size < 200:
                continue
            sigma = 1.4826 * float(np.median(np.abs(here - np.median(here))))
            beyond = int((np.abs(here - np.median(here)) > OUTLIER_SIGMA * sigma).sum())
            looked, found = counts.get(int(frames), (0, 0))
            counts[int(frames)] = (looked + here.size, found + beyond)
    return counts, ratios


def _satellites(scene: Scene, truth: GlowNight, cells: _Cells) -> tuple[int, int, float]:
    """Trails that cross ground with 4 frames, those left over, and the brightest remainder in G, ADU."""
    depth = np.rint(scene.coverage).astype(int)
    good = scene.clean & np.isfinite(scene.image[1]) & (depth >= 4)
    residual = scene.residual[1] - _upsampled(cells.residual, depth.shape)
    judged = left = 0
    worst = 0.0
    for frame in truth.frames:
        for trail in frame.setup.satellites:
            along = np.linspace(0.0, 1.0, 2 * int(np.hypot(trail.x1 - trail.x0, trail.y1 - trail.y0)))
            fx, fy = trail.x0 + along * (trail.x1 - trail.x0), trail.y0 + along * (trail.y1 - trail.y0)
            height, width = frame.setup.shape_hw
            inside = (fx >= 0) & (fx <= width - 1) & (fy >= 0) & (fy <= height - 1)
            x, y = sky_to_pixel(scene.cards, *pixel_to_sky(frame.setup.cards, fx[inside], fy[inside]))
            ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
            on = (ix >= 0) & (iy >= 0) & (ix < depth.shape[1]) & (iy < depth.shape[0])
            place = np.unique(np.c_[iy[on], ix[on]], axis=0)
            place = place[good[place[:, 0], place[:, 1]]]
            if len(place) < 60:
                continue
            judged += 1
            values = residual[place[:, 0], place[:, 1]]
            sigma = scene.noise[1][place[:, 0], place[:, 1]] / np.sqrt(CFA_DENSITY[1])
            mean = float(np.average(values, weights=sigma**-2))
            # Neighbouring pixels of a resampled image are alike: count one in three.
            error = float(1.0 / np.sqrt((sigma**-2.0).sum() / 3.0))
            if mean > 4.0 * error:
                left += 1
                worst = max(worst, mean)
    return judged, left, worst
