"""What the header of a frame means: geometry, colours, hints and existing WCS, as smart telescopes write them."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from zemosaic_core.errors import SkipItem
from zemosaic_core.night_sky import julian_year
from zemosaic_core.wcs_cards import WcsCards
from zemosaic_io.compressed_tiles import check_compressed
from zemosaic_io.fits_cards import HduInfo, iter_hdus
from zemosaic_io.header_values import PATTERNS, angle_deg, known_telescope, stated_pattern
from zemosaic_io.wcs_read import celestial_cards, linear_centre, linear_scale_arcsec

__all__ = [
    "FrameInfo",
    "frame_from_json",
    "frame_to_json",
    "read_frame_info",
]

_POINTING_KEYS = (
    ("RA", "DEC"),
    ("OBJCTRA", "OBJCTDEC"),
    ("FOVRA", "FOVDEC"),
    ("TELRA", "TELDEC"),
    ("CRVAL1", "CRVAL2"),
)
_SCALE_KEYS = ("PIXSCAL1", "PIXSCALE", "SCALE", "SECPIX", "IM_SCALE")
_MOST_STACKED = 1e6
# Digital frames were taken in these years.
_FIRST_YEAR, _LAST_YEAR = 1900, 2999
# Outside these years a date is that of a clock that was never set; stars must not be moved by it.
_FIRST_MOVING_YEAR, _LAST_MOVING_YEAR = 1981, 2099
# Smart telescopes have been sold since 2020; the catalogue's places of 25 years before are off by 0.25 arcsec in the
# median field.
_USUAL_EPOCH = 2025.0
# What many frames have in common.
_ALIKE = (
    "shape_hw", "kind", "cfa_pattern", "bzero", "bscale", "axes", "instrument", "exposure_s", "filter_name", "gain",
    "object_name", "image_type", "scale_arcsec", "night", "telescope", "stack_exposure_s", "site_deg", "offset",
    "calibrated", "row_order", "size_bytes", "data_offset",
)  # fmt: skip
_SHARED: dict[str, Any] = {}
_MAX_SHARED = 4096
_FILE_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)[-_T](\d\d)(\d\d)(\d\d)")


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """Everything the header says about one frame; picklable, hashable by path.

    A run keeps one of each frame, in 1.5 kB: frames share what they have in common.

    Attributes
    ----------
    path : Path
        The file; never written to.
    size_bytes, mtime_ns, ctime_ns, inode : int
        State of the file when it was read; what the last two mean, and whether they last, is the system's business.
    shape_hw : tuple of int
        Height and width, px.
    kind : {'cfa', 'rgb', 'mono'}
        Undebayered colour, three planes, or one plane.
    cfa_pattern : str
        Colours of the 2x2 cell at array pixel (0, 0), read row by row; '' unless ``kind == 'cfa'``.
    bitpix : int
        FITS type of the pixels (of the decompressed ones for ``.fz``).
    bzero, bscale : float
        Physical value = ``bscale * stored + bzero``.
    blank : int or None
        Stored integer that stands for a missing pixel.
    hdu : int
        Header-data unit with the image.
    data_offset : int
        Byte of the first stored pixel, -1 when the image is compressed.
    axes : {'hw', 'chw', 'hwc'}
        Order of the stored axes, slowest first.
    n_stored_planes : int
        Planes in the file; a fourth one (alpha) is ignored.
    instrument, filter_name, object_name, image_type : str
        As in the header, stripped; '' when missing.
    exposure_s : float or None
        Exposure of one frame.
    date_obs : str
        ISO date of the exposure, UTC; '' when missing.
    gain : float or None
        Gain setting of the camera (not e-/ADU).
    stack_count : int
        Frames already stacked in this file; 1 for a raw frame.
    ra_deg, dec_deg : float or None
        Pointing hint: centre of an existing WCS, else what the mount wrote.
    scale_arcsec : float or None
        Pixel scale of an existing WCS, else from focal length and pixel size.
    wcs_cards : WcsCards or None
        Celestial WCS cards, only when they describe a usable WCS.
    night : str
        Date of the evening on which the observing night began (``YYYY-MM-DD``); '' when unknown.
    binning : int
        Sensor pixels per frame pixel and axis.
    telescope : str
        TELESCOP as in the header, stripped; '' when missing.
    stack_exposure_s : float or None
        Exposure of all frames stacked in this file; None when the header does not tell (`total_exposure_s`).
    site_deg : tuple of float or None
        Latitude and longitude of the observer, east positive.
    sensor_celsius : float or None
        Temperature of the sensor, measured or else wished for.
    offset : float or None
        Offset setting of the camera (not ADU).
    calibrated : str
        What CALSTAT says was done to the pixels: letters of ``BDF`` for bias, dark, flat; '' when nothing is said.
    row_order : str
        ROWORDER in capitals; '' when missing.
    packed : bool
        The file is packed with gzip; `data_offset` counts in what is packed.
    given_as_stack : bool
        Somebody said that this is a finished stack, whatever its header counts.
    """

    path: Path
    size_bytes: int
    mtime_ns: int
    shape_hw: tuple[int, int]
    kind: Literal["cfa", "rgb", "mono"]
    cfa_pattern: str
    bitpix: int
    bzero: float
    bscale: float
    blank: int | None
    hdu: int
    data_offset: int
    axes: Literal["hw", "chw", "hwc"]
    n_stored_planes: int
    instrument: str
    exposure_s: float | None
    date_obs: str
    filter_name: str
    gain: float | None
    object_name: str
    image_type: str
    stack_count: int
    ra_deg: float | None
    dec_deg: float | None
    scale_arcsec: float | None
    wcs_cards: Mapping[str, Any] | None
    night: str
    binning: int = 1
    telescope: str = ""
    stack_exposure_s: float | None = None
    site_deg: tuple[float, float] | None = None
    ctime_ns: int = 0
    inode: int = 0
    sensor_celsius: float | None = None
    offset: float | None = None
    calibrated: str = ""
    row_order: str = ""
    packed: bool = False
    given_as_stack: bool = False

    def __post_init__(self) -> None:
        for name in _ALIKE:
            object.__setattr__(self, name, _shared(getattr(self, name)))
        if self.wcs_cards is not None:
            object.__setattr__(self, "wcs_cards", WcsCards.of(self.wcs_cards))

    def __hash__(self) -> int:
        return hash((self.path, self.mtime_ns))

    def __reduce__(self) -> tuple[Callable[..., FrameInfo], tuple[Any, ...]]:
        # A path of one system cannot be unpacked on another.
        path, *rest = (getattr(self, f.name) for f in fields(self))
        return _unpickled, (str(path), *rest)

    @property
    def n_channels(self) -> int:
        """Channels after decoding: 1 for mono, else 3."""
        return 1 if self.kind == "mono" else 3

    @property
    def is_stack(self) -> bool:
        """Whether several exposures are in this file."""
        return self.given_as_stack or self.stack_count > 1

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored pixels, unpacked."""
        return math.prod(self.shape_hw) * self.n_stored_planes * abs(self.bitpix) // 8

    @property
    def epoch(self) -> float:
        """Julian year of the exposure; 2025 where the header tells none or one that cannot be right."""
        moment = _moment(self.date_obs)
        if moment is None or not _FIRST_MOVING_YEAR <= moment.year <= _LAST_MOVING_YEAR:
            return _USUAL_EPOCH
        return julian_year(moment)

    @property
    def total_exposure_s(self) -> float | None:
        """Exposure of everything in this file: of all its frames when it is a stack."""
        if self.stack_exposure_s is not None:
            return self.stack_exposure_s
        return None if self.exposure_s is None else self.exposure_s * self.stack_count


def _unpickled(path: str, *rest: Any) -> FrameInfo:
    return FrameInfo(Path(path), *rest)


def _shared(value: Any) -> Any:
    """Return the same value, one object for all frames that have it."""
    if len(_SHARED) >= _MAX_SHARED:
        _SHARED.clear()
    return _SHARED.setdefault(repr(value), value)


def frame_to_json(info: FrameInfo) -> dict[str, Any]:
    """Return ``info`` as plain JSON types."""
    data = asdict(info)
    data["path"] = str(info.path)
    data["shape_hw"] = list(info.shape_hw)
    data["wcs_cards"] = None if info.wcs_cards is None else dict(info.wcs_cards)
    return data


def frame_from_json(data: Mapping[str, Any]) -> FrameInfo:
    """Rebuild a `FrameInfo` from `frame_to_json`.

    Raises
    ------
    KeyError
        A field is missing: the record was written by another version.
    """
    values = {f.name: data[f.name] for f in fields(FrameInfo)}
    values["path"] = Path(values["path"])
    values["shape_hw"] = tuple(values["shape_hw"])
    values["site_deg"] = values["site_deg"] and tuple(values["site_deg"])
    return FrameInfo(**values)


def read_frame_info(path: Path | str) -> FrameInfo:
    """Read the header of one frame.

    Parameters
    ----------
    path : Path or str
        A FITS file, plain, tile-compressed or packed with gzip.

    Returns
    -------
    FrameInfo

    Raises
    ------
    SkipItem
        ``frame_empty``, ``frame_gzip`` (packed by gzip and tile-compressed), ``frame_not_fits``,
        ``frame_truncated``, ``frame_no_image``, ``frame_wrong_shape``,
        ``frame_unknown_pattern``, ``frame_bad_header``, ``frame_not_regular`` or ``frame_unreadable``; ``path``
        is among the values.
    """
    path = Path(path)
    try:
        for hdu in iter_hdus(path):
            if hdu.image_axes and len(hdu.image_axes) >= 2:
                return _frame_info(path, hdu, path.stat())
    except OSError as error:
        reason = str(error.strerror or error)
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {reason}", path=str(path), reason=reason
        ) from error
    raise SkipItem("frame_no_image", f"{path} holds no image", path=str(path))


def _frame_info(path: Path, hdu: HduInfo, stat: os.stat_result) -> FrameInfo:
    cards = hdu.cards
    compressed = hdu.is_compressed_image
    shape_hw, axes, planes = _geometry(path, hdu.image_axes)
    if hdu.packed and compressed:
        raise SkipItem("frame_gzip", f"{path} is compressed in two ways", path=str(path))
    if not hdu.packed:
        _check_size(path, hdu, stat.st_size)
    if compressed:
        check_compressed(path, hdu)
    bitpix = int(cards.get("ZBITPIX" if compressed else "BITPIX") or 0)
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise SkipItem(
            "frame_bad_header",
            f"{path}: BITPIX {bitpix} is not a FITS type",
            path=str(path),
            reason=f"BITPIX {bitpix}",
        )
    wcs_cards = celestial_cards(cards)
    ra_deg, dec_deg = _pointing(cards, wcs_cards, shape_hw)
    kind, pattern = _colour(path, cards, axes, shape_hw[0])
    date_obs = _text(cards, "DATE-OBS", "DATE_OBS", "DATE-AVG")
    exposure_s = _number(cards, "EXPTIME", "EXPOSURE", "EXP", "EXP_TIME")
    # Only pictures are stacks: a telescope may count in its raw frames how far the session has come.
    stack_count, stack_seconds = (1, None) if kind == "cfa" else _stack(cards, exposure_s)
    blank = cards.get("ZBLANK" if compressed else "BLANK")
    return FrameInfo(
        path=path,
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
        shape_hw=shape_hw,
        kind=kind,
        cfa_pattern=pattern,
        bitpix=bitpix,
        bzero=_number(cards, "BZERO", default=0.0),
        bscale=_number(cards, "BSCALE", default=1.0),
        blank=int(blank) if isinstance(blank, int) and bitpix > 0 else None,
        hdu=hdu.index,
        data_offset=-1 if compressed else hdu.data_offset,
        axes=axes,
        n_stored_planes=planes,
        instrument=_text(cards, "INSTRUME", "CREATOR", "TELESCOP"),
        exposure_s=exposure_s,
        date_obs=date_obs,
        filter_name=_text(cards, "FILTER"),
        gain=_number(cards, "GAIN", "ISOSPEED"),
        object_name=_text(cards, "OBJECT"),
        image_type=_text(cards, "IMAGETYP", "FRAMETYP", "FRAME", "OBSTYPE"),
        stack_count=stack_count,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        scale_arcsec=_scale(cards, wcs_cards),
        wcs_cards=wcs_cards,
        night=_night(path, cards, date_obs),
        binning=_binning(cards),
        telescope=_text(cards, "TELESCOP"),
        stack_exposure_s=stack_seconds,
        site_deg=_site(cards),
        sensor_celsius=_number(cards, "CCD-TEMP", "CCDTEMP", "DET-TEMP", "SENSTEMP", "SET-TEMP"),
        offset=_number(cards, "OFFSET", "BLKLEVEL"),
        calibrated=_calibrated(cards),
        row_order=_text(cards, "ROWORDER").upper(),
        packed=hdu.packed,
    )


def _calibrated(cards: Mapping[str, Any]) -> str:
    """Which of bias, dark and flat CALSTAT names; other words than its letters say nothing."""
    text = _text(cards, "CALSTAT").upper()
    return "".join(x for x in "BDF" if x in text) if re.fullmatch(r"[BDFMCL ,]+", text) else ""


def _binning(cards: Mapping[str, Any]) -> int:
    """Pixels of the sensor in one of the file: XBINNING, or BINNING as ``2*2``."""
    digits = re.match(r"\d+", _text(cards, "XBINNING", "BINNING"))
    return min(max(1, int(digits.group())), 16) if digits else 1


def _site(cards: Mapping[str, Any]) -> tuple[float, float] | None:
    """Latitude and longitude of the observer, degrees, east positive.

    (0, 0) is what programs write that do not know.
    """
    latitude = angle_deg(cards.get("SITELAT", cards.get("LAT-OBS")), hours_if_text=False)
    longitude = angle_deg(cards.get("SITELONG", cards.get("LONG-OBS")), hours_if_text=False)
    if latitude is None or longitude is None or abs(latitude) > 90.0 or abs(longitude) > 360.0:
        return None
    if latitude == 0.0 and longitude == 0.0:
        return None
    return latitude, (longitude + 180.0) % 360.0 - 180.0


def _stack(cards: Mapping[str, Any], exposure_s: float | None) -> tuple[int, float | None]:
    """Return how many frames are in a file, and the seconds of all of them when it tells that it is a stack.

    Telescopes write TOTALEXP, into raw frames as well; Siril and its followers write LIVETIME, ZeMosaic into its tiles
    NEXP_SUM and EXPTOTAL.
    """
    count = _number(cards, "STACKCNT", "NCOMBINE", "SNAPSHOT", "NEXP_SUM", default=1.0)
    seconds = _number(cards, "TOTALEXP", "LIVETIME", "EXPTOTAL", default=0.0)
    if count <= 1.0 and exposure_s and seconds > 1.5 * exposure_s:
        count = seconds / exposure_s
    count = max(1, round(min(count, _MOST_STACKED)))
    return count, seconds if count > 1 and seconds > 0 else None


def _geometry(path: Path, naxes: tuple[int, ...]) -> tuple[tuple[int, int], Literal["hw", "chw", "hwc"], int]:
    """Interpret the axes of an image; planes come first (CHW) or last (HWC)."""
    dims = naxes
    while len(dims) > 2 and dims[-1] == 1:
        dims = dims[:-1]
    if len(dims) == 2 and min(dims) >= 2:
        return (dims[1], dims[0]), "hw", 1
    if len(dims) == 3 and dims[2] in (3, 4) and min(dims[:2]) >= 2:
        return (dims[1], dims[0]), "chw", dims[2]
    if len(dims) == 3 and dims[0] in (3, 4) and min(dims[1:]) >= 2:
        return (dims[2], dims[1]), "hwc", dims[0]
    shape = " x ".join(str(n) for n in naxes)
    raise SkipItem(
        "frame_wrong_shape",
        f"{path} holds an array of {shape}; expected width x height, or three planes",
        path=str(path),
        shape=shape,
    )


def _check_size(path: Path, hdu: HduInfo, size: int) -> None:
    expected = hdu.data_offset + hdu.data_bytes
    if size < expected:
        raise SkipItem(
            "frame_truncated",
            f"{path} is cut short: {size} bytes of {expected}",
            path=str(path),
            expected=expected,
            actual=size,
        )


def _colour(
    path: Path, cards: Mapping[str, Any], axes: str, height: int
) -> tuple[Literal["cfa", "rgb", "mono"], str]:
    """Decide what the planes are, and the CFA pattern at array pixel (0, 0).

    With ROWORDER BOTTOM-UP the pattern is the one seen after flipping the image for display, so the first row
    of the array is the last row of the display. XBAYROFF and YBAYROFF shift the pattern.
    """
    if axes != "hw":
        return "rgb", ""
    stated = stated_pattern(cards)
    telescope = known_telescope(cards)
    if not stated:
        # Early Seestar software wrote raw colour frames without a pattern.
        usual = "" if telescope is None else telescope.pattern
        if not usual and stated == "":
            return "mono", ""
        stated = usual or "?"
    if stated not in PATTERNS:
        raise SkipItem(
            "frame_unknown_pattern",
            f"{path}: colour pattern {stated!r} is not one of {', '.join(PATTERNS)}",
            path=str(path),
            pattern=stated,
        )
    row = int(_number(cards, "YBAYROFF", default=0.0))
    column = int(_number(cards, "XBAYROFF", default=0.0))
    if _text(cards, "ROWORDER").upper() == "BOTTOM-UP":
        row += height - 1
    return "cfa", _shift_pattern(stated, row, column)


def _shift_pattern(pattern: str, row: int, column: int) -> str:
    return "".join(pattern[2 * ((row + j) % 2) + (column + i) % 2] for j in (0, 1) for i in (0, 1))


def _pointing(
    cards: Mapping[str, Any], wcs_cards: Mapping[str, Any] | None, shape_hw: tuple[int, int]
) -> tuple[float | None, float | None]:
    """Return the hint (ra, dec) in degrees, or (None, None).

    A number in RA is degrees unless its unit says hours (RAUNIT, CUNIT1, or ``[h]`` in its comment); a sexagesimal
    RA is hours.
    """
    if wcs_cards is not None and str(wcs_cards["CTYPE1"]).upper().startswith("RA"):
        centre = linear_centre(wcs_cards, shape_hw)
        return centre if all(map(math.isfinite, centre)) else (None, None)
    unit = _text(cards, "RAUNIT", "CUNIT1").lower()
    for ra_key, dec_key in _POINTING_KEYS:
        ra = angle_deg(cards.get(ra_key), hours_if_text=True)
        dec = angle_deg(cards.get(dec_key), hours_if_text=False)
        if ra is None or dec is None:
            continue
        if unit.startswith("h") and isinstance(cards.get(ra_key), int | float):
            ra *= 15.0
        # (0, 0) is what capture programs write when the mount said nothing.
        if -360.0 <= ra <= 360.0 and -90.0 <= dec <= 90.0 and (ra, dec) != (0.0, 0.0):
            return ra % 360.0, dec
    return None, None


def _scale(cards: Mapping[str, Any], wcs_cards: Mapping[str, Any] | None) -> float | None:
    """Arcsec per pixel: from the WCS, else 206.264806 * pixel_um / focal_mm, else stated, else the telescope's."""
    if wcs_cards is not None:
        return linear_scale_arcsec(wcs_cards)
    focal_mm = _number(cards, "FOCALLEN", "FOCAL", "FLENGTH")
    # XPIXSZ is said of the binned pixel; INDI's PIXSIZE1 is that of the sensor.
    pixel_um = _number(cards, "XPIXSZ", "PIXSIZE", "PIXELSIZ")
    sensor_um = _number(cards, "PIXSIZE1")
    if not pixel_um and sensor_um:
        pixel_um = sensor_um * _binning(cards)
    candidates = []
    if focal_mm and pixel_um:
        candidates.append(206.264806 * pixel_um / focal_mm)
    candidates.append(_number(cards, *_SCALE_KEYS))
    if telescope := known_telescope(cards):
        candidates.append(telescope.scale_arcsec * _binning(cards))
    return next((s for s in candidates if s is not None and 0.01 < s < 50.0), None)


def _night(path: Path, cards: Mapping[str, Any], date_obs: str) -> str:
    """Local date of the evening; local time by the site, else by the file name, else UTC."""
    moment = _moment(date_obs)
    if moment is None or not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        # What a clock says that was never set; arithmetic on it runs out of the calendar.
        return ""
    longitude = angle_deg(cards.get("SITELONG", cards.get("LONG-OBS")), hours_if_text=False)
    local = moment
    if longitude is not None and abs(longitude) <= 180.0:
        local = moment + datetime.timedelta(hours=longitude / 15.0)
    elif stamp := _FILE_STAMP.search(path.name):
        # Seestar names its files with the local time of the phone and writes UTC in the header.
        try:
            named = datetime.datetime(*(int(g) for g in stamp.groups()))
        except ValueError:
            named = moment
        if abs(named - moment) < datetime.timedelta(hours=14.5):
            local = named
    return (local - datetime.timedelta(hours=12)).date().isoformat()


def _moment(date_obs: str) -> datetime.datetime | None:
    """Return the moment of a DATE-OBS card, UTC without a time zone; None when it is not a date."""
    try:
        return datetime.datetime.fromisoformat(date_obs.strip().rstrip("Z")[:26]).replace(tzinfo=None)
    except ValueError:
        return None


def _text(cards: Mapping[str, Any], *keys: str) -> str:
    for key in keys:
        value = cards.get(key)
        if value is not None and str(value).strip():
            return str(value).strip()
    return ""


def _number(cards: Mapping[str, Any], *keys: str, default: float | None = None) -> Any:
    for key in keys:
        value = cards.get(key)
        if isinstance(value, bool) or value is None:
            continue
        try:
            number = float(str(value).replace(",", "."))
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return default
