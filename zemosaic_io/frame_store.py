"""Where the co-add gets its pixels: raw frames decoded window by window, and master tiles on disk.

Nothing decoded is kept: a window is read, repaired, debayered and forgotten, so memory does not grow with the
number of frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from zemosaic_core.cfa import (
    DEBAYER_REACH,
    CfaColour,
    DebayerTerms,
    debayer_terms,
    debayer_window,
    shift_pattern,
)
from zemosaic_core.cfa_rows import columns_within
from zemosaic_core.clipped_light import mark_clipped_cfa, mark_clipped_planes, samples_below, with_bounds
from zemosaic_core.errors import SkipItem
from zemosaic_core.hot_pixels import repair_cfa, repair_mono
from zemosaic_core.missing_data import RIM_PX, zeros_to_nan
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import RawRows
from zemosaic_core.weights import make_radial_weight_map
from zemosaic_io.calibration_sets import CalibrationSet, require_set
from zemosaic_io.fits_cards import HduInfo, iter_hdus
from zemosaic_io.fits_read import (
    read_plane_rows,
    read_raw_rows,
    read_window,
    values_of_raw,
)
from zemosaic_io.headers import FrameInfo
from zemosaic_io.unpacked_frames import UnpackedFrames

__all__ = ["FrameStore", "TileStore"]

T = TypeVar("T")

# A debayered pixel needs neighbours within its reach, and each of these may be repaired from neighbours at up to 4 px.
_MARGIN = DEBAYER_REACH + 4
_TRACE_WEIGHT = 1e-3
# Reach of the repair of a pixel from its neighbours.
_MONO_MARGIN = 2
_NONE = np.empty(0, np.int64)
_NONE.setflags(write=False)


class FrameStore:
    """Raw frames as a `PixelSource`: hot pixels repaired, CFA debayered, planes as float32.

    Parameters
    ----------
    infos : mapping of int to FrameInfo
        The frames by key.
    hot_pixels : mapping of int to ndarray
        Flat indices (``y * W + x``) to repair, by key; frames without an entry have none.
    colours : mapping of int to CfaColour
        What is known of the light of each frame, by key; frames without an entry are debayered as grey.
    radial : tuple of float or None
        ``(feather_fraction, shape_power, min_weight_floor)`` of a radial weight map for every frame
        (`zemosaic_core.weights.make_radial_weight_map`); None: no weight maps.
    row_sums : mapping of int to ndarray, optional
        Sums of the rows of each frame when it was measured (`zemosaic_io.fits_read.IdentifiedImage`), by key: every
        row that is read is compared with them. Frames without an entry are read as they are.
    zero_is_missing : collection of int
        Keys of frames without CFA whose zeros are missing pixels (`zemosaic_core.missing_data`).
    calibrations : mapping of int to str, optional
        File of the `CalibrationSet` of each frame, by key; frames without an entry are taken as they are. Samples are
        calibrated before anything else is done to them.
    unpack_dir : Path, optional
        Folder for the pixels of frames packed with gzip, which can only be read from their beginning: each is unpacked
        when it is needed first. None: they are unpacked anew for every window.
    clip_levels : mapping of int to ndarray (C,), optional
        Values, ADU, from which on light was cut off, by key; +inf or no entry: nowhere.
    masked : mapping of int to ndarray (k, 3), optional
        Missing pixels by key, as spans ``(y, x0, x1)``, end exclusive, in the order of y.
    reads : callable, optional
        ``reads(path, size_bytes, function, *args, **kwargs)`` calls a function that reads a file, and raises `SkipItem`
        when that never comes back; it travels with the store. None: they are called as they are.

    Notes
    -----
    Methods may be called from several threads. A window equals the same window of the whole decoded frame.
    """

    def __init__(
        self,
        infos: Mapping[int, FrameInfo],
        hot_pixels: Mapping[int, np.ndarray] | None = None,
        *,
        colours: Mapping[int, CfaColour] | None = None,
        radial: tuple[float, float, float] | None = None,
        row_sums: Mapping[int, np.ndarray] | None = None,
        zero_is_missing: Collection[int] = (),
        calibrations: Mapping[int, str] | None = None,
        unpack_dir: Path | None = None,
        clip_levels: Mapping[int, np.ndarray] | None = None,
        masked: Mapping[int, np.ndarray] | None = None,
        reads: Callable[..., Any] | None = None,
    ) -> None:
        self._reads = reads
        self._unpacked = None if unpack_dir is None else UnpackedFrames(unpack_dir)
        self._calibrations = dict(calibrations or {})
        self._sets: dict[str, CalibrationSet] = {}
        self._clip = {
            k: np.asarray(v, np.float32) for k, v in (clip_levels or {}).items() if np.isfinite(v).any()
        }
        self._masked = {k: np.asarray(v, np.int32) for k, v in (masked or {}).items() if len(v)}
        self._zero_is_missing = frozenset(zero_is_missing)
        self._infos = dict(infos)
        self._sums = dict(row_sums or {})
        # Frames of one camera share a list; it stays one, so that it travels once.
        lists = {id(v): v for v in (hot_pixels or {}).values()}
        in_order = {of: np.sort(np.asarray(v, dtype=np.int64)) for of, v in lists.items()}
        self._hot = {k: in_order[id(v)] for k, v in (hot_pixels or {}).items() if len(v)}
        self._colours = dict(colours or {})
        self._terms: dict[int, DebayerTerms] = {}
        # A corner keeps a trace of weight: where it is all there is it must still show.
        self._radial = None if radial is None else (*radial[:2], max(radial[2], _TRACE_WEIGHT))
        self._radial_maps: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def part(self, keys: Collection[int], renamed: Callable[[FrameInfo], FrameInfo]) -> FrameStore:
        """Return a store of some of the frames for another machine, each under the name it has there."""
        wanted = frozenset(keys)

        def of(known: Mapping[int, T]) -> dict[int, T]:
            return {key: known[key] for key in wanted if key in known}

        return FrameStore(
            {key: renamed(self._infos[key]) for key in wanted},
            of(self._hot),
            colours=of(self._colours),
            radial=self._radial,
            row_sums=of(self._sums),
            zero_is_missing=self._zero_is_missing & wanted,
            calibrations=of(self._calibrations),
            clip_levels=of(self._clip),
            masked=of(self._masked),
            reads=self._reads,
        )

    def __getstate__(self) -> dict[str, Any]:
        # What was made of it stays with the process that did it.
        own: dict[str, Any] = {
            "_lock": None,
            "_sets": {},
            "_terms": {},
            "_radial_maps": {},
        }
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def unpack_into(self, folder: Path, keep_free_bytes: int) -> None:
        """Unpack frames into a folder from now on, as far as so much stays free; see `UnpackedFrames`."""
        self._unpacked = UnpackedFrames(folder, keep_free_bytes)

    def info(self, key: int) -> FrameInfo:
        """Return the header facts of a frame."""
        return self._infos[key]

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (C, y1-y0, x1-x0) float32 ADU; C is 3, or 1 for mono; missing pixels are NaN.

        Pixels whose light was cut off are NaN that hold a lower bound (`zemosaic_core.clipped_light`).

        Raises
        ------
        SkipItem
            The file can no longer be read, or its pixels are not those that were measured.
        """
        info = self._infos[key]
        if info.kind == "cfa":
            with self.lend(Scratch(), key, y0, y1, x0, x1) as (planes, (top, left)):
                return np.ascontiguousarray(planes[:, y0 - top : y1 - top, x0 - left : x1 - left])
        window = (
            self._read_with_emptiness(info, key, y0, y1, x0, x1)
            if key in self._zero_is_missing
            else self._read_planes(info, key, y0, y1, x0, x1)
        )
        if key in self._clip:
            mark_clipped_planes(window, self._clip[key])
        self._mask(window, key, y0, x0)
        return window

    @contextmanager
    def lend(
        self,
        scratch: Scratch,
        key: int,
        y0: int,
        y1: int,
        x0: int,
        x1: int,
        columns: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Lend the window of `read`, or a larger one that holds it, and the row and column of its first pixel.

        Debayering needs neighbours; they are left where they are, so that nothing is copied. `columns` are those
        wanted of each row (`zemosaic_core.pixel_map.source_columns`); others may hold anything.

        Raises
        ------
        SkipItem
            As `read`.
        """
        info = self._infos[key]
        if info.kind != "cfa":
            yield self.read(key, y0, y1, x0, x1), (y0, x0)
            return
        sensor, (top, left) = self._sensor(info, key, y0, y1, x0, x1)
        if columns is None:
            wanted = np.full((len(sensor), 2), (0, sensor.shape[1]), np.int64)
        else:
            wanted = columns_within(columns, len(sensor), y0 - top, x0 - left)
        with scratch.floats(3, *sensor.shape) as planes:
            debayer_window(sensor, info.cfa_pattern, top, left, self._debayer_terms(key), wanted, planes)
            if key in self._clip:
                mark_clipped_cfa(planes, sensor, shift_pattern(info.cfa_pattern, top, left), self._clip[key])
            self._mask(planes, key, top, left)
            yield planes, (top, left)

    def _debayer_terms(self, key: int) -> DebayerTerms:
        terms = self._terms.get(key)
        if terms is None:
            terms = self._terms[key] = debayer_terms(self._colours.get(key))
        return terms

    def _mask(self, window: np.ndarray, key: int, y0: int, x0: int) -> None:
        """Make the masked pixels of a window, whose first pixel is given, missing."""
        if key not in self._masked:
            return
        for y, first, end in self._spans(key, y0, y0 + window.shape[1]):
            window[:, y - y0, max(0, first - x0) : max(0, end - x0)] = np.nan

    def _read_planes(self, info: FrameInfo, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        hot = self._hot_rows(key, 0, info.shape_hw[0], info.shape_hw[1])
        if len(hot):
            # Whole rows, and two more on each side, from which pixels are repaired.
            top, bottom = max(0, y0 - _MONO_MARGIN), min(info.shape_hw[0], y1 + _MONO_MARGIN)
            rows = repair_mono(self._samples(info, key, top, bottom, 0, info.shape_hw[1]), hot, top)
            stored = rows[y0 - top : y1 - top, x0:x1]
        else:
            stored = self._samples(info, key, y0, y1, x0, x1)
        window = np.array(stored, dtype=np.float32, order="C")
        if info.bitpix < 0:
            window[~np.isfinite(window)] = np.nan
        return window[np.newaxis] if window.ndim == 2 else window

    def _sensor(
        self, info: FrameInfo, key: int, y0: int, y1: int, x0: int, x1: int
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Samples of the sensor, repaired, with the neighbours that debayering needs; and their first pixel."""
        height, width = info.shape_hw
        top, bottom = max(0, y0 - _MARGIN), min(height, y1 + _MARGIN)
        left, right = max(0, x0 - _MARGIN), min(width, x1 + _MARGIN)
        hot = self._hot_rows(key, top, bottom, width)
        if len(hot):
            # Whole rows: the indices count pixels of the full width.
            rows = self._samples(info, key, top, bottom, 0, width)
            sensor = repair_cfa(rows, hot, top)[:, left:right]
        else:
            sensor = self._samples(info, key, top, bottom, left, right)
        return np.ascontiguousarray(sensor), (top, left)

    def read_samples(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window of a frame of one plane as (h, w) float32 ADU, each pixel as the sensor gave it.

        Bad pixels are NaN: what they would be mended with is no sample of the light; so are masked and clipped ones.

        Raises
        ------
        SkipItem
            The file can no longer be read, or its pixels are not those that were measured.
        """
        info = self._infos[key]
        if info.kind != "cfa":
            samples = self.read(key, y0, y1, x0, x1)[0]
        else:
            sensor = self._samples(info, key, y0, y1, x0, x1)
            samples = samples_below(sensor, shift_pattern(info.cfa_pattern, y0, x0), self._clip.get(key))
        width = info.shape_hw[1]
        hot = self._hot_rows(key, y0, y1, width)
        if len(hot):
            y, x = np.divmod(hot, width)
            inside = (x >= x0) & (x < x1)
            samples[y[inside] - y0, x[inside] - x0] = np.nan
        if info.kind == "cfa" and key in self._masked:
            for row, first, end in self._spans(key, y0, y1):
                samples[row - y0, max(0, first - x0) : max(0, end - x0)] = np.nan
        return samples

    def _stored(self, key: int, function: Callable[..., T], *window: int) -> T:
        """Call one of the readers of `fits_read` on a window of a frame, unpacked where it is packed."""
        info = self._infos[key]
        if not info.packed or self._unpacked is None:
            return self._patiently(info, function, info, *window, sums=self._sums.get(key))
        try:
            unpacked = self._patiently(info, self._unpacked.of, key, info)
            return self._patiently(info, function, unpacked, *window, sums=self._sums.get(key))
        except SkipItem as skip:
            # The frame is known by its own name.
            raise SkipItem(skip.key, str(skip), **{**skip.values, "path": str(info.path)}) from skip

    def _patiently(self, info: FrameInfo, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call what reads the file of a frame."""
        if self._reads is None:
            return function(*args, **kwargs)
        return cast(T, self._reads(info.path, info.size_bytes, function, *args, **kwargs))

    def _samples(self, info: FrameInfo, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Samples of the sensor, calibrated where there is something to do it with."""
        raw = self._stored(key, read_window, y0, y1, x0, x1)
        return raw if self.calibration_of(key) is None else self._calibrated(info, key, raw, y0, x0)

    def _calibrated(self, info: FrameInfo, key: int, raw: np.ndarray, y0: int, x0: int) -> np.ndarray:
        """Calibrated samples; where light was cut off they stay at or above the level where that begins."""
        used = self.calibration_of(key)
        assert used is not None
        samples = used.apply(raw, y0, x0)
        if key in self._clip:
            pattern = shift_pattern(info.cfa_pattern, y0, x0) if info.kind == "cfa" else "RRRR"
            for phase, colour in enumerate(pattern):
                of_phase = (slice(phase // 2, None, 2), slice(phase % 2, None, 2))
                level = self._clip[key]["RGB".index(colour)]
                cut = raw[of_phase] >= level
                samples[of_phase][cut] = np.maximum(samples[of_phase][cut], level)
        return samples

    def calibration_of(self, key: int) -> CalibrationSet | None:
        """Return what a frame is calibrated with; None: nothing."""
        path = self._calibrations.get(key)
        if path is None:
            return None
        with self._lock:
            if path not in self._sets:
                self._sets[path] = require_set(path)
            return self._sets[path]

    def _read_with_emptiness(
        self, info: FrameInfo, key: int, y0: int, y1: int, x0: int, x1: int
    ) -> np.ndarray:
        height, width = info.shape_hw
        top, bottom = max(0, y0 - RIM_PX), min(height, y1 + RIM_PX)
        left, right = max(0, x0 - RIM_PX), min(width, x1 + RIM_PX)
        stored = self._stored(key, read_window, top, bottom, left, right)
        window = np.asarray(stored, dtype=np.float32)
        window = window[np.newaxis] if window.ndim == 2 else window
        window = np.where(np.isfinite(window), window, np.float32(np.nan))
        return zeros_to_nan(window, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)))

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the radial weight map, or None when the store has none."""
        if self._radial is None:
            return None
        shape = self._infos[key].shape_hw
        with self._lock:
            if shape not in self._radial_maps:
                self._radial_maps[shape] = np.asarray(
                    make_radial_weight_map(*shape, *self._radial), np.float32
                )
            weights = self._radial_maps[shape]
        return weights[y0:y1, x0:x1]

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return undecoded rows with their hot pixels, or None when the frame has no such form; see `read`."""
        info = self._infos[key]
        raw = self._stored(key, read_raw_rows, y0, y1)
        if raw is None:
            return None
        hot = self._hot_rows(key, y0, y1, info.shape_hw[1])
        used = self.calibration_of(key)
        if used is not None:
            samples = self._calibrated(info, key, values_of_raw(raw), y0, 0)
            raw = replace(raw, data=samples, big_endian_signed=False)
        raw = replace(raw, hot_pixels=hot, colour=self._colours.get(key), masked=self._spans(key, y0, y1))
        return replace(raw, clip=tuple(map(float, self._clip[key]))) if key in self._clip else raw

    def _spans(self, key: int, y0: int, y1: int) -> np.ndarray:
        spans = self._masked.get(key)
        if spans is None:
            return np.empty((0, 3), np.int32)
        first, last = spans[:, 0].searchsorted((y0, y1))
        return spans[first:last]

    def _hot_rows(self, key: int, y0: int, y1: int, width: int) -> np.ndarray:
        hot = self._hot.get(key)
        if hot is None:
            return _NONE
        first, last = hot.searchsorted((y0 * width, y1 * width))
        return hot[first:last]


class TileStore:
    """Master tiles on disk as a `PixelSource`.

    A tile file has the image (C, H, W) or (H, W) in the first unit with an image, and may have extensions
    COVERAGE, WEIGHT, CLIPPED and VARIANCE of the same size. Missing pixels are NaN in the image and 0 in the weight.
    CLIPPED has a bit per channel (1 red, 2 green, 4 blue) where the image is only a lower bound of the light.

    Parameters
    ----------
    paths : mapping of int to Path
        Tile files by key.

    Raises
    ------
    SkipItem
        ``frame_...`` keys of `zemosaic_io.headers`, or ``tile_wrong_shape`` when an extension does not fit.
    """

    def __init__(self, paths: Mapping[int, Path | str]) -> None:
        self._paths = {key: Path(path) for key, path in paths.items()}
        self._units = {key: _tile_units(path) for key, path in self._paths.items()}

    def shape_hw(self, key: int) -> tuple[int, int]:
        """Return height and width of a tile, px."""
        axes = self._units[key]["SCI"].image_axes
        return axes[1], axes[0]

    def n_channels(self, key: int) -> int:
        """Return the number of planes of a tile."""
        axes = self._units[key]["SCI"].image_axes
        return axes[2] if len(axes) > 2 else 1

    def cards(self, key: int) -> dict:
        """Return the known header cards of the image of a tile."""
        return self._units[key]["SCI"].cards

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (C, y1-y0, x1-x0) float32; missing pixels are NaN, clipped ones hold their bound."""
        window = self._window(key, "SCI", y0, y1, x0, x1)
        bits = self.read_clipped(key, y0, y1, x0, x1)
        for channel, plane in enumerate(window if bits.any() else ()):
            clipped = bits & (1 << channel) != 0
            plane[clipped] = with_bounds(plane[clipped])
        return window

    def read_clipped(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the bits of clipped pixels as (h, w) uint8; 0 where the tile tells nothing."""
        if "CLIPPED" not in self._units[key]:
            return np.zeros((y1 - y0, x1 - x0), np.uint8)
        return self._window(key, "CLIPPED", y0, y1, x0, x1)[0].astype(np.uint8)

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map as (h, w) float32, or None when the tile has none."""
        if "WEIGHT" not in self._units[key]:
            return None
        return self._window(key, "WEIGHT", y0, y1, x0, x1)[0]

    def read_coverage(self, key: int, y0: int, y1: int, x0: int = 0, x1: int | None = None) -> np.ndarray:
        """Return the number of frames per pixel as (h, w) float32.

        A tile made elsewhere has no count: then a pixel with a value counts as one frame.
        """
        x1 = self.shape_hw(key)[1] if x1 is None else x1
        if "COVERAGE" in self._units[key]:
            return self._window(key, "COVERAGE", y0, y1, x0, x1)[0]
        return np.isfinite(self.read(key, y0, y1, x0, x1)).all(axis=0).astype(np.float32)

    def read_variance(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the variance as (C, h, w) float32, or None when the tile has none."""
        if "VARIANCE" not in self._units[key]:
            return None
        return self._window(key, "VARIANCE", y0, y1, x0, x1)

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return None: tiles are decoded images."""
        return None

    def _window(self, key: int, unit: str, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        rows = read_plane_rows(self._paths[key], self._units[key][unit], y0, y1)
        return np.ascontiguousarray(rows[:, :, x0:x1])


def _tile_units(path: Path) -> dict[str, HduInfo]:
    units: dict[str, HduInfo] = {}
    for hdu in iter_hdus(path):
        if len(hdu.image_axes) < 2 or hdu.is_compressed_image:
            continue
        name = "SCI" if "SCI" not in units else hdu.name
        if name != "SCI" and hdu.image_axes[:2] != units["SCI"].image_axes[:2]:
            raise SkipItem(
                "tile_wrong_shape",
                f"{path}: extension {name} has another size",
                path=str(path),
                extension=name,
            )
        if hdu.data_offset + hdu.data_bytes > path.stat().st_size:
            raise SkipItem(
                "frame_truncated",
                f"{path} is cut short",
                path=str(path),
                expected=hdu.data_offset + hdu.data_bytes,
                actual=path.stat().st_size,
            )
        units[name] = hdu
    if "SCI" not in units:
        raise SkipItem("frame_no_image", f"{path} holds no image", path=str(path))
    return units
