"""Pictures for eyes: PNG preview, 16-bit TIFF and 16-bit FITS of a finished mosaic, written by rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from zemosaic_core.binning import bin_down
from zemosaic_core.errors import SkipItem
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.fits_read import read_plane_rows
from zemosaic_io.fits_write import Cards, StreamingFits, atomic_path

__all__ = [
    "NOISE_CELL_PX",
    "ArrayRows",
    "FitsRows",
    "RowSource",
    "display_range",
    "downscale",
    "read_clipped_pixels",
    "read_noise_map",
    "write_calibrated_fits",
    "write_png",
    "write_tiff16",
    "write_viewer_fits_uint16",
]

# Rows converted at a time: 64 rows of a 20,000 px wide colour mosaic are 15 MB.
_ROWS = 64
# Pixels of the mosaic in a cell of the extension NOISE of a coverage file.
NOISE_CELL_PX = 32


class RowSource(Protocol):
    """An image that is read by rows."""

    shape: tuple[int, int, int]

    def read_rows(self, y0: int, y1: int) -> np.ndarray:
        """Return rows as (C, y1-y0, W) float32; missing pixels are NaN."""


class ArrayRows:
    """An array in memory as a `RowSource`; (H, W) counts as one plane."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image if image.ndim == 3 else image[np.newaxis]
        self.shape: tuple[int, int, int] = self._image.shape

    def read_rows(self, y0: int, y1: int) -> np.ndarray:
        """Return rows as float32."""
        return np.asarray(self._image[:, y0:y1], dtype=np.float32)


class FitsRows:
    """The first image of a FITS file, or that of a name, as a `RowSource`.

    Raises
    ------
    SkipItem
        The file has no uncompressed image or cannot be read.
    """

    def __init__(self, path: Path | str, name: str | None = None) -> None:
        self._path = Path(path)
        for hdu in iter_hdus(self._path):
            axes = hdu.image_axes
            if name is not None and hdu.cards.get("EXTNAME") != name:
                continue
            if len(axes) >= 2 and not hdu.is_compressed_image:
                self._hdu = hdu
                self.shape: tuple[int, int, int] = (axes[2] if len(axes) > 2 else 1, axes[1], axes[0])
                return
        raise SkipItem("frame_no_image", f"{path} holds no image", path=str(path))

    def read_rows(self, y0: int, y1: int) -> np.ndarray:
        """Return rows as float32."""
        return read_plane_rows(self._path, self._hdu, y0, y1)


def downscale(source: RowSource | np.ndarray, max_dim: int) -> np.ndarray:
    """Return the image averaged over whole blocks of pixels so that no side exceeds ``max_dim``.

    The mean ignores NaN; a block without any value is NaN. Incomplete blocks at the far borders are averaged
    over the pixels they have. Memory: the result and a few rows.

    Returns
    -------
    ndarray, shape (C, h, w), float32
    """
    source = _as_rows(source)
    return _block_means(source, max(1, -(-max(source.shape[1:]) // max_dim)))


def _block_means(source: RowSource, step: int) -> np.ndarray:
    planes, height, width = source.shape
    out = np.empty((planes, -(-height // step), -(-width // step)), np.float32)
    read = max(1, _ROWS // step)
    for row in range(0, out.shape[1], read):
        strip = source.read_rows(row * step, min(height, (row + read) * step))
        out[:, row : row + read] = bin_down(strip, step)
    return out


def read_noise_map(path: Path | str) -> NoiseMap | None:
    """Return the noise of a picture from a file that knows it: its coverage, its variance, or itself.

    An extension NOISE has it in cells; of an image VARIANCE the mean in such cells is taken. None where there is
    neither, as in the coverage of older mosaics.

    Raises
    ------
    SkipItem
        The file cannot be read.
    """
    path = Path(path)
    units = {
        str(hdu.cards.get("EXTNAME")): hdu
        for hdu in iter_hdus(path)
        if len(hdu.image_axes) >= 2 and not hdu.is_compressed_image
    }
    if "NOISE" in units:
        sigma = read_plane_rows(path, units["NOISE"], 0, units["NOISE"].image_axes[1])
        return NoiseMap(sigma, NOISE_CELL_PX)
    if "VARIANCE" in units:
        variance = _block_means(FitsRows(path, "VARIANCE"), NOISE_CELL_PX)
        return NoiseMap(np.sqrt(np.where(variance > 0, variance, np.nan)), NOISE_CELL_PX)
    return None


def read_clipped_pixels(path: Path | str) -> np.ndarray:
    """Return the places (N, 2) int32, y and x, that the extension CLIPPED of a file marks; none without it.

    Raises
    ------
    SkipItem
        The file cannot be read.
    """
    path = Path(path)
    units = [hdu for hdu in iter_hdus(path) if hdu.cards.get("EXTNAME") == "CLIPPED"]
    if not units or units[0].is_compressed_image or len(units[0].image_axes) != 2:
        return np.empty((0, 2), np.int32)
    places = []
    height = units[0].image_axes[1]
    for y in range(0, height, _ROWS):
        rows = read_plane_rows(path, units[0], y, min(height, y + _ROWS))[0]
        places.append(np.argwhere(rows > 0).astype(np.int32) + np.array([y, 0], np.int32))
    return np.concatenate(places)


def display_range(
    source: RowSource | np.ndarray, p_low: float = 0.1, p_high: float = 99.9, margin: float = 0.02
) -> tuple[float, float]:
    """Return the ADU values that become 0 and 65535 in a 16-bit view.

    Percentiles of about two million pixels spread evenly over all planes, widened by ``margin`` of their
    distance on both sides. One range for all planes, so colours stay as they are.
    """
    source = _as_rows(source)
    planes, height, width = source.shape
    step = max(1, int(np.sqrt(planes * height * width / 2e6)))
    samples = [source.read_rows(y, y + 1)[:, 0, ::step] for y in range(0, height, step)]
    values = np.concatenate([s.ravel() for s in samples])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values.astype(np.float64), (p_low, p_high))
    widen = margin * (high - low) if high > low else 0.5
    return float(low - widen), float(high + widen)


def write_png(
    path: Path | str,
    rgba: np.ndarray,
    *,
    flip: bool = True,
    texts: Mapping[str, str] | None = None,
    compress_level: int = 6,
    durable: bool = True,
) -> Path:
    """Write an 8-bit picture as PNG.

    Parameters
    ----------
    path : Path or str
        Target; its folder is created.
    rgba : ndarray, shape (H, W, 4), (H, W, 3) or (H, W), uint8
        The picture with rows in FITS order.
    flip : bool
        Put the first row at the bottom, where FITS viewers show it; otherwise a mosaic with north up would
        hang upside down.
    texts : mapping, optional
        Text chunks, e.g. {'Software': ...}.
    compress_level : int
        0 to 9, as in zlib.
    durable : bool
        See `atomic.atomic_path`; here and below.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    picture = Image.fromarray(np.ascontiguousarray(rgba[::-1] if flip else rgba))
    info = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        info.add_text(key, value)
    with atomic_path(path, durable=durable) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info, compress_level=compress_level)
    return Path(path)


def write_tiff16(
    path: Path | str,
    source: RowSource | np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    flip: bool = True,
    description: str = "",
    durable: bool = True,
) -> Path:
    """Write a linear 16-bit TIFF, RGB or grey, by strips; missing pixels are 0.

    Parameters
    ----------
    source : RowSource or ndarray
        (C, H, W) with C 1 or 3, ADU.
    limits : tuple of float, optional
        ADU that become 0 and 65535; default `display_range`.
    flip : bool
        First FITS row at the bottom of the picture.
    description : str
        ASCII text for the ImageDescription tag.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    source = _as_rows(source)
    planes, height, width = source.shape
    limits = display_range(source) if limits is None else limits

    def strips() -> Iterator[np.ndarray]:
        for start in range(0, height, _ROWS):
            stop = min(height, start + _ROWS)
            y0, y1 = (height - stop, height - start) if flip else (start, stop)
            strip = np.moveaxis(_to_uint16(source.read_rows(y0, y1), limits), 0, -1)
            strip = np.ascontiguousarray(strip[::-1] if flip else strip)
            yield strip if planes > 1 else strip[..., 0]

    with atomic_path(path, durable=durable) as temporary:
        tifffile.imwrite(
            temporary,
            strips(),
            shape=(height, width, planes) if planes > 1 else (height, width),
            dtype=np.uint16,
            rowsperstrip=_ROWS,
            photometric="rgb" if planes > 1 else "minisblack",
            bigtiff=2 * planes * height * width > 3_900_000_000,
            description=description or None,
            software="ZeMosaic",
            metadata=None,
        )
    return Path(path)


def write_viewer_fits_uint16(
    path: Path | str,
    source: RowSource | np.ndarray,
    cards: Cards = (),
    *,
    limits: tuple[float, float] | None = None,
    durable: bool = True,
) -> Path:
    """Write a 16-bit FITS for viewers: planes (C, H, W) as uint16 (int16 with BZERO), missing pixels 0.

    The linear scale is one for all planes and is recorded: ``ADU = ZMVSCALE * value + ZMVZERO``.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    source = _as_rows(source)
    planes, height, width = source.shape
    limits = display_range(source) if limits is None else limits
    pairs = list(cards.items()) if isinstance(cards, Mapping) else [tuple(c) for c in cards]
    pairs.append(("ZMVSCALE", (limits[1] - limits[0]) / 65535.0, "ADU per unit of this file"))
    pairs.append(("ZMVZERO", limits[0], "ADU of value 0"))
    shape = (planes, height, width) if planes > 1 else (height, width)
    with StreamingFits(path, shape, pairs, dtype="uint16", durable=durable) as out:
        for y0 in range(0, height, _ROWS):
            rows = _to_uint16(source.read_rows(y0, min(height, y0 + _ROWS)), limits)
            out.write_rows(y0, rows if planes > 1 else rows[0])
        return out.commit()


def write_calibrated_fits(
    path: Path | str,
    source: RowSource,
    factors: tuple[float, ...],
    cards: Cards = (),
    *,
    durable: bool = True,
) -> Path:
    """Write a copy as float32 whose planes are multiplied by factors; missing pixels stay NaN.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    planes, height, width = source.shape
    scale = np.array(factors, np.float32)[:, None, None]
    shape = (planes, height, width) if planes > 1 else (height, width)
    with StreamingFits(path, shape, cards, durable=durable) as out:
        for y0 in range(0, height, _ROWS):
            rows = source.read_rows(y0, min(height, y0 + _ROWS)) * scale
            out.write_rows(y0, rows if planes > 1 else rows[0])
        return out.commit()


def _to_uint16(rows: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    scaled = (rows.astype(np.float64) - low) * (65535.0 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=65535.0, neginf=0.0), 0, 65535)).astype(
        np.uint16
    )


def _as_rows(source: Any) -> RowSource:
    return ArrayRows(source) if isinstance(source, np.ndarray) else source
