"""Shared pieces of the solver tests: a known sky, requests, and little programs that stand in for solvers."""

from __future__ import annotations

import os
import stat
import sys
import textwrap

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.stars import StarList
from zemosaic_io.solvers.base import SolveRequest


def true_wcs(shape_hw, scale_arcsec=2.4, angle_deg=25.0, centre=(193.0, 41.0)):
    """TAN WCS of a full frame with the array parity of a Seestar."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = centre
    wcs.wcs.crpix = [shape_hw[1] / 2 + 0.5, shape_hw[0] / 2 + 0.5]
    angle = np.radians(angle_deg)
    wcs.wcs.cd = (
        scale_arcsec / 3600 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    )
    return wcs


def star_list(x, y, flux=None):
    n = len(x)
    flux = np.linspace(1000, 10, n) if flux is None else np.asarray(flux)
    ones = np.ones(n, np.float32)
    return StarList(
        np.asarray(x, float), np.asarray(y, float), flux.astype(np.float32), ones, 3 * ones, ones, 10 * ones
    )


def make_request(tmp_path, shape_hw=(80, 60), image=None, offset=(0.0, 0.0), **changes):
    image = np.full(shape_hw, 1000.0, np.float32) if image is None else image
    values = {
        "path": tmp_path / "frame.fit",
        "shape_hw": shape_hw,
        "ra_deg": 193.0,
        "dec_deg": 41.0,
        "scale_arcsec": 2.4,
        "radius_deg": 3.0,
        "stars": None,
        "image_provider": lambda: (image, offset),
        "work_dir": tmp_path / "work",
        "timeout_s": 20.0,
    }
    return SolveRequest(**{**values, **changes})


def write_program(path, body):
    """Write an executable Python script; ``args`` is its command line and ``value(flag)`` what follows a flag."""
    head = f"""\
    #!{sys.executable}
    import os, sys, time, json, subprocess
    args = sys.argv[1:]
    def value(flag):
        return args[args.index(flag) + 1] if flag in args else None
    with open({str(path) + ".calls"!r}, "a") as file:
        file.write(json.dumps(args) + "\\n")
    """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def calls_of(path):
    """Command lines a fake program was called with."""
    import json

    log = str(path) + ".calls"
    return [json.loads(line) for line in open(log).read().splitlines()] if os.path.exists(log) else []


def option(call, flag):
    return call[call.index(flag) + 1]
