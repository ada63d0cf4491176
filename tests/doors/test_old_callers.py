"""What a caller written for version 4 gets: a run by position, and single master tiles."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import zemosaic_worker
from zemosaic_core.errors import Cancelled, SettingsError
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.listed_frames import frames_with_known_wcs
from zemosaic_pipeline.records import Frame
from zemosaic_settings import Settings, canonical_values
from zemosaic_settings.old_call import POSITIONS, TILE_POSITIONS, read_tile_call

sys.path.insert(0, str(Path(__file__).parent.parent / "pipeline"))
from made_frames import base_cards, field_sky, pointings, write, write_all

SHAPE_HW = (160, 200)
QUICK = {
    "gpu_mode": "off", "num_base_workers_config": 1, "solver_method": "EMBEDDED", "sky_model": "none",
    "colour_calibration": "off", "cfa_refine": "off", "exclude_flagged_frames": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What version 4 calls a group: mappings with paths and WCS objects; half of the files have no WCS."""
    raw = tmp_path_factory.mktemp("old") / "raw"
    setups = pointings(n=4, shape_hw=SHAPE_HW, turn_deg=0.05)
    sky = field_sky(size_deg=0.4)
    paths = write_all(raw, sky, setups[:2]) + write_all(raw, sky, setups[2:], first=2, with_wcs=False)
    return [
        {"path_raw": str(path), "path_preprocessed_cache": None, "wcs": WCS(setup.cards), "header": None}
        for path, setup in zip(paths, setups, strict=True)
    ]


def test_a_single_master_tile(group, tmp_path):
    told = []

    def callback(key, progress=None, level=None, **values):
        told.append((key, level))

    before = [Path(item["path_raw"]).read_bytes() for item in group]
    # As version 4.1 did it, everything by position.
    (path, wcs), retry = zemosaic_worker.create_master_tile(
        group, 7, str(tmp_path / "tiles"), "linear_fit", "noise_variance", "kappa_sigma", 2.5, 3.0, (0.05, 0.05),
        "mean", False, False, 0.8, 2.0, 0.0, True, 16, 2.0, 4, 2, True, 5.0, 0.15, True, False, 0.48, 64, 2.5, 3,
        False, "", "", 3.0, 2, 100, 180, 1, 0, callback, {"cap": 50}, None, None, None, **QUICK,
    )  # fmt: skip
    assert retry == []
    assert Path(path) == tmp_path / "tiles" / "master_tile_007.fits"
    with fits.open(path) as hdus:
        header = hdus[0].header
        assert hdus[0].data.shape[0] == 3
        assert (header["ZMT_TYPE"], header["NEXP_SUM"], header["ZMT_REJ"]) == (
            "Master Tile",
            4,
            "kappa_sigma",
        )
        ra, dec = wcs.celestial.all_pix2world(*[(side - 1) / 2 for side in hdus[0].data.shape[:0:-1]], 0)
    assert (float(ra), float(dec)) == pytest.approx((150.0, 20.0), abs=0.02)
    # Nothing else is left behind, and nothing of the frames was touched.
    assert [entry.name for entry in (tmp_path / "tiles").iterdir()] == ["master_tile_007.fits"]
    assert before == [Path(item["path_raw"]).read_bytes() for item in group]
    assert any("PHASE_UPDATE" in str(key) for key, _ in told)
    # It was cut and masked, as asked.
    assert {key for key, _ in told} & {"tile_crop_edges", "tile_crop_nothing", "tile_crop_refused"}
    assert "tile_altaz_masked" in {key for key, _ in told}
    told.clear()
    nothing = zemosaic_worker.create_master_tile(["/nowhere.fit"], 1, tmp_path, progress_callback=callback)
    assert nothing == ((None, None), [])
    assert ("run_error_no_frames", "ERROR") in told


def test_a_run_by_position_reaches_the_same_settings(monkeypatch, tmp_path):
    seen = {}

    def run_classic(settings, report, *, cancel, selection):
        seen.update(settings=settings, selection=selection)
        return "result"

    monkeypatch.setattr(zemosaic_worker, "run_classic", run_classic)
    callback, said = (lambda *_, **values: said.append(values)), []
    old = [
        "/astap", "/stars", 3.0, 2, 100, 0.07, 0, 0.0, callback, 0.0, "linear_fit", "noise_variance",
        "winsorized_sigma_clip", 3.0, 2.5, (0.05, 0.05), "mean", True,
    ]  # fmt: skip
    made = zemosaic_worker.run_hierarchical_mosaic(
        str(tmp_path), str(tmp_path / "out"), *old, use_gpu_phase5=False, gpu_id_phase5=None,
        winsor_worker_limit_config=3, two_pass_cov_sigma_px_config=80,
        solver_settings={"solver_choice": "ASTAP"}, filtered_header_items=[{"path": "/a.fit", "wcs": None}],
    )  # fmt: skip
    assert made == "result"
    settings = seen["settings"]
    assert (settings.input_dir, settings.cluster_panel_threshold) == (str(tmp_path), 0.07)
    assert (settings.stacking_kappa_high, settings.poststack_equalize_rgb) == (2.5, True)
    assert (settings.use_gpu_phase5, settings.winsor_worker_limit, settings.solver_method) == (
        False,
        3,
        "ASTAP",
    )
    assert seen["selection"].frames == ("/a.fit",)
    # What is no option any more was told with what stands for it.
    assert any("two_pass_cov_sigma_px = 80" in str(values.get("options")) for values in said)
    # What the call says goes before a configuration, by whatever name.
    zemosaic_worker.run_hierarchical_mosaic(
        tmp_path, tmp_path / "out", config={"stacking_kappa_low": 3.0}, stack_kappa_low_config=2.0
    )
    assert seen["settings"].stacking_kappa_low == 2.0
    with pytest.raises(Cancelled):
        zemosaic_worker.run_hierarchical_mosaic(
            tmp_path, tmp_path / "out", filter_overrides={"filter_cancelled": True}
        )
    with pytest.raises(SettingsError):
        zemosaic_worker.run_hierarchical_mosaic(tmp_path, tmp_path / "out", *[None] * 96)


def test_the_arguments_of_a_tile_by_position():
    """By the callback it shows which version a call was written for."""
    common = ["none", "none", "kappa_sigma", 2.5, 3.0, (0.1, 0.1), "mean", False, True, 0.7, 3.0, 0.1]
    new = [2, True, 5.0, 0.15, True, True, 0.5, 64, 2.5, 3, False]
    last = ["/astap", "/stars", 3.5, 4, 100, 180, 6, 32, print, {"cap": 50}, None, {}, 1]
    for given in ([*common, True, 24, 2.5, 4, *last], [*common, True, 24, 2.5, 4, *new, *last]):
        call = read_tile_call([{"path_raw": "/a.fit"}], given, {"use_gpu_phase5": False})
        assert call.progress_callback is print
        assert call.selection == {"frame_selection": ["/a.fit"]}
        found = Settings.from_mapping(canonical_values(call.options)[0])
        assert (found.stacking_kappa_low, found.quality_crop_band_px, found.radial_shape_power) == (
            2.5,
            24,
            3.0,
        )
        assert (found.astap_executable_path, found.astap_default_search_radius) == ("/astap", 3.5)
        assert (found.winsor_worker_limit, found.winsor_max_frames_per_pass) == (6, 32)
        assert (found.quality_gate_enabled, found.use_gpu_phase5) == (len(given) > 35, False)
    # Each has its name, too.
    named = read_tile_call([], [], dict(zip(TILE_POSITIONS, given, strict=True)))
    assert named.options | {"use_gpu_phase5": False} == call.options
    with pytest.raises(SettingsError):
        read_tile_call([], [None] * 41, {})
    with pytest.raises(SettingsError):
        read_tile_call([], common, {"stack_kappa_low": 2.0})


def test_the_signatures_take_what_version_4_gave():
    arguments = inspect.signature(zemosaic_worker.create_master_tile).parameters
    assert list(arguments)[:3] == ["seestar_stack_group_info", "tile_id", "output_temp_dir"]
    for function in (
        zemosaic_worker.run_hierarchical_mosaic,
        zemosaic_worker.run_hierarchical_mosaic_process,
    ):
        bound = inspect.signature(function).bind(
            *(["queue"] if "process" in function.__name__ else []), *POSITIONS
        )
        assert len(bound.arguments["old_arguments"]) == 95


def test_a_wcs_that_the_caller_knows_stands_in_for_a_missing_one(tmp_path):
    (setup,) = pointings(n=1, shape_hw=SHAPE_HW)
    path = write(
        tmp_path / "a.fit", np.zeros(SHAPE_HW, np.uint16), base_cards(setup, 0, with_wcs=False, RA=None)
    )
    frame = Frame(0, read_frame_info(path))
    assert frame.info.wcs_cards is None
    (known,) = frames_with_known_wcs([frame], {str(path): dict(WCS(setup.cards).to_header(relax=True))})
    assert known.info.ra_deg == pytest.approx(150.0, abs=0.02)
    assert known.info.scale_arcsec == pytest.approx(2.37, abs=0.01)
    # One of its own goes before; cards that describe no sky do not count.
    assert frames_with_known_wcs([known], {str(path): {"CTYPE1": "X"}}) == [known]
    assert frames_with_known_wcs([frame], {str(path): {"CTYPE1": "X"}}) == [frame]
    assert frames_with_known_wcs([replace(frame, index=3)], {}) == [replace(frame, index=3)]
