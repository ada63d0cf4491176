"""Which frames may be compared: those that one camera took in one night in one way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from zemosaic_io.headers import FrameInfo

__all__ = ["camera_labels", "mixture_text", "night_labels", "sensor_labels", "session_labels", "setup_labels"]

# Solvers and capture programs that measure the focal length tell it anew for each frame; another telescope differs
# by more than this.
SCALE_STEP = 1.05


def session_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame, the same for frames of one session.

    A session is one camera on one telescope, one night, exposure, gain, filter and binning: what differs between
    its frames is the air, the focus and the tracking, so its frames are judged against each other.

    Returns
    -------
    list of int
        0 for the session of the first frame, then counting up in the order in which sessions appear.
    """
    return _numbers([(*setup, info.night) for setup, info in zip(_setups(infos), infos, strict=True)])


def setup_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame, the same for sessions that differ in nothing but the night.

    Star fluxes of such frames may be compared: what dims them is the air.
    """
    return _numbers(_setups(infos))


def night_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame, the same for frames of one camera and night, whatever exposure or filter."""
    return _numbers([(*camera, info.night) for camera, info in zip(_cameras(infos), infos, strict=True)])


def camera_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame, the same for frames of one camera on one telescope: one vignetting."""
    return _numbers(_cameras(infos))


def sensor_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame, the same for frames of one camera, gain and kind of frame, whatever their light.

    Their light is cut off at the same level.
    """
    return _numbers(
        [(*camera, info.gain, info.is_stack) for camera, info in zip(_cameras(infos), infos, strict=True)]
    )


def mixture_text(infos: Sequence[FrameInfo], *, except_filter: bool = False) -> str:
    """Say in what way frames were not taken alike, in words of the FITS header; '' when they were.

    With ``except_filter`` each filter has a mosaic of its own, and only what differs within one of them counts.

    Returns
    -------
    str
        For instance ``FILTER IRCUT (8), LP (6); EXPTIME 10 (9), 30 (5)``, the most frequent first.
    """
    if except_filter:
        filters = sorted({info.filter_name.casefold() for info in infos})
        own = {name: [i for i in infos if i.filter_name.casefold() == name] for name in filters}
        texts = {name: mixture_text(same) for name, same in own.items() if len(same) > 1}
        return "; ".join(f"{own[name][0].filter_name or '-'}: {text}" for name, text in texts.items() if text)
    kinds = {
        "TELESCOP": [info.telescope for info in infos],
        "INSTRUME": [info.instrument for info in infos],
        "FILTER": _one_spelling([info.filter_name for info in infos]),
        "EXPTIME": ["" if info.exposure_s is None else f"{info.exposure_s:.2g}" for info in infos],
        "GAIN": ["" if info.gain is None else f"{info.gain:g}" for info in infos],
        "XBINNING": [str(info.binning) for info in infos],
        "NAXIS": [_sensor_text(info) for info in infos],
    }
    parts = []
    for card, values in kinds.items():
        counts = Counter(values).most_common()
        if len(counts) > 1:
            parts.append(card + " " + ", ".join(f"{value or '-'} ({n})" for value, n in counts))
    return "; ".join(parts)


def _sensor_text(info: FrameInfo) -> str:
    """Return width and height of a frame from a sensor; '' of pictures and stacks, which programs cut as they like."""
    height, width = info.shape_hw
    return "" if info.kind == "rgb" or info.is_stack else f"{width}x{height}"


def _one_spelling(names: Sequence[str]) -> list[str]:
    """Spell names that differ in case alike, as most of them are."""
    best: dict[str, str] = {}
    for name, _ in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])):
        best.setdefault(name.casefold(), name)
    return [best[name.casefold()] for name in names]


def _cameras(infos: Sequence[FrameInfo]) -> list[tuple[Hashable, ...]]:
    return [
        (info.instrument, info.telescope, info.kind, info.shape_hw, info.binning, scale)
        for info, scale in zip(infos, _scale_classes(infos), strict=True)
    ]


def _setups(infos: Sequence[FrameInfo]) -> list[tuple[Hashable, ...]]:
    return [
        (
            *camera,
            # Two digits: timers that write 9.98 or 10.02 s mean 10 s.
            None if info.exposure_s is None else f"{info.exposure_s:.2g}",
            info.gain,
            info.filter_name.casefold(),
            # A stack is deeper than a frame of the same camera, and its noise another.
            info.stack_count,
        )
        for camera, info in zip(_cameras(infos), infos, strict=True)
    ]


def _scale_classes(infos: Sequence[FrameInfo]) -> list[int]:
    """Return which scale each frame has, counting gaps of `SCALE_STEP`; frames without one join the largest class."""
    scales = np.array([np.nan if info.scale_arcsec is None else info.scale_arcsec for info in infos], float)
    classes = np.zeros(len(scales), dtype=np.int64)
    known = np.flatnonzero(np.isfinite(scales) & (scales > 0))
    if len(known):
        order = known[np.argsort(scales[known], kind="stable")]
        steps = np.diff(scales[order], prepend=scales[order[0]])
        classes[order] = np.cumsum(steps > (SCALE_STEP - 1.0) * scales[order])
        unknown = np.setdiff1d(np.arange(len(scales)), known)
        classes[unknown] = np.bincount(classes[known]).argmax()
    return classes.tolist()


def _numbers(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
