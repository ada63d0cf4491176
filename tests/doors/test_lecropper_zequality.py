"""`lecropper` and `zequalityMT` as callers of version 4 use them, on arrays and files, and their commands."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import lecropper
import zequalityMT
from run_zemosaic import main
from zemosaic_core.altaz_mask import AltAzOptions
from zemosaic_core.quality_crop import CropOptions
from zemosaic_core.tile_quality import QualityOptions
from zemosaic_pipeline import tile_checks
from zemosaic_pipeline.records import MasterTile
from zemosaic_pipeline.tile_plan import QualityGate, TileCheckOptions

SHAPE = (256, 320)


def picture(bad_left=64, seed=1):
    rng = np.random.default_rng(seed)
    planes = rng.normal(1000, 10, (3, *SHAPE)).astype(np.float32)
    planes[:, :, :bad_left] = np.nan
    return planes


def write(path, planes, coverage=None):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"], header["CRPIX1"], header["CRPIX2"] = 10.0, 40.0, 100.0, 80.0
    header["CDELT1"], header["CDELT2"] = -1e-3, 1e-3
    known = np.isfinite(planes).all(axis=0)
    coverage = np.where(known, 12, 0).astype(np.uint16) if coverage is None else coverage
    units = [fits.PrimaryHDU(planes, header), fits.ImageHDU(coverage, name="COVERAGE")]
    units += [fits.ImageHDU((coverage / 12).astype(np.float32), name="WEIGHT")]
    units += [fits.ImageHDU(np.zeros(SHAPE, np.uint8), name="CLIPPED")]
    fits.HDUList(units).writeto(path)
    return path


def test_detect_autocrop_rgb_of_version_4():
    planes = picture()
    y0, x0, y1, x1 = lecropper.detect_autocrop_rgb(
        planes.mean(axis=0), *planes, band_px=32, k_sigma=2.0, margin_px=8
    )
    assert (y0, y1, x1) == (0, *SHAPE)
    assert 64 <= x0 <= 104


def test_altaz_calls_of_version_4():
    image = np.moveaxis(picture(0), 0, -1)
    masked, mask = lecropper.mask_altaz_artifacts(
        image, margin_percent=10.0, decay_ratio=0.3, fill_value=-1.0, return_mask=True, hard_threshold=1e-3
    )
    assert masked[0, 0, 0] == -1
    assert mask[128, 160] == 1
    np.testing.assert_array_equal(masked[128, 160], image[128, 160])
    assert image[0, 0, 0] > 0  # the caller's array stays
    cleaned, again = lecropper.apply_altaz_cleanup(image, 10.0, 0.3, True)
    assert np.isnan(cleaned[0, 0]).all()
    np.testing.assert_array_equal(again, mask)
    assert lecropper.altZ_cleanup is lecropper.apply_altaz_cleanup


def test_quality_crop_moves_the_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = (100.0, 80.0)
    image = np.moveaxis(picture(), 0, -1)
    cut, moved, (y0, x0, y1, x1) = lecropper.quality_crop(image, wcs)
    assert cut.shape == (y1 - y0, x1 - x0, 3)
    assert moved.wcs.crpix.tolist() == [100.0 - x0, 80.0 - y0]
    assert wcs.wcs.crpix.tolist() == [100.0, 80.0]


def test_save_cropped_fits_of_version_4(tmp_path):
    source = write(tmp_path / "a.fits", picture())
    assert lecropper.load_fits_rgb(source).shape == (*SHAPE, 3)
    made = lecropper.save_cropped_fits(source, (10, 70, 200, 300), tmp_path / "b.fits")
    with fits.open(made) as hdus:
        assert hdus[0].shape == (3, 190, 230)
        assert (hdus[0].header["CRPIX1"], hdus[0].header["CRPIX2"]) == (30.0, 70.0)
        assert {hdu.shape for hdu in hdus[1:]} == {(190, 230)}
    with pytest.raises(ValueError, match="original"):
        lecropper.save_cropped_fits(source, (10, 70, 200, 300), source)


def test_quality_metrics_of_version_4():
    image = np.moveaxis(picture(0), 0, -1)
    found = zequalityMT.quality_metrics(image, edge_band=64, k_sigma=2.5, erode_px=3, galaxy_protect=True)
    names = {"CC", "ED", "SC", "NBR", "BU", "SDED", "CEC", "EOC", "TRL", "CER", "score"}
    assert set(found) == names
    assert zequalityMT.accept(found)
    alpha = np.ones((*SHAPE, 1), np.float32)
    alpha[:, :150] = 0.5
    half = zequalityMT.quality_metrics(np.concatenate([image, alpha], axis=-1))
    assert half["NBR"] > 0.3 > found["NBR"]


def test_commands_write_beside_and_move_only_when_asked(tmp_path, capsys):
    good, bad = write(tmp_path / "good.fits", picture(0)), write(tmp_path / "bad.fits", picture(200))
    before = good.read_bytes()
    assert main(["quality", str(tmp_path), "--json"]) == 1
    found = {row["file"]: row for row in json.loads(capsys.readouterr().out)}
    assert found[str(good)]["accepted"]
    assert not found[str(bad)]["accepted"]
    assert bad.is_file()
    assert main(["quality", str(tmp_path), "--json", "--move-to", str(tmp_path / "poor")]) == 1
    assert not bad.exists()
    assert (tmp_path / "poor" / "bad.fits").is_file()
    capsys.readouterr()
    assert main(["crop", str(good), "--altaz", "--json", "--sidecar", "png"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    with fits.open(tmp_path / "good_cropped.fits") as hdus:
        assert hdus["ALPHA"].data.max() == 255
        assert hdus[0].header["ALPHAEXT"] == 1
    assert row["reason"] == "crop_nothing"
    assert (tmp_path / "good_cropped_alpha.png").is_file()
    assert main(["crop", str(good), "--json"]) == 1  # it is there already
    assert good.read_bytes() == before
    assert main(["quality", str(tmp_path / "nothing.fits")]) == 2


def master(path, tile_id, origin=(5, 7)):
    return MasterTile(
        tile_id=tile_id, path=str(path), origin_yx=origin, shape_hw=SHAPE, frames=(tile_id,), exposure_s=1.0,
        n_exposures=1, noise_adu=(1.0, 1.0, 1.0), rejected_fraction=0.0, core_rejected_fraction=None,
        median_coverage=12.0, map_error_px=0.0, covered_bbox=(0, SHAPE[0], 0, SHAPE[1]), flux_gain=(1.0, 1.0, 1.0),
    )  # fmt: skip


def checked(tiles, tmp_path, crop=None, altaz=None, gate=None):
    said = []
    context = SimpleNamespace(
        work_dir=tmp_path,
        cancel=SimpleNamespace(check=lambda: None),
        say=lambda key, level="INFO", **values: said.append(key),
    )
    plan = SimpleNamespace(
        tile_checks=TileCheckOptions(crop, altaz, gate), stack=SimpleNamespace(tile_ramp_px=0)
    )
    return tile_checks.run(tiles, plan, context), said


def test_a_run_cuts_tiles_and_leaves_the_poor_ones_out(tmp_path):
    tiles = [master(write(tmp_path / f"t{k}.fits", picture(bad)), k) for k, bad in enumerate((64, 200))]
    same, said = checked(tiles, tmp_path)
    assert same == tiles
    assert said == []
    (cut, whole), said = checked(tiles, tmp_path, crop=CropOptions())
    assert said == ["tile_crop_edges", "tile_crop_refused"]
    assert whole == tiles[1]
    assert cut.origin_yx[1] == 7 + SHAPE[1] - cut.shape_hw[1]
    with fits.open(cut.path) as hdus:
        assert hdus[0].shape == (3, *cut.shape_hw)
        np.testing.assert_array_equal(hdus[0].data, picture(64)[:, :, SHAPE[1] - cut.shape_hw[1] :])
        assert np.isfinite(hdus[0].data).all()
    gate = QualityGate(0.48, QualityOptions(), True)
    kept, said = checked(tiles, tmp_path, gate=gate)
    assert kept == tiles[:1]
    assert said == ["tile_gate_left_out"]
    kept, said = checked(tiles, tmp_path, gate=QualityGate(0.48, QualityOptions(), False))
    assert kept == tiles
    kept, said = checked(tiles[1:], tmp_path, gate=gate)
    assert kept == tiles[1:]
    assert "tile_gate_all" in said


def test_a_run_masks_thin_corners(tmp_path):
    coverage = np.full(SHAPE, 12, np.uint16)
    coverage[:40, :60] = 1
    tile = master(write(tmp_path / "t.fits", picture(0), coverage), 0)
    (masked,), said = checked([tile], tmp_path, altaz=AltAzOptions())
    assert said == ["tile_altaz_masked"]
    with fits.open(masked.path) as hdus:
        assert np.isnan(hdus[0].data[:, :40, :60]).all()
        assert np.isfinite(hdus[0].data[:, 60:, 80:]).all()
        assert not hdus["WEIGHT"].data[:40, :60].any()
        assert not hdus["COVERAGE"].data[:40, :60].any()
