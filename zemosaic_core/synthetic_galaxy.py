"""A painted spiral galaxy for synthetic skies: arrays only, seeded, no claim to be a real object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["Galaxy", "fractal_noise", "paint_galaxy"]

# Relative response of the colour camera (R, G, B) to the light of the parts of a galaxy: old stars are warm,
# the young disk is bluish, ionised hydrogen is H-alpha (red) with a little H-beta and [O III].
_BULGE_RGB = np.array([1.12, 1.0, 0.62])
_DISK_RGB = np.array([0.92, 1.0, 0.72])
_ARM_RGB = np.array([0.66, 1.0, 0.98])
_HYDROGEN_RGB = np.array([1.15, 0.50, 0.56])
_DUST_OPACITY = np.array([0.75, 1.0, 1.3])


@dataclass(frozen=True)
class Galaxy:
    """Where the galaxy is and how bright it is.

    Attributes
    ----------
    radius_deg : float
        Semi-major axis of the visible disk, degrees.
    position_angle_deg : float
        Position angle of the major axis, from north through east.
    inclination_deg : float
        0 is face-on, 90 is edge-on.
    core_adu, disk_adu : float
        Surface brightness of the core and of the disk near the centre, ADU per nominal pixel in G.
    """

    radius_deg: float = 0.85
    position_angle_deg: float = 35.0
    inclination_deg: float = 58.0
    core_adu: float = 2600.0
    disk_adu: float = 420.0


def paint_galaxy(galaxy: Galaxy, scale_deg: float, seed: int) -> np.ndarray:
    """Paint the galaxy on its own tangent plane.

    Parameters
    ----------
    galaxy : Galaxy
        Shape and brightness.
    scale_deg : float
        Size of a texture pixel, degrees.
    seed : int
        Seed of clumps, dust and hydrogen knots.

    Returns
    -------
    ndarray, shape (3, n, n), float32
        Surface brightness in ADU per nominal pixel; north is up (+y), east is left (-x), the centre of the
        galaxy is the centre pixel ``(n // 2, n // 2)``; the outermost pixels are exactly 0.
    """
    rng = np.random.default_rng([seed, 31])
    half = int(np.ceil(1.25 * galaxy.radius_deg / scale_deg))
    axis = np.arange(-half, half + 1, dtype=np.float64) * (scale_deg / galaxy.radius_deg)
    north, west = np.meshgrid(axis, axis, indexing="ij")
    angle = np.deg2rad(galaxy.position_angle_deg)
    # Position angle counts towards east, which is -x here.
    along = north * np.cos(angle) - west * np.sin(angle)
    across = (north * np.sin(angle) + west * np.cos(angle)) / np.cos(np.deg2rad(galaxy.inclination_deg))
    clumps = fractal_noise(rng, axis.size, (5, 12, 30, 80, 200))
    warp = fractal_noise(rng, axis.size, (7, 18))
    radius = np.hypot(along, across)
    turn = np.arctan2(across, along)
    # Two logarithmic arms; the warp keeps them from looking drawn with a compass.
    phase = turn - 3.1 * np.log(radius + 0.06) + 0.16 * warp
    arms = np.exp(2.6 * (np.cos(2.0 * phase) - 1.0)) + 0.45 * np.exp(2.0 * (np.cos(2.0 * phase + 2.6) - 1.0))
    dust_lane = np.exp(5.0 * (np.cos(2.0 * (phase + 0.30)) - 1.0))
    image = _paint_light(galaxy, radius, along, across, arms, clumps)
    image += _hydrogen(rng, galaxy, radius, arms, clumps)
    fringe = np.clip((radius - 0.06) / 0.12, 0.0, 1.0) * np.exp(-1.5 * radius)
    depth = 1.15 * fringe * np.clip(dust_lane + 0.35 * np.maximum(clumps, 0.0), 0.0, 1.4)
    image *= np.exp(-_DUST_OPACITY[:, None, None] * depth)
    image *= _soft_edge(np.hypot(north, west))
    return image.astype(np.float32)


def _paint_light(galaxy, radius, along, across, arms, clumps) -> np.ndarray:
    # The bulge is a spheroid: it is not flattened as much as the disk is.
    flat = np.cos(np.deg2rad(galaxy.inclination_deg))
    bulge_radius = np.hypot(along, across * min(1.0, 1.6 * flat))
    bulge = galaxy.core_adu / (1.0 + (bulge_radius / 0.018) ** 2) ** 0.9
    bulge = bulge * np.exp(-bulge_radius / 0.45) + 0.55 * galaxy.disk_adu * np.exp(-bulge_radius / 0.10)
    disk = galaxy.disk_adu * np.exp(-radius / 0.27)
    patchy = np.clip(1.0 + 0.60 * clumps, 0.2, None)
    young = arms * patchy * np.clip((radius - 0.05) / 0.15, 0.0, 1.0)
    light = (
        _BULGE_RGB[:, None, None] * bulge
        + _DISK_RGB[:, None, None] * disk * (0.55 + 0.1 * clumps)
        + _ARM_RGB[:, None, None] * disk * 1.7 * young
    )
    return np.maximum(light, 0.0)


def _hydrogen(rng, galaxy, radius, arms, clumps) -> np.ndarray:
    """Pink knots strewn over the arms, more where the gas is clumpy."""
    size = radius.shape[0]
    chance = (arms**2 * np.clip(0.5 + clumps, 0.0, None) * np.exp(-((radius - 0.42) ** 2) / 0.05)).ravel()
    knots = rng.choice(chance.size, size=520, p=chance / chance.sum())
    glow = np.zeros(chance.size)
    np.add.at(glow, knots, rng.lognormal(0.0, 0.8, knots.size))
    glow = glow.reshape(radius.shape)
    width = max(0.8, size / 800.0)
    glow = ndimage.gaussian_filter(glow, width) + 0.9 * ndimage.gaussian_filter(glow, 3.0 * width)
    return _HYDROGEN_RGB[:, None, None] * glow * (galaxy.disk_adu * 1.5 * width**2)


def fractal_noise(rng: np.random.Generator, size: int, periods: tuple[int, ...]) -> np.ndarray:
    """Sum of smooth random fields; ``periods`` are numbers of cells across; unit variance."""
    total = np.zeros((size, size))
    for cells in periods:
        coarse = rng.standard_normal((cells + 3, cells + 3))
        zoomed = ndimage.zoom(coarse, (size + 1) / cells, order=3)
        total += zoomed[:size, :size] / cells**0.45
    return (total - total.mean()) / total.std()


def _soft_edge(distance: np.ndarray) -> np.ndarray:
    """1 inside, 0 from 1.22 radii on, so that no square edge of the texture ever shows."""
    t = np.clip((1.22 - distance) / 0.35, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
