"""Clouds of faint nebulosity for synthetic skies: arrays only, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from zemosaic_core.synthetic_galaxy import Galaxy, fractal_noise, paint_galaxy

__all__ = ["Cloud", "paint_diffuse_light"]

# Ionised hydrogen with the stars it shines by.
_CLOUD_RGB = np.array([1.35, 1.0, 0.85])


@dataclass(frozen=True)
class Cloud:
    """A cloud that fades out smoothly.

    Attributes
    ----------
    peak_adu : float
        Brightness of its middle in G, ADU per nominal pixel.
    radius_deg : float
        Distance at which it has fallen to half of that.
    east_deg, north_deg : float
        Offset of its middle from the centre of the sky.
    clumpiness : float
        Relative size of its structure; 0 is perfectly smooth.
    """

    peak_adu: float = 100.0
    radius_deg: float = 1.0
    east_deg: float = 0.0
    north_deg: float = 0.0
    clumpiness: float = 0.25


def paint_diffuse_light(
    clouds: tuple[Cloud, ...], galaxy: Galaxy | None, *, size_deg: float, scale_deg: float, seed: int
) -> np.ndarray:
    """Paint clouds, and a galaxy in their midst, on one tangent plane.

    Parameters
    ----------
    clouds : tuple of Cloud
        May be empty.
    galaxy : Galaxy or None
        At the centre.
    size_deg, scale_deg : float
        Width of the square and size of one of its pixels, degrees.
    seed : int
        Seed of all structure.

    Returns
    -------
    ndarray, shape (3, n, n), float32
        ADU per nominal pixel; north is up (+y), east is left (-x), the centre is pixel ``(n // 2, n // 2)``.

    Raises
    ------
    ValueError
        When the galaxy is larger than the square.
    """
    half = int(np.ceil(0.5 * size_deg / scale_deg))
    axis = np.arange(-half, half + 1, dtype=np.float64) * scale_deg
    north, west = np.meshgrid(axis, axis, indexing="ij")
    image = np.zeros((3, axis.size, axis.size))
    for number, cloud in enumerate(clouds):
        rng = np.random.default_rng([seed, 41, number])
        distance = np.hypot(north - cloud.north_deg, west + cloud.east_deg) / cloud.radius_deg
        structure = _structure(rng, axis.size)
        light = np.exp2(-(distance**2)) * np.clip(1.0 + cloud.clumpiness * structure, 0.0, None)
        image += _CLOUD_RGB[:, None, None] * (cloud.peak_adu * light)
    if galaxy is not None:
        painted = paint_galaxy(galaxy, scale_deg, seed)
        reach = painted.shape[1] // 2
        if reach > half:
            raise ValueError(f"a galaxy of {2 * reach + 1} px does not fit into {2 * half + 1} px of sky")
        window = slice(half - reach, half + reach + 1)
        image[:, window, window] += painted
    return image.astype(np.float32)


def _structure(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return smooth random structure, painted on a grid just fine enough for it."""
    coarse = fractal_noise(rng, min(size, 200), (3, 7, 16, 40))
    return np.asarray(ndimage.zoom(coarse, size / coarse.shape[0], order=1, mode="nearest", grid_mode=True))
