"""Fast FITS headers: the cards of every unit of a file and where its data lie, without reading a single pixel.

Keeps the few dozen cards this program needs, sloppy ones included; what they mean is the business of `headers`.
Never writes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SkipItem
from zemosaic_io.regular_files import is_gzip, open_regular, open_unpacked

__all__ = ["FITS_BLOCK", "HduInfo", "is_celestial_key", "iter_hdus"]

FITS_BLOCK = 2880
_CARD = 80
# One read covers the header of every capture program seen so far (Seestar: 2 blocks, N.I.N.A.: 3).
_FIRST_READ = 5 * FITS_BLOCK
# A header longer than this is not a header (32 MB of cards): a damaged file without END.
_MAX_HEADER_BLOCKS = 11_000

# Linear terms, projection terms and SIP distortion as astropy.wcs understands them, axes 1 and 2 only.
_WCS_KEY = re.compile(
    r"(WCSAXES|CTYPE[12]|CRPIX[12]|CRVAL[12]|CDELT[12]|CUNIT[12]|CROTA[12]|PC[12]_[12]|CD[12]_[12]|PV[12]_\d+"
    r"|(A|B|AP|BP)_(ORDER|\d_\d)|(A|B)_DMAX|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX)\Z"
)
_COMMENT_UNIT = re.compile(rb"/\s*\[([^\]]*)\]")
_INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)

_PLAIN_KEY_TEXT = """
SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 NAXIS4 PCOUNT GCOUNT BZERO BSCALE BLANK EXTNAME TFIELDS THEAP
ZIMAGE ZBITPIX ZNAXIS ZNAXIS1 ZNAXIS2 ZNAXIS3 ZNAXIS4 ZBLANK ZCMPTYPE ZTILE1 ZTILE2 ZTILE3 ZTILE4
TTYPE1 TTYPE2 TTYPE3 TTYPE4 TTYPE5 TTYPE6 TTYPE7 TTYPE8 TTYPE9
TFORM1 TFORM2 TFORM3 TFORM4 TFORM5 TFORM6 TFORM7 TFORM8 TFORM9
WBAL_R WBAL_G WBAL_B
BAYERPAT COLORTYP CFAIMAGE ROWORDER XBAYROFF YBAYROFF INSTRUME CREATOR TELESCOP EXPTIME EXPOSURE
DATE-OBS DATE-AVG DATE_OBS FILTER GAIN OBJECT IMAGETYP STACKCNT SITELONG LONG-OBS
XBINNING TOTALEXP LIVETIME FRAMETYP FRAME OBSTYPE SITELAT LAT-OBS
CCD-TEMP CCDTEMP DET-TEMP SENSTEMP SET-TEMP OFFSET BLKLEVEL CALSTAT ISOSPEED
NCOMBINE SNAPSHOT NEXP_SUM EXPTOTAL EXP EXP_TIME BINNING ORIGIN FOVRA FOVDEC PIXSIZE1 PIXSCALE SECPIX IM_SCALE
RA DEC RAUNIT OBJCTRA OBJCTDEC TELRA TELDEC FOCALLEN FOCAL FLENGTH XPIXSZ PIXSIZE PIXELSIZ PIXSCAL1 SCALE
"""
_PLAIN_KEYS = frozenset(_PLAIN_KEY_TEXT.split())
# FITS 4.0, 4.4.1.
_MOST_AXES = 999
_LAYOUT_KEYS = ("BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "NAXIS4", "PCOUNT", "GCOUNT")
_LAYOUT_KEYS += ("ZBITPIX", "ZNAXIS", "ZNAXIS1", "ZNAXIS2", "ZNAXIS3", "ZNAXIS4", "TFIELDS")
_NEEDED = frozenset(k.ljust(8).encode("ascii") for k in _PLAIN_KEYS)
# First two characters of every key in _WCS_KEY: the cheap test before the regular expression.
_WCS_STARTS = frozenset(
    s.encode() for s in ("WC", "CT", "CR", "CD", "CU", "PC", "PV", "A_", "B_", "AP", "BP")
)
_WCS_STARTS |= {b"LO", b"LA", b"RA", b"EQ"}


@dataclass(frozen=True)
class HduInfo:
    """One header-data unit: its cards and where its data lie.

    Attributes
    ----------
    index : int
        Number of the unit, 0 = primary.
    cards : dict
        The cards this program knows, by keyword.
    data_offset, data_bytes : int
        First byte of the data and their size without the padding to whole blocks.
    packed : bool
        The file is packed with gzip; bytes count in what is packed.
    """

    index: int
    cards: dict[str, Any]
    data_offset: int
    data_bytes: int
    packed: bool = False

    @property
    def name(self) -> str:
        """EXTNAME in capitals, or ''."""
        return str(self.cards.get("EXTNAME") or "").strip().upper()

    @property
    def is_compressed_image(self) -> bool:
        """True for a tile-compressed image (``.fz``)."""
        return self.cards.get("ZIMAGE") is True

    @property
    def image_axes(self) -> tuple[int, ...]:
        """``(NAXIS1, NAXIS2, ...)`` of the image, or () when the unit holds none."""
        if self.is_compressed_image:
            prefix = "Z"
        elif self.index == 0 or str(self.cards.get("XTENSION") or "").strip() == "IMAGE":
            prefix = ""
        else:
            return ()
        n_axes = int(self.cards.get(prefix + "NAXIS") or 0)
        axes = tuple(int(self.cards.get(f"{prefix}NAXIS{i + 1}") or 0) for i in range(min(n_axes, 4)))
        return axes if all(a > 0 for a in axes) else ()


def iter_hdus(path: Path) -> Iterator[HduInfo]:
    """Walk through the header-data units of a FITS file, plain or packed with gzip, reading headers only.

    Yields
    ------
    HduInfo
        In file order. Data are not checked here, except that a unit cannot start behind the end of the file.

    Raises
    ------
    SkipItem
        ``frame_empty``, ``frame_not_fits``, ``frame_truncated``, ``frame_bad_header``, ``frame_unreadable``,
        ``frame_not_regular``.
    """
    try:
        with open_regular(path) as file:
            size: float = os.fstat(file.fileno()).st_size
            if size == 0:
                raise SkipItem("frame_empty", f"{path} is empty", path=str(path))
            packed = is_gzip(file)
        with open_unpacked(path, packed=packed) as file:
            if packed:
                # How long it is shows when its end is reached.
                size = math.inf
            offset, index = 0, 0
            while offset < size:
                file.seek(offset)
                if index > 0 and not _starts_extension(file.read(9)):
                    # Bytes behind the last unit ("special records") are allowed by the standard: not ours.
                    return
                file.seek(offset)
                cards, header_bytes = _read_cards(file, path, is_primary=index == 0)
                hdu = HduInfo(index, cards, offset + header_bytes, _data_bytes(cards), packed)
                yield hdu
                offset = hdu.data_offset + -(-hdu.data_bytes // FITS_BLOCK) * FITS_BLOCK
                index += 1
    except OSError as error:
        reason = str(error.strerror or error)
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {reason}", path=str(path), reason=reason
        ) from error


def is_celestial_key(name: str) -> bool:
    """Tell whether a card belongs to the celestial WCS of axes 1 and 2."""
    return _WCS_KEY.match(name) is not None


def _starts_extension(head: bytes) -> bool:
    return head.startswith(b"XTENSION=") or head.startswith(b"XTENSION ")


def _read_cards(file: Any, path: Path, *, is_primary: bool) -> tuple[dict[str, Any], int]:
    """Read one header from the current position; return its known cards and its length in bytes."""
    start = file.tell()
    # It may grow to megabytes: bytes would be copied with every piece that is added.
    data = bytearray(file.read(_FIRST_READ))
    if is_primary and not (data.startswith(b"SIMPLE  =") or data.startswith(b"SIMPLE =")):
        raise SkipItem("frame_not_fits", f"{path} does not start like a FITS file", path=str(path))
    end = _find_end(data, 0)
    blocks = len(data) // FITS_BLOCK
    while end < 0:
        more = file.read(16 * FITS_BLOCK)
        if not more or blocks > _MAX_HEADER_BLOCKS:
            raise SkipItem(
                "frame_truncated",
                f"{path} ends inside its header",
                path=str(path),
                expected=len(data) + FITS_BLOCK,
                actual=start + len(data),
            )
        searched = len(data) // FITS_BLOCK * FITS_BLOCK
        data += more
        blocks = len(data) // FITS_BLOCK
        end = _find_end(data, searched)
    cards = _parse_cards(bytes(data[:end]))
    _check_layout_cards(cards, path)
    _check_numbers_of_axes(bytes(data[:end]), path)
    return cards, -(-(end + _CARD) // FITS_BLOCK) * FITS_BLOCK


def _find_end(data: bytes | bytearray, start: int) -> int:
    """Return the offset of the END card at a card boundary, or -1."""
    position = data.find(b"END     ", start)
    while position >= 0 and position % _CARD:
        position = data.find(b"END     ", position + 1)
    if position < 0 and len(data) % FITS_BLOCK and data[len(data) // _CARD * _CARD :].rstrip() == b"END":
        return len(data) // _CARD * _CARD
    return position


def _parse_cards(header: bytes) -> dict[str, Any]:
    cards: dict[str, Any] = {}
    continued: str | None = None
    pieces: list[str] = []
    for start in range(0, len(header), _CARD):
        key = header[start : start + 8]
        if key == b"CONTINUE" and continued is not None:
            piece = _parse_value(header[start + 8 : start + _CARD])
            # A header without end may go on like this: joined once, not with every piece.
            if isinstance(piece, str) and pieces[-1].endswith("&"):
                pieces[-1] = pieces[-1][:-1]
                pieces.append(piece)
            continue
        if len(pieces) > 1:
            cards[str(continued)] = "".join(pieces)
        continued, pieces = None, []
        if key not in _NEEDED and key[:2] not in _WCS_STARTS:
            continue
        if header[start + 8 : start + 9] != b"=":
            continue
        name = key.rstrip().decode("ascii", "replace")
        if key not in _NEEDED and not _WCS_KEY.match(name):
            continue
        value = _parse_value(header[start + 9 : start + _CARD])
        # The first of two equal cards counts, as in astropy.
        if name not in cards:
            cards[name] = value
            if isinstance(value, str):
                continued, pieces = name, [value]
            unit = _COMMENT_UNIT.search(header[start + 9 : start + _CARD]) if key == b"RA      " else None
            if unit is not None:
                # The unit of a value belongs in brackets at the start of its comment (FITS 4.0, 4.3.2).
                cards.setdefault("RAUNIT", unit[1].decode("ascii", "replace").strip())
    if len(pieces) > 1:
        cards[str(continued)] = "".join(pieces)
    return cards


def _parse_value(text: bytes) -> Any:
    """Parse the value field of a card: string, logical, integer, real or undefined (None).

    What is none of these (an unquoted angle ``12:30:00``, a string without its closing quote) stays a text.
    """
    field = text.decode("latin-1").strip()
    if field.startswith("'"):
        end = 1
        while True:
            end = field.find("'", end)
            if end < 0:
                return field[1:].rstrip()
            if field[end : end + 2] != "''":
                break
            end += 2
        return field[1:end].replace("''", "'").rstrip()
    word = field.split("/", 1)[0].strip()
    if word == "":
        return None
    if word in ("T", "F"):
        return word == "T"
    if _INTEGER.match(word):
        return int(word)
    try:
        return float(word.replace("D", "E").replace("d", "e"))
    except ValueError:
        return word


def _check_layout_cards(cards: Mapping[str, Any], path: Path) -> None:
    """The layout of the data hangs on these cards: an odd value there cannot be guessed around.

    A length below zero would send the walk through the file backwards, for ever.
    """
    for key in _LAYOUT_KEYS:
        value = cards.get(key)
        if value is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, int)
        if wrong or (value < 0 and key != "BITPIX" and key != "ZBITPIX"):
            raise SkipItem(
                "frame_bad_header", f"{path}: {key} is {value!r}", path=str(path), reason=f"{key} = {value}"
            )


def _check_numbers_of_axes(header: bytes, path: Path) -> None:
    """Refuse more axes than the standard knows, in any of several cards: astropy counts up to what it finds."""
    for name in (b"NAXIS   =", b"ZNAXIS  ="):
        at = header.find(name)
        while at >= 0:
            value = _parse_value(header[at + 9 : at + _CARD]) if at % _CARD == 0 else 0
            if isinstance(value, int | float) and value > _MOST_AXES:
                key = name[:8].decode().rstrip()
                raise SkipItem(
                    "frame_bad_header",
                    f"{path}: {key} is {value!r}",
                    path=str(path),
                    reason=f"{key} = {value}",
                )
            at = header.find(name, at + 1)


def _data_bytes(cards: Mapping[str, Any]) -> int:
    n_axes = int(cards.get("NAXIS") or 0)
    if n_axes == 0:
        return 0
    pixels = 1
    for axis in range(1, min(n_axes, 4) + 1):
        pixels *= int(cards.get(f"NAXIS{axis}") or 0)
    per_value = abs(int(cards.get("BITPIX") or 8)) // 8
    return per_value * int(cards.get("GCOUNT") or 1) * (int(cards.get("PCOUNT") or 0) + pixels)
