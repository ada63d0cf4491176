"""Linear images to pictures: sky dark grey, stars coloured, missing pixels transparent. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zemosaic_core.statistics import clipped_median_sigma, strided_sample

__all__ = ["StretchParams", "auto_stretch_params", "preview_rgba", "stretch_auto_asifits_like"]

# Grey of the empty sky in the picture, 0 to 1: dark enough for a night, bright enough that nothing is lost.
_SKY_GREY = 0.12
# Tone of the high percentile: the arms of a galaxy, not its core.
_HIGH_TONE = 0.60
# Colours of bright parts are strengthened by this much; asinh curves make everything bright paler.
_SATURATION = 1.35
# How many sigma of noise lie between black and the sky. Fewer and the noise touches black.
_BLACK_SIGMA = 4.0
_MAX_SAMPLES = 400_000


@dataclass(frozen=True)
class StretchParams:
    """How a linear image becomes a picture.

    ``t = (gain * (v - sky) + pedestal) / span`` per channel, then ``asinh(t / a) / asinh(1 / a)`` on the
    brightness, colours kept.

    Attributes
    ----------
    sky : tuple of float
        Sky level per channel, image units.
    gain : tuple of float
        White balance per channel; 1 for the strongest correction-free channel.
    pedestal : float
        What is left below the sky, image units.
    span : float
        From black to white, image units.
    asinh_a : float
        Softening: small values lift the faint parts more.
    """

    sky: tuple[float, ...]
    gain: tuple[float, ...]
    pedestal: float
    span: float
    asinh_a: float


def stretch_auto_asifits_like(
    img_hwc: np.ndarray,
    p_low: float = 0.5,
    p_high: float = 99.8,
    asinh_a: float = 0.01,
    apply_wb: bool = True,
) -> np.ndarray:
    """Stretch each channel between two percentiles with an asinh curve.

    ``x = clip((v - P_low) / (P_high - P_low), 0, 1)``, then ``asinh(x / a) / asinh(1 / a)``. With white
    balance the channels are scaled so that their means agree with the highest one's.

    Parameters
    ----------
    img_hwc : ndarray, shape (h, w, C) or (h, w)
        Linear image; NaN means missing and is ignored in all statistics.
    p_low, p_high : float
        Percentiles that become black and white, 0 <= p_low < p_high <= 100.
    asinh_a : float
        Softening, > 0.
    apply_wb : bool
        Balance the channels.

    Returns
    -------
    ndarray, same shape, float32
        Values in [0, 1]; missing pixels stay NaN; a channel without contrast is 0.

    Raises
    ------
    ValueError
        For percentiles out of order or ``asinh_a`` not positive.
    """
    _check(p_low, p_high, asinh_a)
    image = np.asarray(img_hwc, dtype=np.float32)
    planes = image[..., None] if image.ndim == 2 else image
    result = np.empty_like(planes)
    for c in range(planes.shape[2]):
        sample = strided_sample(planes[..., c], _MAX_SAMPLES)
        low, high = np.percentile(sample, (p_low, p_high)) if sample.size else (0.0, 0.0)
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            result[..., c] = np.where(np.isfinite(planes[..., c]), np.float32(0.0), np.float32(np.nan))
            continue
        x = np.clip((planes[..., c] - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
        result[..., c] = np.arcsinh(x / np.float32(asinh_a)) / np.float32(np.arcsinh(1.0 / asinh_a))
    if apply_wb and planes.shape[2] > 1 and np.isfinite(result).any():
        means = np.array([_finite_mean(result[..., c]) for c in range(planes.shape[2])])
        scale = np.where(means > 1e-6, means.max() / np.maximum(means, 1e-6), 1.0)
        result = np.clip(result * scale.astype(np.float32), 0.0, 1.0)
    return result.reshape(image.shape)


def auto_stretch_params(
    image_chw: np.ndarray,
    *,
    p_low: float = 0.5,
    p_high: float = 99.8,
    asinh_a: float = 0.01,
    apply_wb: bool = True,
) -> StretchParams:
    """Choose sky, white balance, black and white of an image.

    Sky and noise of each channel are clipped statistics of the finite pixels, so neither missing pixels nor
    stars matter. White balance makes the sum of light above the sky (what stars and nebulae shine) neutral,
    within a factor of 3. Black is 4 sigma below the sky and never above percentile ``p_low``'s reach;
    white is percentile ``p_high``, but far enough above the sky to be a star and not noise.

    Parameters
    ----------
    image_chw : ndarray, shape (C, h, w)
        Linear image; NaN means missing.
    p_low, p_high : float
        Percentiles, 0 <= p_low < p_high <= 100.
    asinh_a : float
        Softening asked for; the picture's is chosen around it so that the sky comes out dark grey.
    apply_wb : bool
        Balance the channels.

    Returns
    -------
    StretchParams
        Neutral numbers when there is nothing finite.

    Raises
    ------
    ValueError
        For percentiles out of order or ``asinh_a`` not positive.
    """
    _check(p_low, p_high, asinh_a)
    planes = np.asarray(image_chw)
    samples = _matching_samples(planes)
    channels = planes.shape[0]
    if samples.shape[1] < 2:
        return StretchParams((0.0,) * channels, (1.0,) * channels, 0.0, 1.0, asinh_a)
    levels = [clipped_median_sigma(sample, clip_sigma=2.5) for sample in samples]
    sky = np.array([level for level, _ in levels])
    noise = np.array([sigma for _, sigma in levels])
    gain = _white_balance(samples - sky[:, None], noise) if apply_wb and channels > 1 else np.ones(channels)
    balanced = (samples - sky[:, None]) * gain[:, None]
    light = balanced.mean(axis=0)
    _, sigma = clipped_median_sigma(light, clip_sigma=2.5)
    sigma = max(sigma, 1e-6 * float(np.abs(sky).max()), 1e-12)
    pedestal = max(_BLACK_SIGMA * sigma, -float(np.percentile(light, p_low)))
    high = max(float(np.percentile(light, p_high)), 10.0 * sigma)
    span, softness = _choose_curve(pedestal, high, _SKY_GREY * (0.01 / asinh_a) ** 0.1)
    return StretchParams(
        sky=tuple(float(s) for s in sky),
        gain=tuple(float(g) for g in gain),
        pedestal=float(pedestal),
        span=float(span),
        asinh_a=float(softness / span),
    )


def preview_rgba(
    image_chw: np.ndarray,
    *,
    p_low: float = 0.5,
    p_high: float = 99.8,
    asinh_a: float = 0.01,
    apply_wb: bool = True,
    max_dim: int | None = 2000,
    params: StretchParams | None = None,
) -> np.ndarray:
    """Make a picture of a linear image.

    Parameters
    ----------
    image_chw : ndarray, shape (C, h, w) with C = 1 or 3, or (h, w)
        Linear image; NaN means missing.
    p_low, p_high, asinh_a, apply_wb
        As for `auto_stretch_params`.
    max_dim : int, optional
        Longest side of the picture; larger images are averaged down by a whole number. None: no limit.
    params : StretchParams, optional
        Use these numbers instead of choosing them (for example, to show two images alike).

    Returns
    -------
    ndarray, shape (h', w', 4), uint8
        Red, green, blue, alpha; alpha is 0 and the colour black where no finite pixel lies behind.

    Raises
    ------
    ValueError
        For a channel count other than 1 or 3.
    """
    image = np.asarray(image_chw)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image_chw must have shape (1 or 3, h, w), got {image.shape}")
    if max_dim is not None and max(image.shape[1:]) > max_dim:
        image = _bin_down(image, -(-max(image.shape[1:]) // max_dim))
    image = image.astype(np.float32, copy=False)
    if params is None:
        params = auto_stretch_params(image, p_low=p_low, p_high=p_high, asinh_a=asinh_a, apply_wb=apply_wb)
    valid = np.isfinite(image).all(axis=0)
    colour = _apply(image, params)
    rgba = np.zeros((*valid.shape, 4), dtype=np.uint8)
    for c in range(3):
        plane = colour[min(c, colour.shape[0] - 1)]
        rgba[..., c] = np.where(valid, np.floor(np.where(valid, plane, 0.0) * 255.0 + 0.5), 0.0)
    rgba[..., 3] = np.where(valid, np.uint8(255), np.uint8(0))
    return rgba


def _check(p_low: float, p_high: float, asinh_a: float) -> None:
    if not 0.0 <= p_low < p_high <= 100.0:
        raise ValueError(f"percentiles must satisfy 0 <= p_low < p_high <= 100, got {p_low} and {p_high}")
    if not asinh_a > 0.0:
        raise ValueError(f"asinh_a must be positive, got {asinh_a}")


def _finite_mean(plane: np.ndarray) -> float:
    finite = plane[np.isfinite(plane)]
    return float(finite.mean(dtype=np.float64)) if finite.size else 0.0


def _matching_samples(planes: np.ndarray) -> np.ndarray:
    """The same pixels of all channels, those finite in every channel: (C, k) float64."""
    flat = planes.reshape(planes.shape[0], -1)
    stride = max(1, -(-flat.shape[1] // _MAX_SAMPLES))
    stride += stride % 2 == 0 and stride > 1
    sample = flat[:, ::stride].astype(np.float64)
    return sample[:, np.isfinite(sample).all(axis=0)]


def _white_balance(light: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Gains that make the light well above the noise grey on average; 1 for all when there is none."""
    bright = (light > 6.0 * np.maximum(noise, 1e-12)[:, None]).all(axis=0)
    if np.count_nonzero(bright) < 50:
        return np.ones(light.shape[0])
    # Median of colour ratios: every bright pixel has one voice, so a saturated or huge star cannot decide.
    green = light[light.shape[0] // 2, bright]
    ratio = np.array([np.median(channel[bright] / green) for channel in light])
    return np.clip(1.0 / ratio, 1.0 / 3.0, 3.0)


def _choose_curve(pedestal: float, high: float, grey: float) -> tuple[float, float]:
    """Find span and softness that show the sky as ``grey`` and ``high`` above it as a bright tone.

    With ``f(t) = asinh(t / s) / asinh(span / s)`` the two conditions ``f(pedestal) = grey`` and
    ``f(pedestal + high) = _HIGH_TONE`` leave one equation for ``s``; its left side grows with ``s``::

        asinh((pedestal + high) / s) / asinh(pedestal / s) = _HIGH_TONE / grey

    The softness stays between 0.3 and 2.4 pedestals: below, noise is blown up; above, the picture would be
    linear and its stars white discs.
    """
    wanted = _HIGH_TONE / grey
    low, top = 0.3 * pedestal, 2.4 * pedestal
    for _ in range(40):
        middle = 0.5 * (low + top)
        if np.arcsinh((pedestal + high) / middle) / np.arcsinh(pedestal / middle) < wanted:
            low = middle
        else:
            top = middle
    softness = 0.5 * (low + top)
    return softness * float(np.sinh(np.arcsinh(pedestal / softness) / grey)), softness


def _bin_down(image: np.ndarray, factor: int) -> np.ndarray:
    """Average the finite pixels of ``factor`` x ``factor`` blocks; NaN where there is none.

    Only parts of the size of the result are ever converted, so a memory-mapped mosaic can be larger than RAM.
    """
    channels, height, width = image.shape
    rows, columns = -(-height // factor), -(-width // factor)
    total = np.zeros((channels, rows, columns), dtype=np.float32)
    count = np.zeros((channels, rows, columns), dtype=np.float32)
    for dy in range(factor):
        for dx in range(factor):
            part = image[:, dy::factor, dx::factor].astype(np.float32)
            seen = np.isfinite(part)
            total[:, : part.shape[1], : part.shape[2]] += np.where(seen, part, np.float32(0.0))
            count[:, : part.shape[1], : part.shape[2]] += seen
    return np.where(count > 0, total / np.maximum(count, 1.0), np.float32(np.nan))


def _apply(image: np.ndarray, params: StretchParams) -> np.ndarray:
    """Stretch the brightness and keep the colour; where a channel would pass white, fade towards white."""
    sky = np.asarray(params.sky, dtype=np.float32)[:, None, None]
    gain = np.asarray(params.gain, dtype=np.float32)[:, None, None]
    linear = (gain * (image - sky) + np.float32(params.pedestal)) / np.float32(params.span)
    brightness = linear.mean(axis=0)
    softness = np.float32(params.asinh_a)
    curve = np.arcsinh(np.maximum(brightness, 0.0) / softness) / np.arcsinh(np.float32(1.0) / softness)
    # The sky's own noise has no colour worth showing: full colour begins above the pedestal.
    floor = np.float32(params.pedestal / params.span)
    colour = linear * (curve / np.maximum(brightness, 0.35 * floor))
    if colour.shape[0] > 1:
        chroma = np.clip(0.35 + (brightness - floor) / (2.0 * floor), 0.35, _SATURATION)
        colour = _bring_into_range(np.maximum(curve + chroma * (colour - curve), 0.0))
    return np.clip(colour, 0.0, 1.0)


def _bring_into_range(colour: np.ndarray) -> np.ndarray:
    """Let pixels brighter than white keep half of their colour: star cores glow, but are not painted."""
    peak = np.maximum(colour.max(axis=0), np.float32(1.0))
    pure = colour / peak
    faded = np.minimum(colour, np.float32(1.0))
    return np.float32(0.65) * pure + np.float32(0.35) * faded
