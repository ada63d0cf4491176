"""Draws mosaics side by side with the truth at one linear stretch, so that eyes can judge what numbers miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality_scene import Scene

__all__ = ["side_by_side"]

BLACK_ADU, WHITE_ADU = -40.0, 160.0
_GAP_PX = 8
_NO_DATA = 24


def side_by_side(scenes: dict[str, Scene], path: Path, *, width_px: int = 700) -> Path:
    """Write a PNG of the mosaics and the truth, each from -40 to +160 ADU around its own median sky.

    Parameters
    ----------
    scenes : dict
        Title -> mosaic; the truth is taken from the last one and set to its right.
    path : Path
        The picture.
    width_px : int
        Width of each part.
    """
    parts = [_part(title, scene.image - _level(scene), width_px) for title, scene in scenes.items()]
    last = list(scenes.values())[-1]
    truth = np.where(np.isfinite(last.image), last.diffuse + last.stars, np.nan)
    parts.append(_part("truth", truth, width_px))
    height = max(part.shape[0] for part in parts)
    total = np.full((height, sum(p.shape[1] + _GAP_PX for p in parts) - _GAP_PX, 3), _NO_DATA, dtype=np.uint8)
    left = 0
    for part in parts:
        total[: part.shape[0], left : left + part.shape[1]] = part
        left += part.shape[1] + _GAP_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(total).save(path, optimize=True)
    return path


def _level(scene: Scene) -> np.ndarray:
    """Sky of the mosaic per channel: the median of what is left over, so that nebulae do not count as sky."""
    use = scene.clean & np.isfinite(scene.image[1])
    return np.asarray(np.median(scene.residual[:, use], axis=1)[:, None, None])


def _part(title: str, image: np.ndarray, width_px: int) -> np.ndarray:
    step = max(1, round(image.shape[2] / width_px))
    height, width = (n // step * step for n in image.shape[1:])
    blocks = image[:, :height, :width].reshape(3, height // step, step, width // step, step)
    with np.errstate(invalid="ignore"):
        filled = np.isfinite(blocks)
        mean = np.where(filled, blocks, 0.0).sum(axis=(2, 4)) / filled.sum(axis=(2, 4))
    shade = np.clip((mean - BLACK_ADU) / (WHITE_ADU - BLACK_ADU), 0.0, 1.0) * 255.0
    rgb = np.where(np.isfinite(shade), shade, _NO_DATA).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    ImageDraw.Draw(picture).text((6, 4), title, fill=(255, 255, 255))
    return np.asarray(picture)
