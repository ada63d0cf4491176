"""From light and colours to a picture: how much sky, how much contrast, how much colour. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["STYLES", "PictureStyle", "curve", "paint", "pedestal_for_sky"]


@dataclass(frozen=True)
class PictureStyle:
    """What makes one kind of picture.

    Attributes
    ----------
    softness : float
        Factor of the softness that the noise suggests: smaller shows fainter light and a steeper noise.
    sky : float or None
        Brightness of the sky in the picture, 0 to 1; None: the darkest pixels are black, wherever the sky comes to lie.
    darkest, brightest : float
        Where black and white of the curve come to lie: paper shows no differences in the last few steps.
    faint_saturation, saturation : float
        How much colours of the faintest and of bright light are strengthened, for a curve makes everything paler.
    """

    softness: float
    sky: float | None
    darkest: float
    brightest: float
    faint_saturation: float
    saturation: float


STYLES = {
    "natural": PictureStyle(1.0, None, 0.0, 1.0, 0.8, 1.6),
    "deep": PictureStyle(0.4, 50 / 255, 0.0, 1.0, 0.8, 1.7),
    "print": PictureStyle(0.65, 40 / 255, 10 / 255, 250 / 255, 0.8, 1.8),
}
"""The styles by name."""

_LESS_PURPLE = np.float32(0.35)
# The hottest star is as blue as (155, 176, 255) and no bluer, and what it lights is hardly more so: as a share of the
# brightness blue rises by no more than about this. Nothing of the kind bounds red.
_BLUEST = np.float32(0.33)
# Where a colour does not fit beneath white, this share of it gives brightness away, the rest bleaches.
_KEEP_HUE = np.float32(0.6)


def pedestal_for_sky(softness: float, white: float, style: PictureStyle) -> float:
    """Return how far below the sky black lies, so that the sky comes out as bright as the style asks.

    Parameters
    ----------
    softness, white : float
        See `curve`.
    """
    assert style.sky is not None
    share = (style.sky - style.darkest) / (style.brightest - style.darkest)
    return float(softness * np.sinh(share / (1.0 - share) * np.arcsinh(white / softness)))


def curve(light: np.ndarray, softness: float, pedestal: float, white: float) -> np.ndarray:
    """Brightness from 0 to 1 of light above the sky.

    ``(asinh(x / q) + asinh(p / q)) / (asinh(w / q) + asinh(p / q))`` with softness ``q``, pedestal ``p`` and white
    ``w``: black at ``x = -p``, white at ``x = w``, steepest at the sky.
    """
    black = np.arcsinh(pedestal / softness)
    norm = np.arcsinh(white / softness) + black
    lifted = np.arcsinh(light * np.float32(1.0 / softness))
    return np.asarray(np.clip((lifted + np.float32(black)) * np.float32(1.0 / norm), 0.0, 1.0))


def paint(
    light: np.ndarray,
    colours: list[np.ndarray],
    softness: float,
    pedestal: float,
    white: float,
    style: PictureStyle,
    saturation: float = 1.0,
) -> np.ndarray:
    """Apply the curve to the light and carry the colours along.

    Parameters
    ----------
    light : ndarray, shape (h, w), float32
        Light above the sky.
    colours : list of ndarray, shape (h, w), float32
        What red and blue have more than the light; empty for a grey picture.
    saturation : float
        Factor of the saturation of the style.

    Returns
    -------
    ndarray, shape (3, h, w), float32
        In [0, 1].
    """
    bright = curve(light, softness, pedestal, white)
    low, range_ = np.float32(style.darkest), np.float32(style.brightest - style.darkest)
    if not colours:
        return np.broadcast_to(low + range_ * bright, (3, *bright.shape))
    norm = np.arcsinh(white / softness) + np.arcsinh(pedestal / softness)
    x = light * np.float32(1.0 / softness)
    # Colours follow the mean slope of the curve between the sky and this pixel; at the sky itself that is 1.
    slope = np.where(np.abs(x) > 1e-3, np.arcsinh(x) / np.where(x == 0, np.float32(1.0), x), np.float32(1.0))
    full = np.clip(x * np.float32(0.25), 0.0, 1.0)
    faint = np.float32(style.faint_saturation)
    slope *= (faint + np.float32(style.saturation - style.faint_saturation) * full) * np.float32(
        saturation / (norm * softness)
    )
    red, blue = colours[0] * slope, colours[1] * slope
    colour = np.stack([red, -red - blue, blue])
    # No star and hardly a nebula is green; what looks green is noise or the sensor's two green pixels in four.
    np.minimum(colour[1], np.maximum(red, blue), out=colour[1])
    # Nor are stars purple; they look it where interpolated red and blue are wider than green.
    colour[1] += _LESS_PURPLE * np.maximum(np.minimum(red, blue) - colour[1], np.float32(0.0))
    return low + range_ * _fit_into_range(bright, _soften_glare(bright, colour))


def _soften_glare(bright: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Limit colours softly, pale ones hardly at all; blue sooner than the others."""
    size = np.abs(colour).max(axis=0)
    blueness = np.clip((colour[2] - colour[0]) / np.maximum(size, np.float32(1e-9)), 0.0, 1.0)
    most = np.float32(1.0) - (np.float32(1.0) - _BLUEST) * blueness
    glare = size / (np.maximum(bright, np.float32(0.02)) * most)
    return np.asarray(colour / np.sqrt(np.float32(1.0) + glare * glare))


def _fit_into_range(bright: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Add colour to brightness; where a channel would leave [0, 1] it gives way to colour, or colour to it."""
    one, zero = np.float32(1.0), np.float32(0.0)
    room = one - bright
    most = np.maximum(colour.max(axis=0), np.float32(1e-6))
    least = np.maximum(-colour.min(axis=0), np.float32(1e-6))
    pale = bright + colour * np.minimum(np.minimum(room / most, bright / least), one)
    hued = np.maximum(bright + colour, zero)
    hued /= np.maximum(hued.max(axis=0), one)
    return np.asarray(pale + _KEEP_HUE * (hued - pale))
