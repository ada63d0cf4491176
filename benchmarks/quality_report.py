"""What a run says about its own sky, beside the truth.

Reads ``sky`` of the run report, as the pipeline's `SkySolution.facts` writes it: ``flat`` with ``applied`` and ``nu``
(ln V = nu_1 r^2 + nu_2 r^4), and per channel ``sigma_tilt_adu`` (x, y) and ``sigma_bowl_adu`` (x^2, xy, y^2).
"""

from __future__ import annotations

from typing import Any

from benchmarks.quality_judge import vignetting_error
from zemosaic_io.glow_session import GlowNight

__all__ = ["claims_of_report", "large_scale_deviations"]


def claims_of_report(report: dict[str, Any], truth: GlowNight) -> dict[str, Any]:
    """Return what the run claims: ``vignetting`` (error of its flat), ``assurance``, ``sigmas_adu`` per channel."""
    sky = report.get("sky") or {}
    flat = sky.get("flat") or {}
    channels = sky.get("channels") or []
    found: dict[str, Any] = {
        "vignetting": None,
        "assurance": [channel["assurance"] for channel in channels],
        "sigmas_adu": [[*channel["sigma_tilt_adu"], *channel["sigma_bowl_adu"]] for channel in channels],
        "rejected": (report.get("rejection") or None),
    }
    if flat:
        error = vignetting_error(truth, (float(flat["nu"][0]), float(flat["nu"][1])))
        found["vignetting"] = {**error, "applied": bool(flat["applied"])}
    return found


def large_scale_deviations(claims: dict[str, Any], errors_adu: list[list[float]]) -> list[list[float]]:
    """Return each true large-scale error over the sigma claimed for it, per channel; empty without claims."""
    return [
        [abs(error) / sigma if sigma else 0.0 for error, sigma in zip(errors, sigmas, strict=True)]
        for errors, sigmas in zip(errors_adu, claims["sigmas_adu"], strict=False)
    ]
