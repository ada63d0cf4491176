from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from solver_fakes import calls_of, make_request, option, star_list, true_wcs, write_program

from zemosaic_io.fits_read import read_image
from zemosaic_io.headers import read_frame_info
from zemosaic_io.solvers.astrometry_net import SolveFieldSolver


def wcs_file(path, wcs, **extra):
    header = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)])
    header.update(wcs.to_header())
    header.update(extra)
    path.write_bytes(header.tostring(padding=True).encode("ascii"))
    return path


def corr_file(path):
    columns = [
        fits.Column(name, "D", array=np.array(values))
        for name, values in {
            "field_x": [10.0, 20.0, 30.0],
            "field_y": [1.0, 2.0, 3.0],
            "index_x": [10.0, 20.3, 30.0],
            "index_y": [1.0, 2.4, 3.0],
        }.items()
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


@pytest.fixture
def install(tmp_path):
    """Install a fake solve-field with an index file; ``body`` is what it does."""

    def make(body, configured=None):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = write_program(folder / "solve-field", body)
        (folder / "index-0.fits").touch()
        config = tmp_path / "a.cfg"
        config.write_text(f"add_path {folder}\nautoindex\n")
        solver = SolveFieldSolver(str(program) if configured is None else configured)
        solver._config = config
        return program, solver

    return make


@pytest.fixture
def stars():
    rng = np.random.default_rng(3)
    return star_list(rng.random(400) * 60, rng.random(400) * 80)


def answer(wcs, corr=None):
    copy_corr = f"shutil.copy({str(corr)!r}, value('--corr'))" if corr else ""
    return f"import shutil\nshutil.copy({str(wcs)!r}, value('--wcs'))\n{copy_corr}"


def test_star_list_is_sent_and_the_answer_is_for_the_full_frame(tmp_path, install, stars):
    wcs = true_wcs((80, 60))
    body = answer(wcs_file(tmp_path / "r.wcs", wcs), corr_file(tmp_path / "r.corr"))
    keep = tmp_path / "seen.xyls"
    program, solver = install(body + f"\nshutil.copy(args[0], {str(keep)!r})")
    outcome = solver.solve(make_request(tmp_path, stars=stars, image_provider=None))
    assert outcome.ok
    assert (outcome.solver, outcome.n_matched) == ("ASTROMETRY", 3)
    assert outcome.rms_px == pytest.approx(np.sqrt(0.25 / 3))
    found = WCS(fits.Header(outcome.wcs_cards))
    np.testing.assert_allclose(found.all_pix2world(3, 7, 0), wcs.all_pix2world(3, 7, 0), atol=1e-10)
    with fits.open(keep) as hdus:
        table = hdus[1].data
        assert len(table) == 300
        np.testing.assert_allclose(table["X"], stars.x[:300] + 1.0)
    (call,) = calls_of(program)
    assert (option(call, "--width"), option(call, "--height")) == ("60", "80")
    assert (option(call, "--scale-low"), option(call, "--scale-high")) == ("2.16000", "2.64000")
    assert (option(call, "--ra"), option(call, "--dec"), option(call, "--radius")) == (
        "193.000000",
        "41.000000",
        "3",
    )
    assert option(call, "--config").endswith("a.cfg")
    assert list((tmp_path / "work").iterdir()) == []


def test_without_stars_a_picture_is_sent_and_its_offset_counts(tmp_path, install):
    wcs = true_wcs((80, 60))
    small = wcs.deepcopy()
    small.wcs.crpix = wcs.wcs.crpix - 0.5
    _, solver = install(answer(wcs_file(tmp_path / "r.wcs", small)))
    outcome = solver.solve(make_request(tmp_path, offset=(0.5, 0.5), ra_deg=None))
    found = WCS(fits.Header(outcome.wcs_cards))
    np.testing.assert_allclose(found.all_pix2world(3, 7, 0), wcs.all_pix2world(3, 7, 0), atol=1e-10)
    assert (outcome.n_matched, outcome.rms_px) == (None, None)


def test_distortion_is_kept(tmp_path, install, stars):
    header = wcs_file(
        tmp_path / "r.wcs",
        true_wcs((80, 60)),
        CTYPE1="RA---TAN-SIP",
        CTYPE2="DEC--TAN-SIP",
        A_ORDER=2,
        B_ORDER=2,
        A_2_0=1e-4,
        B_1_1=2e-4,
    )
    _, solver = install(answer(header))
    outcome = solver.solve(make_request(tmp_path, stars=stars))
    found, truth = WCS(fits.Header(outcome.wcs_cards)), WCS(fits.getheader(header))
    np.testing.assert_allclose(found.all_pix2world(0, 0, 0), truth.all_pix2world(0, 0, 0), atol=1e-10)


@pytest.mark.parametrize(
    ("body", "kind", "key"),
    [
        ("", "no_solution", "solver_no_solution"),
        ("print('no such library')\nsys.exit(127)", "crash", "solver_crashed"),
        ("time.sleep(30)", "no_solution", "solver_timeout"),
        ("open(value('--wcs'), 'w').write('rubbish')", "no_solution", "solver_implausible"),
    ],
)
def test_failures_say_what_happened(tmp_path, install, stars, body, kind, key):
    _, solver = install(body)
    outcome = solver.solve(
        make_request(tmp_path, stars=stars, timeout_s=1.5 if key == "solver_timeout" else 60.0)
    )
    assert (outcome.ok, outcome.kind, outcome.key) == (False, kind, key)
    assert list((tmp_path / "work").iterdir()) == []


def test_nothing_to_send(tmp_path, install):
    _, solver = install("")
    outcome = solver.solve(make_request(tmp_path, stars=star_list([1.0], [2.0]), image_provider=None))
    assert (outcome.kind, outcome.values["stars"]) == ("too_few_stars", 1)


def test_configured_folder_of_index_files(tmp_path, install, stars, monkeypatch):
    program, _ = install(
        "import shutil; shutil.copy(value('--config'), os.path.dirname(__file__) + '/seen.cfg')"
    )
    indexes = tmp_path / "my indexes"
    indexes.mkdir()
    (indexes / "index-4107.fits").touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    solver = SolveFieldSolver(str(indexes), name="ANSVR")
    assert solver.find().ok
    assert str(indexes) in solver.find().detail
    solver.solve(make_request(tmp_path, stars=stars))
    assert f"add_path {indexes}\n" in (program.parent / "seen.cfg").read_text()


def test_configuration_without_index_files(tmp_path, install):
    program, _ = install("")
    empty = tmp_path / "empty.cfg"
    empty.write_text("add_path /nowhere\n")
    solver = SolveFieldSolver(str(program))
    solver._config = empty
    assert (solver.find().ok, solver.find().key) == (False, "solver_no_data")


def luminance(data):
    data = data.astype(np.float32)
    return (data[:-1, :-1] + data[1:, :-1] + data[:-1, 1:] + data[1:, 1:]) / 4


@pytest.mark.solver
@pytest.mark.skipif(shutil.which("solve-field") is None, reason="astrometry.net is not installed")
@pytest.mark.parametrize("which", [0, 8, 12])
def test_real_frames(tmp_path, real_frames, which):
    """Stars and picture of one frame must lead to the same WCS: the half pixels are right in both."""
    from zemosaic_core.stars import detect_stars

    solver = SolveFieldSolver()
    if not solver.find().ok:
        pytest.skip(solver.find().detail)
    path = real_frames[which]
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    info = read_frame_info(path)
    image = luminance(read_image(info))
    stars = detect_stars(image, offset=(0.5, 0.5))
    common = {
        "ra_deg": info.ra_deg,
        "dec_deg": info.dec_deg,
        "scale_arcsec": info.scale_arcsec,
        "timeout_s": 60.0,
    }
    by_stars = solver.solve(make_request(tmp_path, info.shape_hw, image, (0.5, 0.5), stars=stars, **common))
    by_picture = solver.solve(make_request(tmp_path, info.shape_hw, image, (0.5, 0.5), **common))
    assert by_stars.ok
    assert by_picture.ok
    assert by_stars.n_matched >= 10
    assert by_stars.rms_px < 0.4
    one, other = (WCS(fits.Header(outcome.wcs_cards)) for outcome in (by_stars, by_picture))
    scale = np.sqrt(abs(np.linalg.det(one.pixel_scale_matrix))) * 3600
    assert 2.37 < scale < 2.38
    x, y = np.meshgrid([100.0, 540, 980], [100.0, 960, 1820])
    dx, dy = np.subtract(other.all_world2pix(*one.all_pix2world(x, y, 0), 0), (x, y))
    assert np.hypot(dx, dy).max() < 0.25
    assert np.hypot(dx.mean(), dy.mean()) < 0.1
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
