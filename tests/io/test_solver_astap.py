from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from solver_fakes import calls_of, make_request, option, true_wcs, write_program

from zemosaic_core.errors import Cancelled
from zemosaic_io.solvers.astap import AstapSolver, read_astap_ini


def ini_text(wcs):
    lines = ["PLTSOLVD=T     // T=true, F=false"]
    for key, value in zip(
        ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"), (*wcs.wcs.crpix, *wcs.wcs.crval), strict=True
    ):
        lines.append(f"{key}= {value:.16E} // comment")
    lines += [f"CD{i + 1}_{j + 1}= {wcs.wcs.cd[i, j]:.16E} //" for i in (0, 1) for j in (0, 1)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def install(tmp_path):
    """Install a fake ASTAP with a star database; ``body`` is what it does."""

    def make(body, **options):
        folder = tmp_path / "astap"
        folder.mkdir()
        program = write_program(folder / "astap_cli", body)
        (folder / "d05_0101.1476").touch()
        return program, AstapSolver(str(program), str(folder), **options)

    return make


def solved(ini):
    return f"open(value('-o') + '.ini', 'w').write({ini!r})"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_solution_is_for_the_full_frame(tmp_path, install, step):
    wcs = true_wcs((80, 60))
    x0 = 0.5 + (step - 1) / 2
    small = wcs.deepcopy()
    small.wcs.crpix = (wcs.wcs.crpix - 1 - x0) / step + 1
    small.wcs.cd = wcs.wcs.cd * step
    program, solver = install(solved(ini_text(small)), downsample=step)
    assert solver.find().ok
    luminance = np.random.default_rng(0).normal(1000, 20, (79, 59)).astype(np.float32)
    outcome = solver.solve(make_request(tmp_path, image=luminance, offset=(0.5, 0.5)))
    assert (outcome.ok, outcome.kind, outcome.solver) == (True, "solved", "ASTAP")
    found = WCS(fits.Header(outcome.wcs_cards))
    x, y = np.meshgrid([0.0, 30, 59], [0.0, 40, 79])
    np.testing.assert_allclose(found.all_pix2world(x, y, 0), wcs.all_pix2world(x, y, 0), atol=1e-10)
    (call,) = calls_of(program)
    height = 79 // step
    assert float(option(call, "-fov")) == pytest.approx(2.4 * step * height / 3600, abs=1e-5)
    assert option(call, "-z") == "1"
    assert float(option(call, "-ra")) == pytest.approx(193 / 15, abs=1e-6)
    assert option(call, "-spd") == "131.000000"
    assert option(call, "-r") == "3"
    assert "-update" not in call
    assert list((tmp_path / "work").iterdir()) == []


def test_what_astap_gets_to_see(tmp_path, install):
    keep = tmp_path / "seen.fits"
    _, solver = install(f"import shutil; shutil.copy(value('-f'), {str(keep)!r})", downsample=2)
    luminance = np.arange(64, dtype=np.float32).reshape(8, 8) * 100
    solver.solve(make_request(tmp_path, image=luminance))
    with fits.open(keep) as hdus:
        assert (hdus[0].header["BITPIX"], hdus[0].header["BZERO"]) == (16, 32768)
        assert "RA" not in hdus[0].header
        np.testing.assert_array_equal(hdus[0].data, np.rint(luminance.reshape(4, 2, 4, 2).mean(axis=(1, 3))))


def test_without_hints(tmp_path, install):
    program, solver = install(solved("PLTSOLVD=F\n"))
    outcome = solver.solve(make_request(tmp_path, ra_deg=None, dec_deg=None, scale_arcsec=None))
    assert outcome.kind == "no_solution"
    call = calls_of(program)[0]
    assert "-ra" not in call
    assert (option(call, "-fov"), option(call, "-r")) == ("0", "180")


def test_sparse_database_gets_one_more_cheap_try(tmp_path, install):
    good = ini_text(true_wcs((80, 60)))
    body = f"text = {good!r} if value('-s') == '60' else 'PLTSOLVD=F'\nopen(value('-o') + '.ini', 'w').write(text)"
    program, solver = install(body)
    assert solver.solve(make_request(tmp_path)).ok
    assert [option(call, "-s") for call in calls_of(program)] == ["500", "60"]


@pytest.mark.parametrize(
    ("body", "kind", "key"),
    [
        (solved("PLTSOLVD=F\nWARNING=too few stars\n"), "no_solution", "solver_no_solution"),
        ("sys.exit(3)", "crash", "solver_crashed"),
        ("os.abort()", "crash", "solver_crashed"),
        ("print('Error, no star database found')\nsys.exit(32)", "unavailable", "solver_no_data"),
        ("time.sleep(30)", "timeout", "solver_timeout"),
        (solved("PLTSOLVD=T\nCRPIX1=1.0\n"), "no_solution", "solver_implausible"),
        (solved(ini_text(true_wcs((80, 60), scale_arcsec=9.0))), "no_solution", "solver_implausible"),
    ],
)
def test_failures_say_what_happened(tmp_path, install, body, kind, key):
    _, solver = install(body)
    outcome = solver.solve(make_request(tmp_path, timeout_s=2.0 if kind == "timeout" else 60.0))
    assert (outcome.ok, outcome.kind, outcome.key) == (False, kind, key)
    assert outcome.values["solver"] == "ASTAP"
    assert outcome.seconds > 0
    assert list((tmp_path / "work").iterdir()) == []


def test_cancel_while_it_runs(tmp_path, install):
    _, solver = install("time.sleep(60)")
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        solver.solve(make_request(tmp_path), cancel)
    assert time.monotonic() - start < 50  # the program itself would take 60 s
    assert list((tmp_path / "work").iterdir()) == []


def test_missing_program_and_missing_database(tmp_path, monkeypatch):
    for name in ("ASTAP_DATA_DIR", "ASTAP_STAR_DB", "ASTAP_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("zemosaic_io.solvers.astap.find_astap", lambda *_: None)
    solver = AstapSolver()
    assert (solver.find().ok, solver.find().key) == (False, "solver_not_found")
    assert solver.solve(make_request(tmp_path)).kind == "unavailable"
    monkeypatch.undo()
    program = write_program(tmp_path / "astap_cli", "")
    monkeypatch.setattr("zemosaic_io.solvers.astap.find_astap_data", lambda *_: None)
    assert AstapSolver(str(program)).find().key == "solver_no_data"


def test_decimal_comma_in_the_result(tmp_path):
    (tmp_path / "r.ini").write_text("PLTSOLVD=T\nCRPIX1= 1,5 // x\nCMDLINE=astap -f a=b\n")
    assert read_astap_ini(tmp_path / "r.ini") == {"PLTSOLVD": "T", "CRPIX1": 1.5, "CMDLINE": "astap -f a=b"}
    assert read_astap_ini(tmp_path / "none.ini") == {}


@pytest.mark.solver
@pytest.mark.skipif(shutil.which("astap_cli") is None, reason="ASTAP is not installed")
@pytest.mark.parametrize("step", [1, 2])
def test_real_astap(tmp_path, step):
    """A synthetic sky and a database made of the same stars: the WCS must fit to a small part of a pixel."""
    from astap_database import write_database

    rng = np.random.default_rng(5)
    shape, centre = (960, 720), (150.0, 40.0)
    n = 1500
    ra = centre[0] + (rng.random(n) - 0.5) * 1.6 / np.cos(np.radians(centre[1]))
    dec = centre[1] + (rng.random(n) - 0.5) * 1.6
    mag = 8.0 + 5.0 * rng.random(n) ** 0.5
    write_database(tmp_path / "db", ra, dec, mag)
    wcs = true_wcs(shape, 2.4, 37.0, centre)
    x, y = wcs.all_world2pix(ra, dec, 0)
    image = rng.normal(800, 15, shape).astype(np.float32)
    yy, xx = np.mgrid[-7:8, -7:8]
    for xi, yi, flux in zip(x, y, 4e5 * 10 ** (-0.4 * (mag - 9.0)), strict=True):
        if 10 < xi < shape[1] - 10 and 10 < yi < shape[0] - 10:
            cx, cy = round(xi), round(yi)
            spot = np.exp(-((xx + cx - xi) ** 2 + (yy + cy - yi) ** 2) / (2 * 1.4**2)) / (2 * np.pi * 1.4**2)
            image[cy - 7 : cy + 8, cx - 7 : cx + 8] += flux * spot
    solver = AstapSolver(shutil.which("astap_cli"), str(tmp_path / "db"), step)
    request = make_request(
        tmp_path,
        shape,
        np.minimum(image, 65535),
        ra_deg=centre[0] + 0.3,
        dec_deg=centre[1] - 0.2,
        scale_arcsec=2.39,
    )
    outcome = solver.solve(request)
    assert outcome.ok, outcome
    found = WCS(fits.Header(outcome.wcs_cards))
    gx, gy = np.meshgrid([0.0, 360, 719], [0.0, 480, 959])
    dx, dy = np.subtract(found.all_world2pix(*wcs.all_pix2world(gx, gy, 0), 0), (gx, gy))
    assert np.hypot(dx, dy).max() < 0.25
    assert abs(dx.mean()) < 0.12
    assert abs(dy.mean()) < 0.12
