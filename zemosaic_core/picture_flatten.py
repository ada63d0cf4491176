"""Take a slope of the sky out of a picture; objects stay. Arrays only."""

from __future__ import annotations

import numpy as np

from zemosaic_core.background import sky_mesh

__all__ = ["flatten_sky"]

_CELLS = 24
_LEAST_CELL_PX = 16
_ROUNDS = 30
# Cells above the surface by so much of the scatter below it are objects.
_ABOVE, _BELOW = 1.5, 3.0
_LEAST_CELLS = 12


def flatten_sky(image: np.ndarray) -> np.ndarray:
    """Subtract a quadratic surface per channel that follows the darker parts of the sky.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
        NaN means missing.

    Returns
    -------
    ndarray, shape (C, h, w), float32
        Each channel has the level in its middle that it had; unchanged where too little sky is to be seen.
    """
    channels, height, width = image.shape
    cell = max(_LEAST_CELL_PX, min(height, width) // _CELLS)
    mesh = sky_mesh(image, cell)
    y = np.minimum((np.arange(mesh.shape[1]) + 0.5) * cell, height) * (2.0 / height) - 1.0
    x = np.minimum((np.arange(mesh.shape[2]) + 0.5) * cell, width) * (2.0 / width) - 1.0
    terms = _terms(y[:, None], x[None])
    known = np.isfinite(mesh).all(axis=0)
    if np.count_nonzero(known) < _LEAST_CELLS:
        return image
    # What is an object in one channel is one in all, or a red nebula would leave a blue hole.
    use = known & _dark_cells(terms, mesh.mean(axis=0), known)
    if np.count_nonzero(use) < _LEAST_CELLS:
        return image
    result = np.empty_like(image)
    rows = (np.arange(height) + 0.5) * (2.0 / height) - 1.0
    columns = (np.arange(width) + 0.5) * (2.0 / width) - 1.0
    for c in range(channels):
        factors = np.linalg.lstsq(terms[:, use].T, mesh[c][use].astype(np.float64), rcond=None)[0]
        for j, row in enumerate(rows):
            surface = np.tensordot(factors[1:], _terms(np.array([[row]]), columns[None])[1:, 0], axes=1)
            result[c, j] = image[c, j] - surface.astype(np.float32)
    return result


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
