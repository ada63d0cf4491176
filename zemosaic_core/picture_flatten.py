"""Take a slope of the sky out of a picture; objects stay. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zemosaic_core.background import sky_mesh

__all__ = ["SkySurface", "fit_sky_surface"]

_CELLS = 24
_LEAST_CELL_PX = 16
_ROUNDS = 30
# Cells above the surface by so much of the scatter below it are objects.
_ABOVE, _BELOW = 1.5, 3.0
_LEAST_CELLS = 12


@dataclass(frozen=True)
class SkySurface:
    """A quadratic surface of the sky over a picture, without the level in its middle.

    Attributes
    ----------
    factors : ndarray, shape (C, 6), float64
        Of 1, x, y, x^2, xy and y^2, both coordinates from -1 to 1 over the picture; the first is not used.
    """

    factors: np.ndarray

    def taken_from(
        self,
        image: np.ndarray,
        whole_hw: tuple[int, int] | None = None,
        corner_yx: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """Return a picture, or a part of one, less the surface.

        Parameters
        ----------
        image : ndarray, shape (C, h, w), float32
        whole_hw : tuple of int, optional
            Size of the whole picture in pixels of the part; default: this is the whole.
        corner_yx : tuple of int
            First pixel of the part in the whole.
        """
        height, width = whole_hw or image.shape[1:]
        y, x = (corner + np.arange(size) for corner, size in zip(corner_yx, image.shape[1:], strict=True))
        rows, columns = (y + 0.5) * (2.0 / height) - 1.0, (x + 0.5) * (2.0 / width) - 1.0
        result = np.empty_like(image)
        for plane, factors, out in zip(image, self.factors, result, strict=True):
            for j, row in enumerate(rows):
                surface = np.tensordot(factors[1:], _terms(np.array([[row]]), columns[None])[1:, 0], axes=1)
                out[j] = plane[j] - surface.astype(np.float32)
        return result


def fit_sky_surface(image: np.ndarray) -> SkySurface | None:
    """Fit a quadratic surface per channel to the darker parts of the sky.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
        NaN means missing.

    Returns
    -------
    SkySurface or None
        None where too little sky is to be seen.
    """
    _, height, width = image.shape
    cell = max(_LEAST_CELL_PX, min(height, width) // _CELLS)
    mesh = sky_mesh(image, cell)
    y = np.minimum((np.arange(mesh.shape[1]) + 0.5) * cell, height) * (2.0 / height) - 1.0
    x = np.minimum((np.arange(mesh.shape[2]) + 0.5) * cell, width) * (2.0 / width) - 1.0
    terms = _terms(y[:, None], x[None])
    known = np.isfinite(mesh).all(axis=0)
    if np.count_nonzero(known) < _LEAST_CELLS:
        return None
    # What is an object in one channel is one in all, or a red nebula would leave a blue hole.
    use = known & _dark_cells(terms, mesh.mean(axis=0), known)
    if np.count_nonzero(use) < _LEAST_CELLS:
        return None
    return SkySurface(
        np.stack(
            [np.linalg.lstsq(terms[:, use].T, plane[use].astype(np.float64), rcond=None)[0] for plane in mesh]
        )
    )


def _terms(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    y, x = np.broadcast_arrays(y, x)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def _dark_cells(terms: np.ndarray, light: np.ndarray, known: np.ndarray) -> np.ndarray:
    use = known & (light <= np.percentile(light[known], 70.0))
    for _ in range(_ROUNDS):
        if np.count_nonzero(use) < _LEAST_CELLS:
            break
        factors = np.linalg.lstsq(terms[:, use].T, light[use].astype(np.float64), rcond=None)[0]
        off = light - np.tensordot(factors, terms, axes=1)
        below = off[use & (off < 0)]
        scatter = max(1.4826 * float(np.median(-below)) if below.size else 0.0, 1e-9)
        new = known & (off < _ABOVE * scatter) & (off > -_BELOW * 3 * scatter)
        if (new == use).all():
            break
        use = new
    return np.asarray(use)
