"""Skies with known truth and the raw frames a small smart telescope would take of them.

Arrays only: no files. Everything is seeded, so the same call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from zemosaic_core.synthetic_galaxy import Galaxy, paint_galaxy
from zemosaic_core.synthetic_light import (
    add_lattice,
    add_line,
    add_sky,
    add_stars,
    add_texture,
    multiply_lattice,
)

__all__ = [
    "GLOW_STEP_PX",
    "NOMINAL_SCALE_ARCSEC",
    "Camera",
    "FrameSetup",
    "HotPixels",
    "Satellite",
    "Sky",
    "make_hot_pixels",
    "make_sky",
    "pixel_to_sky",
    "render_frame",
    "render_ideal",
    "sky_to_pixel",
    "star_colour",
    "star_pixels",
    "tan_cards",
    "vignette",
]

# Green zero point of real frames: a star of V = 23.1 gives 1 ADU in 10 s, counted over all pixels as if each
# of them had a green filter.
ZERO_POINT_MAG = 23.1
NOMINAL_SCALE_ARCSEC = 2.374
# Wavelengths (m) at which a black body stands for the star's light in R, G and B, and the camera's relative
# response to a Sun-like star.
_WAVELENGTHS_M = np.array([6.15e-7, 5.35e-7, 4.60e-7])
_RESPONSE_RGB = np.array([0.80, 1.0, 0.74])
_LATTICE_STEP = 32
GLOW_STEP_PX = 60


@dataclass(frozen=True)
class Camera:
    """How light becomes numbers; the defaults were measured on real 10 s frames at gain 80.

    Attributes
    ----------
    pattern : str
        CFA pattern at pixel (0, 0).
    pedestal_adu : float
        Level without light.
    adu_per_electron : float
        Noise variance in ADU^2 is ``adu_per_electron * (level - pedestal)`` plus read noise.
    read_noise_e : float
        Read noise in electrons.
    step_adu : float
        Distance between neighbouring values (12-bit steps of 16 averaged over 5 sub-exposures).
    """

    pattern: str = "GRBG"
    pedestal_adu: float = 440.0
    adu_per_electron: float = 14.3
    read_noise_e: float = 1.0
    step_adu: float = 3.2


@dataclass(frozen=True)
class Satellite:
    """A straight trail through the frame: two points in px, Gaussian width, peak in ADU."""

    x0: float
    y0: float
    x1: float
    y1: float
    sigma_px: float
    peak_adu: float


@dataclass(frozen=True)
class HotPixels:
    """Defects of the sensor: flat indices ``y * W + x`` (int64) and ADU added at each (float32)."""

    flat: np.ndarray
    adu: np.ndarray


@dataclass(frozen=True)
class Sky:
    """What there is to photograph.

    Attributes
    ----------
    ra_deg, dec_deg, mag : ndarray, shape (n,), float64
        Stars, brightest first.
    flux : ndarray, shape (n, 3), float64
        ADU per frame in R, G, B as if every pixel had that filter, at transparency 1.
    texture : ndarray, shape (3, ny, nx), float32
        Diffuse light in ADU per nominal pixel; may be 0 x 0.
    texture_cards : dict
        TAN WCS cards of the texture.
    """

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    mag: np.ndarray
    flux: np.ndarray
    texture: np.ndarray
    texture_cards: dict[str, float | str]


@dataclass(frozen=True)
class FrameSetup:
    """Everything about one exposure.

    Attributes
    ----------
    cards : mapping
        True TAN WCS (from `tan_cards`).
    shape_hw : tuple of int
        Height and width, px.
    transparency : tuple of float
        Factor on all starlight in R, G, B.
    sky_adu : tuple of float
        Sky above the pedestal at the frame centre, R, G, B.
    sky_shape : tuple of float
        Relative sky variation ``a u + b t + c u^2 + d u t + e t^2`` with u, t in [-1, 1] across the frame.
    fwhm_px : float
        Seeing and optics, full width at half maximum.
    trail_px, trail_angle_deg : float
        Length and direction of a tracking error (0: none).
    cloud_depth : float
        0 is clear; 0.8 takes up to 80 % of the light in patches and brightens the sky.
    satellites : tuple of Satellite
        Trails.
    hot_pixels : HotPixels or None
        Persistent defects.
    n_cosmics : int
        Random single hits.
    seed : tuple of int
        Noise, clouds and hits.
    glow_adu : ndarray, shape (3, ny, nx), or None
        Sky above the pedestal at nodes every `GLOW_STEP_PX` px from pixel (0, 0) on, bilinear between them, ny and
        nx at least one more than needed to reach the last pixel. It takes the place of ``sky_adu`` and ``sky_shape``.
    vignetting : float
        Share of all light, of stars and sky, that is lost in the corners; grows as the square of the radius.
    air : ndarray, shape (3, ny, nx), or None
        Factor on starlight beside ``transparency``, at the nodes of ``glow_adu``.
    """

    cards: Mapping[str, float | str]
    shape_hw: tuple[int, int] = (1920, 1080)
    transparency: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sky_adu: tuple[float, float, float] = (300.0, 430.0, 270.0)
    sky_shape: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    fwhm_px: float = 2.6
    trail_px: float = 0.0
    trail_angle_deg: float = 0.0
    cloud_depth: float = 0.0
    satellites: tuple[Satellite, ...] = ()
    hot_pixels: HotPixels | None = None
    n_cosmics: int = 0
    seed: tuple[int, ...] = (0,)
    glow_adu: np.ndarray | None = None
    vignetting: float = 0.0
    air: np.ndarray | None = None


@dataclass(frozen=True)
class _Psf:
    """Moffat core with beta 3 plus a faint halo with beta 2, both of unit flux together."""

    fwhm_px: float
    halo_fraction: float = 0.03
    trail: tuple[tuple[float, float], ...] = field(default=((0.0, 0.0),))

    @property
    def alpha(self) -> float:
        return self.fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / 3.0) - 1.0))


def tan_cards(
    ra_deg: float,
    dec_deg: float,
    *,
    rotation_deg: float = 0.0,
    scale_arcsec: float = NOMINAL_SCALE_ARCSEC,
    shape_hw: tuple[int, int] = (1920, 1080),
) -> dict[str, float | str]:
    """Make TAN WCS cards as the telescope would have them (row 0 at the top, ``det(CD) > 0``).

    Parameters
    ----------
    ra_deg, dec_deg : float
        Sky position of the image centre.
    rotation_deg : float
        Position angle (north through east) of the direction towards row 0.
    scale_arcsec : float
        Arc seconds per pixel.
    shape_hw : tuple of int
        Image size, px.

    Returns
    -------
    dict
        CTYPE, CUNIT, CRVAL, CRPIX (origin 1) and CD cards.
    """
    scale = scale_arcsec / 3600.0
    angle = np.deg2rad(rotation_deg)
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "CRVAL1": float(ra_deg % 360.0),
        "CRVAL2": float(dec_deg),
        "CRPIX1": (shape_hw[1] + 1) / 2.0,
        "CRPIX2": (shape_hw[0] + 1) / 2.0,
        "CD1_1": float(-scale * np.cos(angle)),
        "CD1_2": float(-scale * np.sin(angle)),
        "CD2_1": float(scale * np.sin(angle)),
        "CD2_2": float(-scale * np.cos(angle)),
    }


def sky_to_pixel(cards: Mapping[str, float | str], ra_deg, dec_deg) -> tuple[np.ndarray, np.ndarray]:
    """Project sky positions with TAN cards.

    Parameters
    ----------
    cards : mapping
        CRVAL, CRPIX and CD cards of a TAN projection.
    ra_deg, dec_deg : array_like
        Degrees.

    Returns
    -------
    x, y : ndarray, float64
        Pixel positions, origin 0; NaN for positions 90 degrees or more from the tangent point.
    """
    dra = np.deg2rad(np.asarray(ra_deg, dtype=np.float64) - cards["CRVAL1"])
    dec = np.deg2rad(np.asarray(dec_deg, dtype=np.float64))
    dec0 = np.deg2rad(cards["CRVAL2"])
    depth = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(dra)
    depth = np.where(depth > 1e-6, depth, np.nan)
    xi = np.rad2deg(np.cos(dec) * np.sin(dra) / depth)
    eta = np.rad2deg((np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(dra)) / depth)
    inverse = np.linalg.inv(_cd_matrix(cards))
    x = inverse[0, 0] * xi + inverse[0, 1] * eta + cards["CRPIX1"] - 1.0
    y = inverse[1, 0] * xi + inverse[1, 1] * eta + cards["CRPIX2"] - 1.0
    return x, y


def pixel_to_sky(cards: Mapping[str, float | str], x, y) -> tuple[np.ndarray, np.ndarray]:
    """Deproject pixel positions (origin 0) with TAN cards; the inverse of `sky_to_pixel`.

    Returns
    -------
    ra_deg, dec_deg : ndarray, float64
        Right ascension in [0, 360) and declination.
    """
    dx = np.asarray(x, dtype=np.float64) - (cards["CRPIX1"] - 1.0)
    dy = np.asarray(y, dtype=np.float64) - (cards["CRPIX2"] - 1.0)
    cd = np.deg2rad(_cd_matrix(cards))
    xi = cd[0, 0] * dx + cd[0, 1] * dy
    eta = cd[1, 0] * dx + cd[1, 1] * dy
    dec0 = np.deg2rad(cards["CRVAL2"])
    base = np.cos(dec0) - eta * np.sin(dec0)
    ra = cards["CRVAL1"] + np.rad2deg(np.arctan2(xi, base))
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, base))
    return ra % 360.0, np.rad2deg(dec)


def _cd_matrix(cards: Mapping[str, float | str]) -> np.ndarray:
    return np.array([[cards["CD1_1"], cards["CD1_2"]], [cards["CD2_1"], cards["CD2_2"]]], dtype=np.float64)


def make_sky(
    center_deg: tuple[float, float],
    size_deg: float,
    *,
    seed: int = 7,
    stars_per_deg2: float = 35.0,
    faintest_mag: float = 16.5,
    catalogue: tuple[np.ndarray, ...] | None = None,
    galaxy: Galaxy | None = None,
) -> Sky:
    """Invent a patch of sky, or fill one around real stars.

    Parameters
    ----------
    center_deg : tuple of float
        Right ascension and declination of the centre.
    size_deg : float
        Diameter of the patch.
    seed : int
        Seed.
    stars_per_deg2 : float
        Stars brighter than magnitude 12 per square degree; each magnitude more doubles them.
    faintest_mag : float
        Faintest star.
    catalogue : tuple of ndarray, optional
        Real stars ``(ra_deg, dec_deg, mag)`` or ``(ra_deg, dec_deg, mag, b_v)``. They replace the random ones
        down to the magnitude where the catalogue thins out; fainter stars stay random. Where B-V is given and
        not NaN, the star shines as a black body of that colour.
    galaxy : Galaxy, optional
        Galaxy at the centre; None: stars only.

    Returns
    -------
    Sky
        Stars brightest first, and the diffuse texture.
    """
    rng = np.random.default_rng([seed, 1])
    ra, dec, mag = _random_stars(rng, center_deg, size_deg, stars_per_deg2, faintest_mag)
    b_v = np.full(len(mag), np.nan)
    if catalogue is not None:
        ra, dec, mag, b_v = _merge_catalogue(catalogue, (ra, dec, mag, b_v), center_deg, size_deg)
    order = np.argsort(mag, kind="stable")
    ra, dec, mag, b_v = ra[order], dec[order], mag[order], b_v[order]
    colours = np.where(np.isfinite(b_v)[:, None], star_colour(b_v), _star_colours(rng, mag))
    flux = 10.0 ** (0.4 * (ZERO_POINT_MAG - mag))[:, None] * colours
    texture = np.zeros((3, 0, 0), dtype=np.float32)
    cards = tan_cards(*center_deg, shape_hw=(0, 0))
    if galaxy is not None:
        scale_deg = galaxy.radius_deg / 480.0
        texture = paint_galaxy(galaxy, scale_deg, seed)
        cards = tan_cards(*center_deg, scale_arcsec=scale_deg * 3600.0, shape_hw=texture.shape[1:])
        # The texture has north towards +y: turn the usual "row 0 is up" around.
        cards["CD2_2"] = -cards["CD2_2"]
    return Sky(ra, dec, mag, flux, texture, cards)


def _random_stars(rng, center_deg, size_deg, density, faintest):
    area = np.pi / 4.0 * size_deg**2
    slope = 0.30  # dex per magnitude, as counted at middle galactic latitudes
    brightest = 5.5
    edges = 10.0 ** (slope * (np.array([brightest, faintest]) - 12.0))
    count = rng.poisson(density * area * (edges[1] - edges[0]))
    mag = 12.0 + np.log10(rng.uniform(edges[0], edges[1], count)) / slope
    radius = size_deg / 2.0 * np.sqrt(rng.uniform(0.0, 1.0, count))
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    plane = tan_cards(*center_deg, scale_arcsec=3600.0, shape_hw=(1, 1))
    ra, dec = pixel_to_sky(plane, radius * np.cos(angle), radius * np.sin(angle))
    return ra, dec, mag


def _merge_catalogue(catalogue, random_stars, center_deg, size_deg):
    ra, dec, mag = (np.asarray(a, dtype=np.float64) for a in catalogue[:3])
    b_v = np.asarray(catalogue[3], dtype=np.float64) if len(catalogue) > 3 else np.full(len(mag), np.nan)
    plane = tan_cards(*center_deg, scale_arcsec=3600.0, shape_hw=(1, 1))
    x, y = sky_to_pixel(plane, ra, dec)
    inside = np.hypot(x, y) <= size_deg / 2.0
    ra, dec, mag, b_v = ra[inside] % 360.0, dec[inside], mag[inside], b_v[inside]
    if mag.size == 0:
        raise ValueError("the catalogue has no star in the field of the synthetic sky")
    limit = np.percentile(mag, 75.0)  # a catalogue is nearly complete down to about here
    keep = random_stars[2] > limit
    return tuple(
        np.concatenate([real, made[keep]])
        for real, made in zip((ra, dec, mag, b_v), random_stars, strict=True)
    )


def _star_colours(rng: np.random.Generator, mag: np.ndarray) -> np.ndarray:
    """Relative flux (n, 3) of black bodies: few hot blue stars, many Sun-like, a tail of red giants."""
    kind = rng.uniform(0.0, 1.0, mag.size)
    spread = rng.standard_normal(mag.size)
    kelvin = np.where(
        kind < 0.22,
        9500.0 * np.exp(0.22 * spread),
        np.where(kind < 0.72, 5900.0 * np.exp(0.10 * spread), 4150.0 * np.exp(0.10 * spread)),
    )
    return _seen_colour(kelvin)


def star_colour(b_v: np.ndarray) -> np.ndarray:
    """Return the relative flux (n, 3) of black bodies of these colours B-V; NaN where B-V is.

    Temperature after Ballesteros (2012, EPL 97, 34008).
    """
    scaled = 0.92 * np.asarray(b_v, dtype=np.float64)
    return _seen_colour(4600.0 * (1.0 / (scaled + 1.7) + 1.0 / (scaled + 0.62)))


def _seen_colour(kelvin: np.ndarray) -> np.ndarray:
    flux = _black_body(np.clip(kelvin, 3000.0, 20000.0)) / _black_body(np.array([5800.0]))
    return flux / flux[:, 1:2] * _RESPONSE_RGB


def _black_body(kelvin: np.ndarray) -> np.ndarray:
    """Photons per wavelength interval, up to a factor: lambda^-4 / (exp(hc / lambda k T) - 1)."""
    x = 1.438777e-2 / (_WAVELENGTHS_M[None, :] * kelvin[:, None])
    return _WAVELENGTHS_M**-4 / np.expm1(x)


def make_hot_pixels(shape_hw: tuple[int, int], *, count: int = 40, seed: int = 7) -> HotPixels:
    """Choose persistent defects anywhere on the sensor, from faint (600 ADU) to nearly saturated."""
    rng = np.random.default_rng([seed, 2])
    flat = np.sort(rng.choice(shape_hw[0] * shape_hw[1], size=count, replace=False)).astype(np.int64)
    adu = (600.0 * (60000.0 / 600.0) ** rng.uniform(0.0, 1.0, count)).astype(np.float32)
    return HotPixels(flat, adu)


def star_pixels(
    sky: Sky, setup: FrameSetup, *, margin_px: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say which stars fall on the frame and where.

    Returns
    -------
    index : ndarray, shape (k,), int64
        Rows of the sky's star table.
    x, y : ndarray, shape (k,), float64
        True pixel positions, origin 0.
    """
    x, y = sky_to_pixel(setup.cards, sky.ra_deg, sky.dec_deg)
    height, width = setup.shape_hw
    inside = (
        (x >= -margin_px) & (x <= width - 1 + margin_px) & (y >= -margin_px) & (y <= height - 1 + margin_px)
    )
    index = np.flatnonzero(inside)
    return index, x[index], y[index]


def render_frame(sky: Sky, setup: FrameSetup, camera: Camera | None = None) -> np.ndarray:
    """Take one raw exposure.

    Parameters
    ----------
    sky : Sky
        What is there.
    setup : FrameSetup
        Pointing, air, accidents and seed.
    camera : Camera, optional
        The sensor.

    Returns
    -------
    ndarray, shape (H, W), uint16
        CFA frame in ADU.
    """
    camera = camera or Camera()
    rng = np.random.default_rng([*setup.seed, 11])
    channels = np.array(["RGB".index(c) for c in camera.pattern], dtype=np.int64).reshape(2, 2)
    light = np.zeros(setup.shape_hw, dtype=np.float32)
    _paint_light(light, sky, setup, channels, np.asarray(setup.transparency, dtype=np.float64))
    if setup.air is not None:
        multiply_lattice(light, setup.air, GLOW_STEP_PX, channels)
    glow = np.ones(setup.shape_hw, dtype=np.float32)
    if setup.cloud_depth > 0.0:
        cover = _cloud_cover(rng, setup.shape_hw)
        light *= 1.0 - setup.cloud_depth * cover
        glow += 1.6 * setup.cloud_depth * cover
    if setup.glow_adu is None:
        add_sky(light, glow, np.asarray(setup.sky_adu), np.asarray(setup.sky_shape), channels)
    else:
        add_lattice(light, glow, setup.glow_adu, GLOW_STEP_PX, channels)
    for satellite in setup.satellites:
        s = satellite
        add_line(light, s.x0, s.y0, s.x1, s.y1, s.sigma_px, s.peak_adu)
    if setup.vignetting > 0.0:
        light *= vignette(setup.shape_hw, setup.vignetting)
    electrons = rng.poisson(np.maximum(light, 0.0) / camera.adu_per_electron).astype(np.float32)
    electrons += camera.read_noise_e * rng.standard_normal(setup.shape_hw, dtype=np.float32)
    adu = electrons * camera.adu_per_electron + camera.pedestal_adu
    _add_defects(adu, rng, setup)
    steps = np.floor(np.clip(adu, 0.0, 65535.0) / camera.step_adu + 0.5)
    return np.minimum(steps * camera.step_adu, 65535.0).astype(np.uint16)


def render_ideal(sky: Sky, setup: FrameSetup) -> np.ndarray:
    """Render the same light as `render_frame` without sky glow, noise, defects or colour filters.

    Returns
    -------
    ndarray, shape (3, H, W), float32
        Expected ADU above the sky in every pixel and channel.
    """
    planes = np.zeros((3, *setup.shape_hw), dtype=np.float32)
    for channel in range(3):
        same = np.full((2, 2), channel, dtype=np.int64)
        _paint_light(planes[channel], sky, setup, same, np.asarray(setup.transparency, dtype=np.float64))
    return planes


def vignette(shape_hw: tuple[int, int], loss: float) -> np.ndarray:
    """Return the share of light that arrives at each pixel: 1 in the middle, ``1 - loss`` in the corners.

    Returns
    -------
    ndarray, shape (H, W), float32
        Falls as the square of the distance from the middle.
    """
    y, x = (np.linspace(-1.0, 1.0, n, dtype=np.float32) * n for n in shape_hw)
    radius2 = (y[:, None] ** 2 + x[None, :] ** 2) / np.float32(shape_hw[0] ** 2 + shape_hw[1] ** 2)
    return np.asarray(1.0 - np.float32(loss) * radius2, dtype=np.float32)


def _paint_light(light, sky: Sky, setup: FrameSetup, channels, transparency) -> None:
    # Surface brightness is per nominal pixel; larger pixels collect more of it. Star flux is not affected.
    area = abs(np.linalg.det(_cd_matrix(setup.cards))) * 3600.0**2 / NOMINAL_SCALE_ARCSEC**2
    if sky.texture.size:
        node_x, node_y = _texture_lattice(sky, setup)
        add_texture(light, sky.texture, node_x, node_y, _LATTICE_STEP, channels, transparency * area)
    index, x, y = star_pixels(sky, setup, margin_px=60.0)
    psf = _psf_of(setup)
    offsets = np.array(psf.trail, dtype=np.float64)
    flux = sky.flux[index] * transparency / len(offsets)
    for dx, dy in offsets:
        add_stars(light, x + dx, y + dy, flux, channels, psf.alpha, psf.halo_fraction)


def _psf_of(setup: FrameSetup) -> _Psf:
    if setup.trail_px <= 0.0:
        return _Psf(setup.fwhm_px)
    count = max(2, int(np.ceil(setup.trail_px)) + 1)
    along = np.linspace(-0.5, 0.5, count) * setup.trail_px
    angle = np.deg2rad(setup.trail_angle_deg)
    return _Psf(setup.fwhm_px, trail=tuple((a * np.cos(angle), a * np.sin(angle)) for a in along))


def _texture_lattice(sky: Sky, setup: FrameSetup) -> tuple[np.ndarray, np.ndarray]:
    height, width = setup.shape_hw
    ys = np.arange(0, height + 2 * _LATTICE_STEP, _LATTICE_STEP)
    xs = np.arange(0, width + 2 * _LATTICE_STEP, _LATTICE_STEP)
    ra, dec = pixel_to_sky(setup.cards, *np.meshgrid(xs, ys))
    return sky_to_pixel(sky.texture_cards, ra, dec)


def _cloud_cover(rng: np.random.Generator, shape_hw: tuple[int, int]) -> np.ndarray:
    """Patchy cover between 0.45 and 1, smooth over about a fifth of the frame."""
    coarse = rng.uniform(0.0, 1.0, (8, 6))
    zoom = ((shape_hw[0] + 1) / 6.0, (shape_hw[1] + 1) / 4.0)
    fine = ndimage.zoom(coarse.astype(np.float32), zoom, order=3)[: shape_hw[0], : shape_hw[1]]
    return 0.45 + 0.55 * np.clip(fine, 0.0, 1.0)


def _add_defects(adu: np.ndarray, rng: np.random.Generator, setup: FrameSetup) -> None:
    flat = adu.reshape(-1)
    if setup.hot_pixels is not None:
        flutter = rng.normal(1.0, 0.04, setup.hot_pixels.flat.size)
        flat[setup.hot_pixels.flat] += setup.hot_pixels.adu * flutter
    hits = rng.integers(0, flat.size, setup.n_cosmics)
    energy = rng.lognormal(8.0, 0.9, setup.n_cosmics)
    flat[hits] += energy
    spill = hits + rng.choice([-1, 1, -setup.shape_hw[1], setup.shape_hw[1]], setup.n_cosmics)
    flat[np.clip(spill, 0, flat.size - 1)] += 0.4 * energy
