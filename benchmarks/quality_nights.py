"""The nights that `benchmarks.quality` judges mosaics of."""

from __future__ import annotations

from datetime import datetime

from zemosaic_core.night_sky import Site
from zemosaic_core.synthetic_glow import Glow
from zemosaic_core.synthetic_nebula import Cloud
from zemosaic_io.glow_session import NightSpec, random_night

__all__ = ["NIGHTS", "QUICK", "night_spec"]

_BERN = Site(47.0, 7.4)

NIGHTS: dict[str, NightSpec] = {
    # The town stands where the target sets.
    "dome": NightSpec(
        seed=11,
        starts=(datetime(2025, 12, 20, 20, 30),),
        site=_BERN,
        glow=Glow(dome_adu=2600.0, dome_azimuth_deg=285.0),
        vignetting=0.04,
        n_satellites=3,
    ),
    "moon": NightSpec(
        seed=12,
        starts=(datetime(2025, 11, 7, 21, 0), datetime(2025, 11, 9, 18, 30)),
        frames_per_panel=6,
        site=_BERN,
        glow=Glow(dome_adu=1500.0, dome_azimuth_deg=90.0, moon_adu_per_nl=0.35),
        vignetting=0.12,
        clouds=(Cloud(peak_adu=110.0, radius_deg=0.9, east_deg=0.3, north_deg=-0.2),),
        galaxy=None,
        n_satellites=3,
    ),
    # The telescope's own mosaic mode: every frame elsewhere, a satellite in every sixth.
    "walk": NightSpec(
        seed=13,
        layout="walk",
        frames_per_panel=12,
        starts=(datetime(2025, 11, 20, 19, 0),),
        site=_BERN,
        glow=Glow(dome_adu=2200.0, dome_azimuth_deg=200.0),
        n_satellites=8,
    ),
    # Low, moonlit, with a cloud larger than a panel.
    "low": NightSpec(
        seed=14,
        panels=(3, 3),
        frames_per_panel=5,
        starts=(datetime(2025, 12, 1, 19, 20),),
        center_deg=(303.0, 38.4),
        site=_BERN,
        glow=Glow(dome_adu=1500.0, dome_azimuth_deg=330.0, moon_adu_per_nl=0.3),
        clouds=(Cloud(peak_adu=100.0, radius_deg=1.2, east_deg=-0.4, north_deg=0.3),),
        galaxy=None,
    ),
    # One field until it has turned by 70 degrees, filled by its nebula.
    "field": NightSpec(
        seed=15,
        layout="field",
        frames_per_panel=32,
        starts=(datetime(2025, 11, 18, 18, 0),),
        cadence_s=440.0,
        site=_BERN,
        glow=Glow(dome_adu=1500.0, dome_azimuth_deg=250.0),
        clouds=(Cloud(peak_adu=120.0, radius_deg=0.6, east_deg=0.1, north_deg=-0.1),),
        galaxy=None,
    ),
    "equatorial": NightSpec(
        seed=16,
        equatorial=True,
        starts=(datetime(2025, 9, 20, 20, 0),),
        cadence_s=90.0,
        center_deg=(270.9, -2.0),
        site=_BERN,
        glow=Glow(dome_adu=2000.0, dome_azimuth_deg=210.0),
        vignetting=0.03,
        differential_extinction=True,
        clouds=(Cloud(peak_adu=80.0, radius_deg=0.8, north_deg=0.3),),
        galaxy=None,
    ),
    # Six panels, each visited twice, the Moon up.
    "cycles": NightSpec(
        seed=17,
        panels=(3, 2),
        frames_per_panel=5,
        cycles=2,
        starts=(datetime(2025, 10, 9, 20, 30),),
        cadence_s=100.0,
        site=_BERN,
        glow=Glow(moon_adu_per_nl=0.3),
        vignetting=0.08,
        clouds=(Cloud(peak_adu=150.0, radius_deg=1.0, east_deg=0.5),),
        galaxy=None,
    ),
}
QUICK = ("dome", "moon", "walk")


def night_spec(name: str) -> NightSpec:
    """Return a night by name; ``random-17`` is the one drawn with seed 17.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name.startswith("random-") and name[7:].isdigit():
        return random_night(int(name[7:]))
    if name not in NIGHTS:
        raise ValueError(f"night {name!r}; known are {', '.join(NIGHTS)} and random-SEED")
    return NIGHTS[name]
