"""A FITS image as an XISF file, for PixInsight: monolithic, plain, float32 or uint16, with the cards of its header.

Rows begin at the top, as in every XISF file. The cards stay as they are: programs that read a WCS from them count rows
from the bottom, as PixInsight does and as `xisf_read` does.
"""

from __future__ import annotations

import struct
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from astropy.io import fits

from zemosaic_io.atomic import atomic_path
from zemosaic_io.preview import FitsRows

__all__ = ["write_xisf_copy"]

_ROWS = 64
_ALIGNMENT = 4096
_STRUCTURE = frozenset(
    {
        "SIMPLE",
        "BITPIX",
        "NAXIS",
        "NAXIS1",
        "NAXIS2",
        "NAXIS3",
        "EXTEND",
        "BZERO",
        "BSCALE",
        "CHECKSUM",
        "DATASUM",
        "",
    }
)


def write_xisf_copy(path: Path | str, source: Path | str, *, durable: bool = True) -> Path:
    """Write the primary image of an uncompressed FITS file as XISF; the values are those of the file.

    Missing pixels stay NaN. Whole numbers of 16 bits stay whole numbers.

    Raises
    ------
    SkipItem
        ``source`` cannot be read.
    SaveFailed
        ``save_failed``.
    """
    rows = FitsRows(source)
    header = fits.getheader(source)
    planes, height, width = rows.shape
    whole = int(header["BITPIX"]) == 16
    dtype = np.dtype("<u2" if whole else "<f4")
    low, high = (0.0, 0.0) if whole else _range(rows)
    size = planes * height * width * dtype.itemsize
    image = {
        "geometry": f"{width}:{height}:{planes}",
        "sampleFormat": "UInt16" if whole else "Float32",
        "colorSpace": "RGB" if planes == 3 else "Gray",
    }
    if not whole:
        # What lies beyond is no possible value: the standard asks for it with floats.
        image["bounds"] = f"{low:.9g}:{high:.9g}"
    start = _ALIGNMENT
    while True:
        text = _xml({**image, "location": f"attachment:{start}:{size}"}, header)
        if 16 + len(text) <= start:
            break
        start += _ALIGNMENT
    with atomic_path(path, durable=durable) as temporary, open(temporary, "wb") as out:
        out.write(b"XISF0100" + struct.pack("<II", len(text), 0) + text)
        out.write(bytes(start - out.tell()))
        # Plane after plane, from the last row of the FITS file to its first; rows are read once for all planes.
        for y1 in range(height, 0, -_ROWS):
            part = rows.read_rows(max(0, y1 - _ROWS), y1)[:, ::-1].astype(dtype)
            for plane in range(planes):
                out.seek(start + (plane * height + height - y1) * width * dtype.itemsize)
                out.write(part[plane].tobytes())
    return Path(path)


def _range(rows: FitsRows) -> tuple[float, float]:
    """Smallest and largest value."""
    low, high = np.inf, -np.inf
    for y0 in range(0, rows.shape[1], _ROWS):
        part = rows.read_rows(y0, min(rows.shape[1], y0 + _ROWS))
        finite = part[np.isfinite(part)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if high > low else (0.0, 1.0)


def _xml(image: dict[str, str], header: fits.Header) -> bytes:
    attributes = " ".join(f"{name}={quoteattr(value)}" for name, value in image.items())
    words = []
    for card in header.cards:
        if card.keyword in _STRUCTURE:
            continue
        value = _written(card)
        words.append(
            f"<FITSKeyword name={quoteattr(card.keyword)} value={quoteattr(value)} "
            f"comment={quoteattr(card.comment if card.keyword not in ('HISTORY', 'COMMENT') else str(card.value))}/>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<xisf version="1.0" xmlns="http://www.pixinsight.com/xisf">'
        f"<Image {attributes}>{''.join(words)}</Image>"
        '<Metadata><Property id="XISF:CreatorApplication" type="String">ZeMosaic</Property></Metadata></xisf>'
    ).encode()


def _written(card: fits.Card) -> str:
    """Return a value as it stands in a FITS header."""
    if card.keyword in ("HISTORY", "COMMENT"):
        return ""
    if isinstance(card.value, bool):
        return "T" if card.value else "F"
    if isinstance(card.value, str):
        return "'" + card.value.replace("'", "''") + "'"
    return "" if isinstance(card.value, fits.card.Undefined) else str(card.value)
