"""Raw frames as a small smart telescope writes them: header cards and the file itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from astropy.io import fits

from zemosaic_core.synthetic_sky import Camera
from zemosaic_io.atomic import atomic_path

__all__ = ["Card", "telescope_cards", "wcs_header_cards", "write_raw_frame"]

Card = tuple[str, object, str]
_PIXEL_UM = 2.90000009536743


def telescope_cards(
    target: str,
    hint_deg: tuple[float, float],
    taken: datetime,
    sensor_celsius: float,
    *,
    binning: int = 1,
    equatorial: bool | None = None,
    site_deg: tuple[float, float] | None = None,
) -> list[Card]:
    """Return the cards of a frame of 10 s.

    Parameters
    ----------
    target : str
        Name of the object.
    hint_deg : tuple of float
        Right ascension and declination where the telescope believes it points.
    taken : datetime
        Start of the exposure, UTC.
    sensor_celsius : float
        Temperature of the sensor.
    binning : int
        Pixels of the sensor in one of the file, each way.
    equatorial : bool, optional
        How the telescope is mounted; None leaves the card out, as older telescopes do.
    site_deg : tuple of float, optional
        Latitude and longitude (east positive); None leaves the cards out.
    """
    cards: list[Card] = [
        ("CREATOR", "ZeMosaic demo night", "Made up, not a photograph"),
        ("PRODUCER", "ZeMosaic", "Synthetic frame"),
        ("XORGSUBF", 0, "Subframe X position in binned pixels"),
        ("YORGSUBF", 0, "Subframe Y position in binned pixels"),
        ("FOCALLEN", 250, "Focal length of telescope in mm"),
        ("APERTURE", 5.0, "Aperture of telescope, focal ratio"),
        ("XBINNING", binning, "Camera X Bin"),
        ("YBINNING", binning, "Camera Y Bin"),
        ("CCDXBIN", binning, "Camera X Bin"),
        ("CCDYBIN", binning, "Camera Y Bin"),
        ("XPIXSZ", binning * _PIXEL_UM, "pixel size in microns (with binning)"),
        ("YPIXSZ", binning * _PIXEL_UM, "pixel size in microns (with binning)"),
        ("IMAGETYP", "Light", "Type of image"),
        ("EXPOSURE", 10.0, "Exposure time in seconds"),
        ("EXPTIME", 10.0, "Exposure time in seconds"),
        ("CCD-TEMP", sensor_celsius, "sensor temperature in C"),
        ("RA", round(hint_deg[0], 6), "Object Right Ascension in degrees"),
        ("DEC", round(hint_deg[1], 6), "Object Declination in degrees"),
        ("DATE-OBS", taken.isoformat(timespec="microseconds"), "Image created time"),
        ("FILTER", "IRCUT", "Filter used when taking image"),
        ("INSTRUME", "Seestar S50", "Camera model"),
        ("BAYERPAT", Camera().pattern, "Bayer pattern"),
        ("GAIN", 80, "Gain Value"),
        ("FOCUSPOS", 1555, "Focuser position in steps"),
        ("OBJECT", target, "name or catalog number of object being imaged"),
        ("TOTALEXP", 10.0, "Total Exposure Time in seconds"),
    ]
    if site_deg is not None:
        cards.append(("SITELAT", round(site_deg[0], 4), "Latitude of the observation site in degrees"))
        cards.append(("SITELONG", round(site_deg[1], 4), "Longitude of the observation site in degrees"))
    if equatorial is not None:
        cards.append(("EQMODE", int(equatorial), "Equatorial mode"))
    return cards


def wcs_header_cards(wcs: Mapping[str, float | str]) -> list[Card]:
    """Return the cards of a solved frame."""
    return [("RADESYS", "ICRS", "Reference frame"), *((key, value, "") for key, value in wcs.items())]


def write_raw_frame(path: Path, pixels: np.ndarray, cards: Iterable[Card]) -> None:
    """Write a raw frame; uint16 becomes int16 with BZERO 32768, as the telescope writes it.

    Raises
    ------
    SaveFailed
        When the file cannot be written.
    """
    hdu = fits.PrimaryHDU(pixels)
    for key, value, comment in cards:
        hdu.header.append((key, value, comment), end=True)
    with atomic_path(path) as part:
        hdu.writeto(part, overwrite=True)
