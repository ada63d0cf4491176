"""How the viewer shows a mosaic: the pictures are those that a run would make with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zemosaic_core import colour_maps
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_core.picture_parts import MARGIN_PX, with_margin
from zemosaic_core.stretch import StretchParams, auto_stretch_params, preview_rgba
from zemosaic_ui.mosaic_image import MosaicImage

__all__ = [
    "CHANNEL_VIEWS",
    "Look",
    "base_params",
    "coverage_overlay",
    "render",
    "render_window",
    "same_numbers",
    "select_channels",
    "uncalibrated",
]

CHANNEL_VIEWS = ("rgb", "red", "green", "blue", "light")
# Pictures whose ranges differ by more are in other units: each keeps its own numbers.
_MOST_ALIKE = 8.0


@dataclass(frozen=True)
class Look:
    """Channel view and stretch; ``number`` tells looks apart, so that parts of an older one are thrown away.

    Attributes
    ----------
    calm : bool
        Whether the picture is finished where the view rests: noise calmed, cut-off cores given their colour.
    """

    number: int
    view: str
    params: StretchParams
    calm: bool = True


def select_channels(image: np.ndarray, view: str) -> np.ndarray:
    """Return the planes to show: all, one colour, or their mean."""
    if image.shape[0] == 1 or view == "rgb":
        return image
    if view == "light":
        return np.asarray(image.mean(axis=0, keepdims=True))
    index = CHANNEL_VIEWS.index(view) - 1
    return image[index : index + 1]


def base_params(overview: np.ndarray, view: str, options: Mapping[str, Any] | None = None) -> StretchParams:
    """Return the automatic stretch of a channel view; ``options`` are those of `auto_stretch_params`."""
    return auto_stretch_params(select_channels(overview, view), **(options or {}))


def uncalibrated(params: StretchParams) -> StretchParams:
    """Return the same stretch for the colours that the camera saw."""
    return replace(params, gain=(1.0,) * len(params.gain))


def same_numbers(own: StretchParams, other: StretchParams) -> StretchParams:
    """Return the stretch of another picture of the same sky, above the own sky, so that differences are real.

    Two pictures in different units keep their own numbers; so do pictures of different numbers of channels.
    """
    if len(own.gain) != len(other.gain) or not 1.0 / _MOST_ALIKE < own.span / other.span < _MOST_ALIKE:
        return own
    return replace(other, sky=own.sky)


def render(
    image: np.ndarray,
    look: Look,
    *,
    finish: bool = False,
    noise: NoiseMap | None = None,
    clipped: np.ndarray | None = None,
    bits: int = 8,
) -> np.ndarray:
    """Return a part as (h, w, 4), uint8 or uint16; missing pixels are transparent.

    Parameters
    ----------
    finish : bool
        Calm the noise and give cut-off cores their colour, as a run does. Otherwise every pixel is shown by itself.
    noise, clipped
        As for `preview_rgba`; only used where the picture is finished.
    """
    if finish and noise is not None:
        noise = replace(noise, sigma=_noise_of_view(noise.sigma, look.view))
    return preview_rgba(
        select_channels(image, look.view),
        params=look.params,
        max_dim=None,
        calm_noise=finish,
        noise=noise if finish else None,
        clipped=clipped if finish else None,
        bits=bits,
    )


def _noise_of_view(sigma: np.ndarray, view: str) -> np.ndarray:
    if view != "light" or sigma.shape[0] == 1:
        return select_channels(sigma, view)
    return np.asarray(np.sqrt(np.square(sigma).sum(axis=0, keepdims=True)) / sigma.shape[0])


def render_window(
    mosaic: MosaicImage,
    look: Look,
    level: int,
    box: tuple[int, int, int, int],
    *,
    finish: bool,
    bits: int = 8,
) -> np.ndarray:
    """Return a window ``(y0, y1, x0, x1)`` of a level of a mosaic, with what is around it taken into account."""
    height, width = mosaic.level_shape(level)
    y0, y1, x0, x1 = with_margin(box, (height, width), 0)
    top, bottom, left, right = with_margin(box, (height, width), MARGIN_PX if finish else 0)
    pixels = mosaic.window(level, top, bottom, left, right)
    rgba = render(
        pixels,
        look,
        finish=finish,
        noise=mosaic.noise_of(level, top, left),
        clipped=mosaic.clipped_of(level, top, left, (pixels.shape[1], pixels.shape[2])),
        bits=bits,
    )
    return rgba[y0 - top : y1 - top, x0 - left : x1 - left]


def coverage_overlay(coverage: np.ndarray) -> np.ndarray:
    """Return a translucent colour map (h, w, 4) uint8 of a coverage plane."""
    rgba = colour_maps.coverage_rgba(coverage)
    rgba[..., 3] //= 2
    return rgba
