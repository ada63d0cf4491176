"""Which frames of a session stand out so badly that they are better left out. Arrays only.

The shape of stars is known as soon as a frame was looked at. How clear the air was is known once the stars that frames
have in common were found; how many stars a frame shows says nothing of it, because sharpness, sampling and the
field count as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zemosaic_core.statistics import MAD_TO_SIGMA, mad_sigma

__all__ = [
    "air_verdicts",
    "clouded_frames",
    "common_star_transparency",
    "counts_at_common_limit",
    "relative_transparency",
    "shape_verdicts",
]

# Scatter, in natural logarithms, that is harmless anyway: 5 % wider stars are ordinary air, 12 % less light is haze
# that weights can deal with.
_SHAPE_FLOOR = 0.05
_SKY_FLOOR = 0.12
_CLEAR_FLOOR = 0.12
# With fewer frames nobody can tell which one stands out.
_FEWEST = 3
# A session this small is judged with the whole night: seeing and focus do not know about exposures.
_SMALL_SESSION = 6
# Of a normal distribution: upper quartile, and the MAD of the upper half about its own median, in sigma.
_UPPER_QUARTILE = 0.67449
_UPPER_HALF_MAD = 0.39913
_FEWEST_COMMON_STARS = 3
_COMPLETE_SNR = 10.0


def shape_verdicts(
    fwhm_px: npt.ArrayLike,
    elongation: npt.ArrayLike,
    *,
    sessions: Sequence[int],
    nights: Sequence[int],
    sigma: float = 4.0,
) -> list[str]:
    """Compare the stars of each frame with those of its session and say what is wrong with the bad frames.

    Quantities are compared on a logarithmic scale with the median; the scatter is the median absolute deviation,
    but never less than what is harmless.

    Parameters
    ----------
    fwhm_px, elongation : array_like, shape (n,)
        Width that the sharper quarter of a frame's stars stays below, and median elongation; NaN when unknown.
    sessions, nights : sequence of int
        Labels: frames of one session are compared; in sessions of fewer than six frames those of one night.
    sigma : float
        How far a frame may stand out.

    Returns
    -------
    list of str
        'frame_trailed', 'frame_defocused', or '' for good frames.
    """
    session, night = np.asarray(sessions, dtype=np.int64), np.asarray(nights, dtype=np.int64)
    small = np.bincount(session, minlength=1)[session] < _SMALL_SESSION

    def excess(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        logs = _logs(values)
        return np.where(small, _excess(logs, night, _SHAPE_FLOOR), _excess(logs, session, _SHAPE_FLOOR))

    trailed, wide = excess(elongation) > sigma, excess(fwhm_px) > sigma
    return _first_named(("frame_trailed", trailed), ("frame_defocused", wide))


def air_verdicts(
    transparency: npt.ArrayLike,
    sky_adu_s: npt.ArrayLike,
    *,
    sessions: Sequence[int],
    pointings: Sequence[int],
    sigma: float = 4.0,
) -> list[str]:
    """Say of which frames the air was far worse than of the others of their session.

    Parameters
    ----------
    transparency : array_like, shape (n,)
        As in `clouded_frames`.
    sky_adu_s : array_like, shape (n,)
        Sky of a frame, ADU per second.
    sessions, pointings : sequence of int
        Labels: stars are compared within a session, the sky within a session and pointing.
    sigma : float
        How far a frame may stand out.

    Returns
    -------
    list of str
        'frame_clouded', 'frame_bright_sky', or '' for good frames.
    """
    clouded = clouded_frames(transparency, sessions=sessions, sigma=sigma)
    same_field = _pairs(np.asarray(sessions, dtype=np.int64), np.asarray(pointings, dtype=np.int64))
    bright = _excess(_logs(sky_adu_s), same_field, _SKY_FLOOR) > sigma
    return _first_named(("frame_clouded", clouded), ("frame_bright_sky", bright))


def clouded_frames(
    transparency: npt.ArrayLike, *, sessions: Sequence[int], sigma: float = 4.0
) -> npt.NDArray[np.bool_]:
    """Tell frames through clouds: the stars they share with their session are far dimmer than through its clear air.

    The clearer half of a session says how clear its air was and how much that scatters, as if it were the upper half
    of a normal distribution: clouds through the other half do not make themselves ordinary. Air that gets slowly
    thicker through the night scatters and is kept.

    Parameters
    ----------
    transparency : array_like, shape (n,)
        Flux of a frame's stars relative to the same stars in other frames, on any common scale within a session;
        NaN when unknown: such frames are not judged.
    sessions : sequence of int
        Label of each frame's session.
    sigma : float
        How far a frame may stand out.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    logs = _logs(transparency)
    labels = np.asarray(sessions, dtype=np.int64)
    clouded = np.zeros(logs.size, dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & np.isfinite(logs))
        if len(members) < _FEWEST:
            continue
        values = logs[members]
        clear = values[values >= np.median(values)]
        scatter = mad_sigma(clear) / MAD_TO_SIGMA / _UPPER_HALF_MAD
        middle = np.median(clear) - _UPPER_QUARTILE * scatter
        clouded[members] = values < middle - sigma * max(_CLEAR_FLOOR, scatter)
    return clouded


def counts_at_common_limit(
    flux: Sequence[npt.NDArray[np.floating]], snr: Sequence[npt.NDArray[np.floating]], sessions: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Count the stars of each frame down to a flux that three quarters of its session show completely.

    Parameters
    ----------
    flux, snr : sequence of ndarray, shape (n_i,)
        Flux and signal to noise of the stars of each frame.
    sessions : sequence of int
        Label of each frame's session.

    Returns
    -------
    ndarray, shape (n,), int64
    """
    labels = np.asarray(sessions, dtype=np.int64)
    # Down to a signal to noise of ten hardly a star is missed, and the list of a rich field may end before.
    limits = np.array([_complete_flux(own, ratio) for own, ratio in zip(flux, snr, strict=True)])
    counts = np.zeros(labels.size, dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        known = limits[members][np.isfinite(limits[members])]
        limit = np.quantile(known, 0.75) if known.size else np.inf
        counts[members] = [np.count_nonzero(flux[i] >= limit) for i in members.tolist()]
    return counts


def _complete_flux(flux: npt.NDArray[np.floating], snr: npt.NDArray[np.floating]) -> float:
    if not flux.size:
        return float("nan")
    return max(float(np.median(flux / np.maximum(snr, 1e-3))) * _COMPLETE_SNR, float(flux.min()))


def relative_transparency(transparency: npt.ArrayLike, labels: Sequence[int]) -> npt.NDArray[np.float64]:
    """Divide by the median of the clearer half of all frames with the same label, shape (n,); NaN stays NaN."""
    values = np.array(transparency, dtype=np.float64)
    groups = np.asarray(labels, dtype=np.int64)
    for label in np.unique(groups):
        known = (groups == label) & np.isfinite(values)
        if known.any():
            clear = values[known] >= np.median(values[known])
            values[known] /= np.median(values[known][clear])
    return values


def common_star_transparency(
    frame_index: npt.ArrayLike,
    star_index: npt.ArrayLike,
    flux: npt.ArrayLike,
    gains: npt.ArrayLike,
    linked: npt.ArrayLike,
    n_stars: int,
) -> npt.NDArray[np.float64]:
    """Return how much of the light of its stars each frame saw, on the scale of the frames whose gains are known.

    Parameters
    ----------
    frame_index, star_index : array_like, shape (K,), int
        Which frame saw which star.
    flux : array_like, shape (K,)
        What it measured, all of it, faint stars too; NaN or <= 0 where unknown.
    gains : array_like, shape (N,)
        Factor that brings a frame to the common scale.
    linked : array_like of bool, shape (N,)
        Whether the gain is known. It takes bright stars; what is seen through thick clouds has none.
    n_stars : int

    Returns
    -------
    ndarray, shape (N,), float64
        1 / gain where that is known. Else the median, over the frame's stars that linked frames know, of its flux
        over theirs; NaN with fewer than three such stars.
    """
    frame, star = np.asarray(frame_index, dtype=np.int64), np.asarray(star_index, dtype=np.int64)
    values = np.asarray(flux, dtype=np.float64)
    gain, known = np.asarray(gains, dtype=np.float64), np.asarray(linked, dtype=bool)
    result = np.where(known, 1.0 / gain, np.nan)
    with np.errstate(invalid="ignore"):
        usable = values > 0
    theirs = usable & known[frame]
    level = _medians(star[theirs], values[theirs] * gain[frame[theirs]], n_stars)
    own = usable & ~known[frame] & np.isfinite(level[star])
    ratio = _medians(frame[own], values[own] / level[star[own]], gain.size)
    enough = np.bincount(frame[own], minlength=gain.size) >= _FEWEST_COMMON_STARS
    return np.where(known, result, np.where(enough, ratio, np.nan))


def _medians(
    index: npt.NDArray[np.int64], values: npt.NDArray[np.float64], n: int
) -> npt.NDArray[np.float64]:
    """Median of the values of each index, shape (n,); NaN without values."""
    result = np.full(n, np.nan)
    order = np.lexsort((values, index))
    index, values = index[order], values[order]
    which, start, count = np.unique(index, return_index=True, return_counts=True)
    result[which] = 0.5 * (values[start + (count - 1) // 2] + values[start + count // 2])
    return result


def _first_named(*masks: tuple[str, npt.NDArray[np.bool_]]) -> list[str]:
    """Name of the first mask that is set for each frame, '' where none is."""
    return [next((key for key, mask in masks if mask[i]), "") for i in range(masks[0][1].size)]


def _logs(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    given = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(given > 0, np.log(given), np.nan)


def _pairs(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One label for each pair of labels."""
    if not first.size:
        return first
    return np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _excess(
    logs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], floor: float
) -> npt.NDArray[np.float64]:
    """Distance from the median of the group in units of the scatter; 0 when unknown."""
    result = np.zeros(logs.size)
    for label in np.unique(labels):
        known = np.flatnonzero((labels == label) & np.isfinite(logs))
        if len(known) < _FEWEST:
            continue
        values = logs[known]
        result[known] = (values - np.median(values)) / max(floor, mad_sigma(values))
    return result
