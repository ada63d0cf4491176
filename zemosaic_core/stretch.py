"""Linear images to pictures: sky dark grey, stars coloured, missing pixels transparent. Arrays only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from zemosaic_core.apertures import aperture_fluxes
from zemosaic_core.background import sky_mesh
from zemosaic_core.binning import bin_down
from zemosaic_core.picture_calm import calm_light_and_colours
from zemosaic_core.picture_noise import NoiseMap, pixel_noise
from zemosaic_core.picture_smoothing import fill_from_around, smooth_known
from zemosaic_core.picture_style import STYLES, paint, pedestal_for_sky
from zemosaic_core.statistics import clipped_median_sigma, mad_sigma, strided_sample

__all__ = [
    "StretchMove",
    "StretchParams",
    "auto_stretch_params",
    "balance_channels",
    "percentile_limits",
    "preview_rgba",
    "stretch_auto_asifits_like",
]

# Softness of the curve in units of the noise, for strength 12.
_SOFTNESS_SIGMA = 3.0
_USUAL_STRENGTH = 12.0
_USUAL_P_LOW = 1.0
# Where the sky is uneven the curve is softer, up to this, or its darker parts would be black.
_MOST_SOFTNESS_SIGMA = 10.0
_SOFTNESS_UNEVEN = 1.35
_DARKEST_CELLS = 4.0
# A pixel this far above the sky shines; among those the white point is chosen.
_SHINING_SIGMA = 5.0
# White over noise: not less, or noise in a picture without light would glow; not more, or a picture without
# noise would show nothing but its faintest slopes.
_LEAST_RANGE = 200.0
_MOST_RANGE = 10_000.0
# Share of the cells of a mesh that is sky or darker, and of those the share that agrees best.
_DARK_CELLS = 0.7
_AGREEING_CELLS = 0.3
_SKY_CELL_PX = 48
_MIN_STARS = 12
_STAR_RADIUS_PX = 4.5
_STRIP = 128
# Resampling mixes pixels this far apart.
_MIXED_PX = 3
# Statistics are taken from a picture of at most this size.
_STATISTICS_PX = 3200
_MAX_SAMPLES = 400_000
# What a move of 1 does to the distance of black from the sky, to the softness and to white.
_DEEPEST, _MOST_BENT, _WHITEST = 8.0, 10.0**1.5, 10.0


@dataclass(frozen=True)
class StretchParams:
    """How a linear image becomes a picture.

    With ``x`` the mean over the channels of ``gain * (v - sky)`` and ``q = asinh_a * span`` the brightness is
    ``(asinh(x / q) + asinh(pedestal / q)) / (asinh((span - pedestal) / q) + asinh(pedestal / q))``: black at
    ``x = -pedestal``, white at ``x = span - pedestal``, steepest at the sky. Colours are kept.

    Attributes
    ----------
    sky : tuple of float
        Sky level per channel, image units.
    gain : tuple of float
        White balance per channel, mean 1.
    pedestal : float
        How far below the sky black lies, image units.
    span : float
        From black to white, image units.
    asinh_a : float
        Softness in units of ``span``: small values lift the faint parts more.
    style : str
        One of `picture_style.STYLES`.
    saturation : float
        Factor of the saturation of the style.
    """

    sky: tuple[float, ...]
    gain: tuple[float, ...]
    pedestal: float
    span: float
    asinh_a: float
    style: str = "natural"
    saturation: float = 1.0


@dataclass(frozen=True)
class StretchMove:
    """What a person changes about a stretch: four numbers from -1 to 1; at 0 it stays as it is.

    Attributes
    ----------
    black : float
        Positive deepens the shadows: black moves up towards the sky, to an eighth of its distance at 1.
    mid : float
        Positive brightens faint and middle light: at 1 the curve bends 32 times earlier.
    white : float
        Positive brightens bright light: at 1 a tenth of the light is white.
    saturation : float
        -1 is grey, 1 twice the colour of the style.
    """

    black: float = 0.0
    mid: float = 0.0
    white: float = 0.0
    saturation: float = 0.0

    def of(self, params: StretchParams) -> StretchParams:
        """Return a stretch moved; each number leaves alone what the others say.

        Raises
        ------
        ValueError
            A number is not from -1 to 1.
        """
        for name, value in vars(self).items():
            if not -1.0 <= value <= 1.0:
                raise ValueError(f"{name} must be from -1 to 1, got {value}")
        if self == StretchMove():
            return params
        softness = params.asinh_a * params.span * _MOST_BENT**-self.mid
        pedestal = params.pedestal * _DEEPEST**-self.black
        span = (params.span - params.pedestal) * _WHITEST**-self.white + pedestal
        return replace(
            params,
            pedestal=pedestal,
            span=span,
            asinh_a=softness / span,
            saturation=params.saturation * (1.0 + self.saturation),
        )


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
    for c, (low, high) in enumerate(percentile_limits(planes, p_low, p_high, asinh_a)):
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            result[..., c] = np.where(np.isfinite(planes[..., c]), np.float32(0.0), np.float32(np.nan))
            continue
        x = np.clip((planes[..., c] - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
        result[..., c] = np.arcsinh(x / np.float32(asinh_a)) / np.float32(np.arcsinh(1.0 / asinh_a))
    if apply_wb and planes.shape[2] > 1:
        result = balance_channels(result)
    return result.reshape(image.shape)


def percentile_limits(
    img_hwc: np.ndarray, p_low: float, p_high: float, asinh_a: float
) -> list[tuple[float, float]]:
    """Return black and white of `stretch_auto_asifits_like` per channel; equal where there is no value.

    Raises
    ------
    ValueError
        For percentiles out of order or ``asinh_a`` not positive.
    """
    _check(p_low, p_high, asinh_a)
    planes = img_hwc[..., None] if img_hwc.ndim == 2 else img_hwc
    limits = []
    for c in range(planes.shape[2]):
        sample = strided_sample(planes[..., c], _MAX_SAMPLES)
        low, high = np.percentile(sample, (p_low, p_high)) if sample.size else (0.0, 0.0)
        limits.append((float(low), float(high)))
    return limits


def balance_channels(curved_hwc: np.ndarray) -> np.ndarray:
    """Scale stretched channels so that their means agree with the highest one's; values stay in [0, 1]."""
    if not np.isfinite(curved_hwc).any():
        return curved_hwc
    means = np.array([_finite_mean(curved_hwc[..., c]) for c in range(curved_hwc.shape[2])])
    scale = np.where(means > 1e-6, means.max() / np.maximum(means, 1e-6), 1.0)
    return np.clip(curved_hwc * scale.astype(np.float32), 0.0, 1.0)


def auto_stretch_params(
    image_chw: np.ndarray,
    *,
    p_low: float = 1.0,
    p_high: float = 99.9,
    asinh_a: float = 12.0,
    apply_wb: bool = True,
    white_gains: tuple[float, ...] | None = None,
    style: str = "natural",
    move: StretchMove | None = None,
) -> StretchParams:
    """Choose sky, white balance, black, white and steepness for an image.

    The sky of each channel is that of the darker cells of a mesh, so a galaxy may fill most of the image.
    The noise is the scatter between neighbouring pixels. Missing pixels matter nowhere.

    Parameters
    ----------
    image_chw : ndarray, shape (C, h, w)
        Linear image; NaN means missing.
    p_low : float
        Percentile of the brightness of all pixels that becomes black, but not more than one softness below the
        sky. Of an even sky 1 % of the pixels lie 2.3 sigma below it; a higher percentile makes the sky darker,
        50 makes it black.
    p_high : float
        Percentile that becomes white, of the pixels that shine more than 5 sigma above the sky. Lower values
        make everything bright brighter and burn the cores out.
    asinh_a : float
        Strength of the stretch, > 0; at 12 the curve bends at 3 sigma of noise (later where the sky is uneven), at 24
        at half of that. More shows fainter nebulae and a brighter sky with more noise.
    apply_wb : bool
        Make the average star white; without, one unit of light counts alike in all channels. The sky becomes
        neutral either way.
    white_gains : tuple of float, optional
        White balance known from elsewhere, factors per channel; with `apply_wb` it is used instead of the average
        star.
    style : str
        One of `picture_style.STYLES`. In those that say how bright the sky is, `p_low` moves it in the same sense: at
        1 % it is as the style says.
    move : StretchMove, optional
        What a person changes about the choice.

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
    if max(planes.shape[1:]) > _STATISTICS_PX:
        planes = bin_down(planes, -(-max(planes.shape[1:]) // _STATISTICS_PX))
    known = np.isfinite(planes).all(axis=0)
    channels = planes.shape[0]
    move = move or StretchMove()
    if not known.any():
        return move.of(StretchParams((0.0,) * channels, (1.0,) * channels, 0.5, 1.0, 0.1, style))
    sky, unevenness = _sky_levels(planes, known)
    planes = np.where(known, planes - sky.astype(np.float32)[:, None, None], np.float32(0.0))
    weight = known.astype(np.float32)
    gain = np.ones(channels)
    if apply_wb and channels > 1:
        gain = np.array(white_gains) if white_gains else _white_balance(planes, weight)
    light = np.tensordot((gain / channels).astype(np.float32), planes, axes=1)
    noise = pixel_noise(light, weight)
    sigma = max(noise, 1e-6 * float(np.abs(sky).max()), 1e-12)
    values = strided_sample(np.where(known, light, np.float32(np.nan)), _MAX_SAMPLES).astype(np.float64)
    shining = values[values > _SHINING_SIGMA * sigma]
    white = max(float(np.percentile(shining, p_high)) if shining.size >= 30 else 0.0, _LEAST_RANGE * sigma)
    unit = max(sigma, white / _MOST_RANGE)
    usual = min(max(_SOFTNESS_SIGMA * unit, _SOFTNESS_UNEVEN * unevenness), _MOST_SOFTNESS_SIGMA * unit)
    # A picture without noise has a sky all the same.
    below = -float(np.percentile(values, p_low)) * unit / sigma if noise > 0 else _SOFTNESS_SIGMA * unit
    pedestal = min(max(below, 0.0), usual)
    kind = STYLES[style]
    softness = usual * kind.softness * _USUAL_STRENGTH / asinh_a
    if kind.sky is not None:
        usual_below = -float(np.percentile(values, _USUAL_P_LOW))
        share = max(-float(np.percentile(values, p_low)) / usual_below, 0.0) if usual_below > 0 else 1.0
        pedestal = share * pedestal_for_sky(softness, white, kind)
    params = StretchParams(
        sky=tuple(float(s) for s in sky),
        gain=tuple(float(g) for g in gain),
        pedestal=pedestal,
        span=white + pedestal,
        asinh_a=softness / (white + pedestal),
        style=style,
    )
    return move.of(params)


def preview_rgba(
    image_chw: np.ndarray,
    *,
    p_low: float = 1.0,
    p_high: float = 99.9,
    asinh_a: float = 12.0,
    apply_wb: bool = True,
    white_gains: tuple[float, ...] | None = None,
    max_dim: int | None = 2000,
    params: StretchParams | None = None,
    calm_noise: bool | None = None,
    noise: NoiseMap | None = None,
    clipped: np.ndarray | None = None,
    style: str = "natural",
    bits: int = 8,
    threads: int = 1,
) -> np.ndarray:
    """Make a picture of a linear image.

    Parameters
    ----------
    image_chw : ndarray, shape (C, h, w) with C = 1 or 3, or (h, w)
        Linear image; NaN means missing.
    p_low, p_high, asinh_a, apply_wb, white_gains, style
        As for `auto_stretch_params`.
    max_dim : int, optional
        Longest side of the picture; larger images are averaged down by a whole number. None: no limit.
    params : StretchParams, optional
        Use these numbers instead of choosing them (for example, to show two images alike).
    calm_noise : bool, optional
        Take most of the noise out of the picture. None: only when the numbers are chosen here, because the parts
        of a larger picture would no longer fit together.
    noise : NoiseMap, optional
        Noise of the image's pixels from elsewhere. What scatters more is not noise but stars that cannot be told apart.
    clipped : ndarray, shape (h, w), bool, optional
        Where the sensor could not hold the light: such pixels take the colour of their surroundings.
    bits : int
        8 or 16.
    threads : int
        How many work on it; the picture is the same.

    Returns
    -------
    ndarray, shape (h', w', 4), uint8 or uint16
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
        step = -(-max(image.shape[1:]) // max_dim)
        image = bin_down(image, step)
        noise = noise.reduced(step) if noise is not None else None
        clipped = None if clipped is None else bin_down(clipped[None], step)[0] > 0
    image = image.astype(np.float32, copy=False)
    if calm_noise is None:
        calm_noise = params is None
    if params is None:
        params = auto_stretch_params(
            image,
            p_low=p_low,
            p_high=p_high,
            asinh_a=asinh_a,
            apply_wb=apply_wb,
            white_gains=white_gains,
            style=style,
        )
    known = np.isfinite(image).all(axis=0)
    light, colours = _light_and_colour(image, known, params)
    del image
    if calm_noise and known.any():
        light, colours = calm_light_and_colours(
            light, colours, known, *_noise_of_parts(noise, params, known.shape), threads=threads
        )
    if clipped is not None and clipped.any():
        colours = _colours_of_surroundings(light, colours, clipped)
    top = 2**bits - 1
    rgba = np.empty((*known.shape, 4), dtype=np.uint8 if bits == 8 else np.uint16)

    def paint_strip(y: int) -> None:
        rows = slice(y, y + _STRIP)
        picture = paint(
            light[rows],
            [colour[rows] for colour in colours],
            params.asinh_a * params.span,
            params.pedestal,
            params.span - params.pedestal,
            STYLES[params.style],
            params.saturation,
        )
        rgba[rows, :, :3] = np.moveaxis(np.where(known[rows], picture, 0.0) * float(top) + 0.5, 0, -1)

    # By strips, so that the many steps of colouring need no further copies of the whole picture.
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(paint_strip, range(0, known.shape[0], _STRIP)))
    rgba[..., 3] = np.where(known, top, 0)
    rgba[~known] = 0
    return rgba


def _check(p_low: float, p_high: float, asinh_a: float) -> None:
    if not 0.0 <= p_low < p_high <= 100.0:
        raise ValueError(f"percentiles must satisfy 0 <= p_low < p_high <= 100, got {p_low} and {p_high}")
    if not asinh_a > 0.0:
        raise ValueError(f"asinh_a must be positive, got {asinh_a}")


def _finite_mean(plane: np.ndarray) -> float:
    finite = plane[np.isfinite(plane)]
    return float(finite.mean(dtype=np.float64)) if finite.size else 0.0


def _sky_levels(planes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Level of the sky per channel, (C,) float64, and how far below it the darkest parts of the sky lie."""
    cell = int(np.clip(min(known.shape) // 8, 4, _SKY_CELL_PX))
    mesh = sky_mesh(np.where(known, planes, np.float32(np.nan)), cell).reshape(planes.shape[0], -1)
    mesh = mesh[:, np.isfinite(mesh).all(axis=0)].astype(np.float64)
    if mesh.shape[1] < 4:
        return np.array([clipped_median_sigma(plane[known], clip_sigma=2.5)[0] for plane in planes]), 0.0
    # All channels in the same cells, or a coloured nebula would tint the sky.
    light = mesh.mean(axis=0)
    order = np.argsort(light, kind="stable")
    dark = light[order[: max(3, int(_DARK_CELLS * order.size))]]
    count = max(2, int(_AGREEING_CELLS * order.size))
    first = int(np.argmin(dark[count - 1 :] - dark[: dark.size - count + 1]))
    agreeing = order[first : first + count]
    below = float(np.median(light[agreeing]) - np.percentile(light, _DARKEST_CELLS))
    return np.median(mesh[:, agreeing], axis=1), below


def _white_balance(planes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gains that make the average star white, mean 1; the light of nebulae decides where stars are missing."""
    light = planes.mean(axis=0)
    smooth = light
    for spacing in (1, 2, 4):
        smooth = smooth_known(smooth, weight, spacing)
    detail = light - smooth
    noise = max(mad_sigma(strided_sample(detail[weight > 0], _MAX_SAMPLES)), 1e-12)
    peak = (detail > 12.0 * noise) & (detail == ndimage.maximum_filter(detail, size=9)) & (weight > 0)
    # Stars that a sensor could not hold have no colour: the brightest of all say where that begins.
    peak &= light < 0.5 * light.max()
    y, x = np.nonzero(peak)
    flux = aperture_fluxes(planes, x, y, _STAR_RADIUS_PX, gap_px=2.0).astype(np.float64)
    flux = flux[:, (flux > 0).all(axis=0)]
    if flux.shape[1] < _MIN_STARS:
        bright = (planes > 0).all(axis=0) & (light > 6.0 * noise)
        flux = planes[:, bright].astype(np.float64)
        if flux.shape[1] < 50:
            return np.ones(planes.shape[0])
    # Median of colour ratios: every star has one voice, so a huge one cannot decide.
    ratio = np.median(flux / flux.mean(axis=0), axis=1)
    gain = np.clip(ratio.mean() / ratio, 1.0 / 3.0, 3.0)
    return gain / gain.mean()


def _light_and_colour(
    image: np.ndarray, known: np.ndarray, params: StretchParams
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Balanced light above the sky, and what red and blue have more than it; 0 where missing."""
    zero = np.float32(0.0)
    planes = [
        np.where(known, np.float32(gain) * (plane - np.float32(sky)), zero)
        for plane, gain, sky in zip(image, params.gain, params.sky, strict=True)
    ]
    if len(planes) == 1:
        return planes[0], []
    light = (planes[0] + planes[1] + planes[2]) * np.float32(1.0 / 3.0)
    return light, [planes[0] - light, planes[2] - light]


def _noise_of_parts(
    noise: NoiseMap | None, params: StretchParams, shape_hw: tuple[int, int]
) -> tuple[np.ndarray | None, list[np.ndarray] | None]:
    """Noise of the light and of the colours that `_light_and_colour` makes."""
    if noise is None:
        return None, None
    gain = params.gain
    if len(gain) == 1:
        return noise.of_sum(gain, shape_hw), []
    third = [g / 3.0 for g in gain]
    colours = [
        noise.of_sum(tuple(3.0 * t - t if c == k else -t for c, t in enumerate(third)), shape_hw)
        for k in (0, 2)
    ]
    return noise.of_sum(tuple(third), shape_hw), colours


def _colours_of_surroundings(
    light: np.ndarray, colours: list[np.ndarray], clipped: np.ndarray
) -> list[np.ndarray]:
    """Give clipped pixels, and those that resampling mixed with them, the colours of what is around."""
    mixed = ndimage.binary_dilation(clipped, iterations=_MIXED_PX)
    shining = np.maximum(light, np.float32(1e-6))
    # The brighter a pixel beside the core the more its colour is the star's and the less the sky's.
    weight = np.where(mixed | (light <= 0), np.float32(0.0), shining / np.float32(light.max()))
    inside = ~mixed
    near = ndimage.binary_dilation(mixed, iterations=_MIXED_PX) & inside
    weight = np.where(near, weight, np.float32(0.0))
    use = inside.astype(np.float32)
    share = np.maximum(fill_from_around(weight, use, mixed), np.float32(1e-9))
    given = []
    for colour in colours:
        ratio = np.where(mixed, np.float32(0.0), np.clip(colour / shining, -1.0, 2.0))
        total = fill_from_around(ratio * weight, use, mixed)
        given.append(np.where(mixed, light * total / share, colour))
    return given
