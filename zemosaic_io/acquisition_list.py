"""The exposures of a picture as AstroBin imports them: CSV, one line for each night, filter and way of exposing.

The columns are those of https://welcome.astrobin.com/importing-acquisitions-from-csv. Only what is known has a column.
AstroBin wants the number it has given a filter; where that is not known the name stands there, which the import passes
over and a person can replace.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zemosaic_io.atomic import atomic_path
from zemosaic_io.headers import FrameInfo

__all__ = ["Exposure", "acquisition_rows", "write_acquisitions"]

COLUMNS = ("date", "filter", "number", "duration", "binning", "gain", "sensorCooling", "meanFwhm", "meanSqm")
_LARGEST_BINNING = 4


@dataclass(frozen=True, slots=True)
class Exposure:
    """A frame, or a stack of frames, that is in the picture.

    Attributes
    ----------
    fwhm_arcsec : float
        Width of its stars; NaN: not known.
    sky_mag : float
        Brightness of its sky, V in mag per square arcsecond; NaN: not known.
    """

    info: FrameInfo
    fwhm_arcsec: float
    sky_mag: float = float("nan")


def acquisition_rows(
    exposures: Sequence[Exposure], filter_numbers: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Return one row for each night, filter, duration, binning and gain, in that order.

    ``filter_numbers`` has AstroBin's numbers by the names of filters in lower case.

    Frames whose duration nobody knows are left out: AstroBin has no use for them.
    """
    groups: dict[tuple[str, str, str, str, str], list[Exposure]] = {}
    for exposure in exposures:
        info = exposure.info
        seconds = info.exposure_s
        if info.stack_count > 1 and info.total_exposure_s:
            seconds = info.total_exposure_s / info.stack_count
        if not seconds:
            continue
        key = (
            info.night,
            info.filter_name,
            f"{seconds:.4f}".rstrip("0").rstrip("."),
            str(info.binning) if 1 <= info.binning <= _LARGEST_BINNING else "",
            "" if info.gain is None else f"{info.gain:.2f}".rstrip("0").rstrip("."),
        )
        groups.setdefault(key, []).append(exposure)
    rows = []
    for key in sorted(groups, key=lambda k: (k[0], k[1], float(k[2]), *k[3:])):
        night, filter_name, seconds_text, binning, gain = key
        widths = [e.fwhm_arcsec for e in groups[key] if np.isfinite(e.fwhm_arcsec)]
        degrees = [e.info.sensor_celsius for e in groups[key] if e.info.sensor_celsius is not None]
        skies = [e.sky_mag for e in groups[key] if np.isfinite(e.sky_mag)]
        width = f"{np.mean(widths):.2f}" if widths else ""
        sky = f"{np.mean(skies):.2f}" if skies else ""
        # A sensor without cooling drifts through a night; its mean is one row, not one for each degree.
        celsius = f"{np.mean(degrees):.0f}" if degrees else ""
        count = str(sum(e.info.stack_count for e in groups[key]))
        filter_name = (filter_numbers or {}).get(filter_name.strip().lower(), filter_name)
        values = (night, filter_name, count, seconds_text, binning, gain, celsius, width, sky)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_acquisitions(
    path: Path | str,
    exposures: Sequence[Exposure],
    filter_numbers: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> Path | None:
    """Write the list of `acquisition_rows`; None, and no file, where no duration is known.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    rows = acquisition_rows(exposures, filter_numbers)
    if not rows:
        return None
    known = [column for column in COLUMNS if any(row[column] for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, known, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
    return Path(path)
