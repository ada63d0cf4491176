"""Tell frames of the sky from darks, flats, biases and thumbnails, by what the header, the folder and the name say.

A header that says what a frame is decides. Names count only when they can mean nothing else: "Dark Horse Nebula" is
an object, "darks_30s" is not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from zemosaic_core.errors import SkipItem
from zemosaic_io.headers import FrameInfo

__all__ = ["calibration_kind", "refuse_other_than_light", "says_light"]

_CALIBRATION_TYPE = re.compile(r"dark|flat|bias|\boffset|\bzero", re.IGNORECASE)
_LIGHT_TYPE = re.compile(r"light|object|science", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
# These words say it alone, whatever stands beside them.
_PLAIN = frozenset({"darks", "flats", "biases", "darkflats", "flatdarks", "offsets", "cali"})
_THUMBNAIL = frozenset({"thn", "thumb", "thumbs", "thumbnail", "thumbnails"})
# These could be part of an object's name: all other words have to be of the calibration kind.
_KINDS = frozenset({"dark", "flat", "bias", "offset", "darkflat", "flatdark", "calibration"})
_BESIDE_TEXT = """
master masters frame frames library lib raw files set session exp exposure gain iso bin binning temp t g
tele wide cam camera ccd sensor dwarf seestar mono color colour n o s fit fits neg minus deg
"""
_BESIDE = frozenset(_BESIDE_TEXT.split())
_QUANTITY = re.compile(r"([a-z]*)\d+(s|sec|secs|ms|min|c|deg|k|e|x\d+|t\d*)?")


def refuse_other_than_light(info: FrameInfo, root: Path | None = None) -> None:
    """Raise when a frame does not show the sky.

    Parameters
    ----------
    info : FrameInfo
        What the header says.
    root : Path, optional
        The folder that was searched: what it and the folders above are called says nothing. None: no folder counts.

    Raises
    ------
    SkipItem
        ``frame_not_light`` (the header says so), ``frame_not_light_folder`` or ``frame_not_light_name``.
    """
    is_light = says_light(info)
    if not is_light and _CALIBRATION_TYPE.search(info.image_type):
        raise SkipItem(
            "frame_not_light",
            f"{info.path}: the header calls it {info.image_type}",
            path=str(info.path),
            type=info.image_type,
        )
    name = _stem(info.path.name)
    if _is_thumbnail(name) or (not is_light and _is_calibration(name)):
        raise SkipItem(
            "frame_not_light_name", f"{info.path}: its name says it is no light frame", path=str(info.path)
        )
    if is_light:
        return
    for folder in _folders_below(info.path, root):
        if _is_calibration(folder) or _is_thumbnail(folder):
            raise SkipItem(
                "frame_not_light_folder",
                f"{info.path}: its folder {folder!r} holds no light frames",
                path=str(info.path),
                folder=folder,
            )


def says_light(info: FrameInfo) -> bool:
    """Tell whether the header calls the frame a light frame."""
    return bool(_LIGHT_TYPE.match(info.image_type))


def calibration_kind(info: FrameInfo, root: Path | None = None) -> Literal["bias", "dark", "flat"] | None:
    """Return what kind of calibration frame header, name or folders (the nearest first) say it is; None: none.

    Darks for flats are darks. ``root`` as in `refuse_other_than_light`.
    """
    if says_light(info):
        return None
    if kind := _kind_of(info.image_type):
        return kind
    for name in (_stem(info.path.name), *reversed(_folders_below(info.path, root))):
        if _is_calibration(name) and (kind := _kind_of(name)):
            return kind
    return None


def _kind_of(text: str) -> Literal["bias", "dark", "flat"] | None:
    lowered = text.lower()
    if "dark" in lowered:
        return "dark"
    if "flat" in lowered:
        return "flat"
    return "bias" if re.search(r"bias|offset|\bzero", lowered) else None


def _stem(name: str) -> str:
    return re.sub(r"(\.(fits?|fts|fz|gz))+\Z", "", name, flags=re.IGNORECASE)


def _folders_below(path: Path, root: Path | None) -> tuple[str, ...]:
    if root is None:
        return ()
    try:
        return path.relative_to(root).parts[:-1]
    except ValueError:
        return ()


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(_CAMEL.sub(" ", name))]


def _is_thumbnail(name: str) -> bool:
    return any(word in _THUMBNAIL for word in _words(name))


def _is_calibration(name: str) -> bool:
    words = _words(name)
    if any(word in _PLAIN for word in words):
        return True
    return any(word in _KINDS for word in words) and all(
        word in _KINDS or word in _BESIDE or _is_quantity(word) for word in words
    )


def _is_quantity(word: str) -> bool:
    """Tell ``30s``, ``gain80`` and ``0007`` from ``m31``."""
    match = _QUANTITY.fullmatch(word)
    return match is not None and (match[1] == "" or match[1] in _BESIDE)
