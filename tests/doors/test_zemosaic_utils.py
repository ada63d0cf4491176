from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

import zemosaic_utils as door
from zemosaic_core.coadd import coadd_block
from zemosaic_core.errors import Cancelled, SaveFailed, SettingsError, SkipItem
from zemosaic_core.image_coadd import ArrayPixels, place_images
from zemosaic_core.sources import CombineRule


def make_wcs(dx=0.0, dy=0.0, rotation=0.0, shape=(60, 80), scale=5e-4):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 30.0]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5 + dx, shape[0] / 2 + 0.5 + dy]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    wcs.wcs.cd = scale * np.array([[-c, s], [s, c]])
    wcs.wcs.set()
    return wcs


def sky(wcs, shape):
    """A smooth pattern fixed on the sky."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    ra, dec = wcs.all_pix2world(x, y, 0)
    return (1000 + 80 * np.sin(3000 * np.radians(ra)) + 60 * np.cos(4000 * np.radians(dec))).astype(
        np.float32
    )


@pytest.fixture
def tiles():
    wcs = [make_wcs(), make_wcs(-25, 10, 20), make_wcs(30, -5, -35)]
    return [sky(w, (60, 80)) for w in wcs], wcs, make_wcs(shape=(120, 140)), (120, 140)


def make_sources(tiles):
    data, wcs, out, shape = tiles
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1, 1))
    sources = place_images([d.shape for d in data], wcs, out, shape, terms, np.ones((3, 1)), feather_px=9)
    return ArrayPixels([d[None] for d in data]), sources, shape


@pytest.mark.parametrize("rule", [CombineRule("none"), CombineRule()])
@pytest.mark.parametrize("budget", [1, 40 << 20, 1 << 30])
def test_blocks_come_in_order_and_equal_the_whole(tiles, rule, budget):
    pixels, sources, shape = make_sources(tiles)
    whole = coadd_block(pixels, sources, 0, shape[0], shape[1], 1, rule, "lanczos3")
    rows, progress = [], []
    image = np.empty((1, *shape), np.float32)

    def sink(y0, y1, block):
        rows.append((y0, y1))
        image[:, y0:y1] = block.image

    door.coadd_on_grid(
        pixels, sources, shape, 1, rule, "lanczos3", sink=sink, budget_bytes=budget,
        on_rows=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert rows[0][0] == 0
    assert rows[-1][1] == shape[0]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
    assert progress[-1] == (120, 120)
    assert np.array_equal(image, whole.image, equal_nan=True)


def test_a_stop_between_blocks_is_honoured(tiles):
    pixels, sources, shape = make_sources(tiles)
    stop, seen = threading.Event(), []

    def sink(y0, y1, block):
        seen.append(y0)
        stop.set()

    with pytest.raises(Cancelled):
        door.coadd_on_grid(
            pixels, sources, shape, 1, CombineRule(), "bilinear", sink=sink, budget_bytes=1, cancel=stop
        )
    assert seen == [0]


def test_incremental_equals_the_mean_and_refuses_rejection(tiles):
    pixels, sources, shape = make_sources(tiles)
    got = {}
    for name in ("coadd_on_grid", "coadd_incremental"):
        blocks = []
        getattr(door, name)(
            pixels, sources, shape, 1, CombineRule("none"), "bilinear", budget_bytes=1 << 30,
            sink=lambda y0, y1, block, blocks=blocks: blocks.append(block.image),
        )  # fmt: skip
        got[name] = np.concatenate(blocks, axis=1)
    assert np.array_equal(*got.values(), equal_nan=True)
    with pytest.raises(SettingsError, match="incremental"):
        door.coadd_incremental(
            pixels, sources, shape, 1, CombineRule(), "bilinear", sink=print, budget_bytes=1
        )


def test_reprojected_tiles_show_the_sky(tiles):
    data, wcs, out, shape = tiles
    mosaic, coverage = door.reproject_and_coadd_wrapper(data, wcs, shape, output_projection=out)
    truth = sky(out, shape)
    assert mosaic.shape == coverage.shape == shape
    assert np.array_equal(np.isnan(mosaic), coverage == 0)
    assert coverage.max() == 3
    assert np.nanmax(np.abs(mosaic - truth)) < 3
    colour, _ = door.reproject_and_coadd_wrapper(
        [np.repeat(d[..., None], 3, axis=2) for d in data], wcs, shape, output_projection=out.to_header()
    )
    np.testing.assert_array_equal(colour[..., 2], mosaic)


def test_agrees_with_reproject(tiles):
    reproject = pytest.importorskip("reproject")
    from reproject.mosaicking import reproject_and_coadd

    data, wcs, out, shape = tiles
    ours, _ = door.reproject_and_coadd_wrapper(data, wcs, shape, output_projection=out)
    peer, footprint = door.reproject_and_coadd_wrapper(
        data, wcs, shape, output_projection=out, rows_per_chunk=7, kernel="bilinear",
        cpu_func=lambda pairs, **kw: reproject_and_coadd(
            pairs, kw["output_projection"], shape_out=kw["shape_out"],
            reproject_function=reproject.reproject_interp,
        ),
    )  # fmt: skip
    single = (footprint == 1) & np.isfinite(ours)
    assert single.sum() > 2000
    np.testing.assert_allclose(ours[single], peer[single], atol=0.02)


def test_backgrounds_and_given_corrections_are_applied(tiles):
    data, wcs, out, shape = tiles
    lifted = [d + offset for d, offset in zip(data, (0, 200, -150), strict=True)]
    plain, _ = door.reproject_and_coadd_wrapper(data, wcs, shape, output_projection=out)
    matched, _ = door.reproject_and_coadd_wrapper(
        lifted, wcs, shape, output_projection=out, match_background=True
    )
    shift = np.nanmedian(matched - plain)
    assert np.nanmax(np.abs(matched - plain - shift)) < 1.0
    given, _ = door.reproject_and_coadd_wrapper(
        lifted, wcs, shape, output_projection=out, tile_affine_corrections=[(1, 0), (1, -200), (1, 150)]
    )
    np.testing.assert_allclose(given, plain, atol=1e-3)


def test_weights_rejection_and_unknown_options(tiles):
    data, wcs, out, shape = tiles
    one, coverage = door.reproject_and_coadd_wrapper(
        data, wcs, shape, output_projection=out, tile_weights=[1.0, 0.0, 0.0]
    )
    assert coverage.max() == 1
    first, _ = door.reproject_and_coadd_wrapper(data[:1], wcs[:1], shape, output_projection=out)
    assert np.array_equal(one, first, equal_nan=True)
    many = [data[0]] * 6 + [data[0] + 5000]
    clipped, _ = door.reproject_and_coadd_wrapper(
        many, [wcs[0]] * 7, shape, output_projection=out, combine_function="mean",
        stack_reject_algo="kappa_sigma", coadd_k=2.0,
    )  # fmt: skip
    np.testing.assert_allclose(clipped, first, atol=1e-3)
    maps = [np.zeros((60, 80)), None, None]
    masked, weight = door.reproject_and_coadd_wrapper(
        data, wcs, shape, output_projection=out, input_weights=maps, combine_function="median"
    )
    assert weight.max() == 2
    assert np.isnan(masked).sum() > 0
    with pytest.raises(TypeError, match="colour"):
        door.reproject_and_coadd_wrapper(data, wcs, shape, output_projection=out, colour=1)
    with pytest.raises(SettingsError, match="best"):
        door.reproject_and_coadd_wrapper(data, wcs, shape, output_projection=out, combine_function="best")
    with pytest.raises(ValueError, match="output_projection"):
        door.reproject_and_coadd_wrapper(data, wcs, shape)


def test_no_tiles_give_an_empty_mosaic():
    mosaic, coverage = door.reproject_and_coadd_wrapper([], [], (4, 5), output_projection=make_wcs())
    assert np.isnan(mosaic).all()
    assert coverage.sum() == 0


def test_affine_calibration_undoes_gain_and_offset(tiles):
    data, wcs, out, shape = tiles
    rng = np.random.default_rng(0)
    truth = {0: (1.0, 0.0), 1: (1.0, 120.0), 2: (1.0, -80.0)}
    spoilt = [(d + truth[i][1] + rng.normal(0, 2, d.shape)).astype(np.float32) for i, d in enumerate(data)]
    before = [d.copy() for d in spoilt]
    calls = []
    found = door.compute_intertile_affine_calibration(
        list(zip(spoilt, wcs, strict=True)), out, shape, preview_size=40,
        progress_callback=lambda *a: calls.append(a),
    )  # fmt: skip
    level = [gain * 1000 + gain * truth[i][1] + offset for i, (gain, offset) in found.items()]
    assert max(level) - min(level) < 6
    assert sorted(found) == [0, 1, 2]
    assert calls[-1] == ("phase5_intertile", 3, 3)
    assert all(np.array_equal(a, b) for a, b in zip(before, spoilt, strict=True))
    assert door.compute_intertile_affine_calibration([], out, shape) == {}


def test_hot_pixel_door_saves_its_mask(tmp_path):
    image = np.random.default_rng(0).normal(100, 3, (30, 30, 3)).astype(np.float32)
    image[5, 6, 1] = 5000
    said = []
    fixed = door.detect_and_correct_hot_pixels(
        image, 8.0, 5, lambda *a, **k: said.append((a, k)), tmp_path / "sub" / "mask.npy"
    )
    mask = np.load(tmp_path / "sub" / "mask.npy")
    assert mask.dtype == np.uint8
    assert np.argwhere(mask).tolist() == [[5, 6, 1]]
    assert fixed[5, 6, 1] < 120
    assert said[0][1] == {"count": 1}


def test_debayer_returns_rgb_planes_last():
    image = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    colour = door.debayer_image(image, "RGGB")
    assert colour.shape == (6, 8, 3)
    assert colour[0, 0, 0] == image[0, 0]
    assert colour[1, 1, 2] == image[1, 1]
    with pytest.raises(TypeError, match="list"):
        door.debayer_image([[1, 2]])
    with pytest.raises(ValueError, match="pattern"):
        door.debayer_image(image, "XYZW")


def test_stretch_background_and_radial_map_pass_through():
    image = np.random.default_rng(0).normal(100, 5, (40, 50, 3)).astype(np.float32)
    image[:5] = np.nan
    picture = door.stretch_auto_asifits_like(image)
    assert 0 <= np.nanmin(picture) <= np.nanmax(picture) <= 1
    assert np.nanmedian(door.estimate_background_map(image, "gaussian", 8.0)) == pytest.approx(100, abs=1)
    assert door.make_radial_weight_map(9, 11)[4, 5] == 1


@pytest.mark.parametrize("crpix", [(40.5, 30.5), (-300.0, 900.0)])
def test_cropping_moves_no_pixel_on_the_sky(crpix):
    wcs = make_wcs()
    wcs.wcs.crpix = crpix
    a, b = np.zeros((3, 3)), np.zeros((3, 3))
    a[2, 0] = 1e-6
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    image = np.arange(60 * 80, dtype=np.float32).reshape(60, 80)
    cut, cut_wcs = door.crop_image_and_wcs(image, wcs, 0.1)
    assert cut.shape == (48, 64)
    assert cut[0, 0] == image[6, 8]
    np.testing.assert_allclose(
        cut_wcs.all_pix2world([[3, 4]], 0), wcs.all_pix2world([[11, 10]], 0), atol=1e-12
    )
    assert tuple(wcs.wcs.crpix) == crpix
    with pytest.raises(ValueError, match="fraction"):
        door.crop_image_and_wcs(image, wcs, 0.5)


def test_wcs_headers_are_judged():
    header = make_wcs().to_header()
    header["NAXIS1"], header["NAXIS2"] = 80, 60
    ok, wcs, reason = door.validate_wcs_header(header)
    assert ok
    assert reason is None
    assert wcs.has_celestial
    for broken, text in (
        ({}, "celestial"),
        ({**header, "NAXIS1": 0}, "size"),
        ({**header, "PC1_1": 0.0, "PC1_2": 0.0, "CDELT1": 1.0}, "singular|cannot be read"),
    ):
        ok, wcs, reason = door.validate_wcs_header(fits.Header(broken))
        assert not ok
        assert wcs is None
        assert any(word in reason for word in text.split("|")), reason
    del header["NAXIS1"]
    assert door.validate_wcs_header(header, require_footprint=False)[0]


@pytest.mark.parametrize("axis_order", ["HWC", "CHW"])
def test_float_files_keep_every_value(tmp_path, axis_order):
    image = np.random.default_rng(0).normal(-5, 100, (12, 14, 3)).astype(np.float32)
    image[0, 0] = np.nan
    header = make_wcs().to_header()
    header["OBJECT"] = "M 94"
    given = image if axis_order == "HWC" else np.moveaxis(image, -1, 0)
    path = tmp_path / "a.fits"
    door.save_fits_image(
        given, path, header, save_as_float=True, axis_order=axis_order, alpha_mask=image[..., 0] > 0
    )
    back, back_header, info = door.load_and_validate_fits(
        path, normalize_to_float32=False, attempt_fix_nonfinite=False
    )
    np.testing.assert_array_equal(back, image)
    assert back.dtype.isnative
    assert back_header["OBJECT"] == "M 94"
    assert WCS(back_header, naxis=2).wcs.crval[0] == 150
    assert info["axis_order_original"] == "CHW"
    assert info["alpha_mask"][0, 0] == 0
    assert info["alpha_mask"].sum() == 255 * (12 * 14 - 1)
    with fits.open(path) as hdus:
        assert hdus["ALPHA"].data.shape == (12, 14)


def test_sixteen_bit_files_and_normalised_reading(tmp_path):
    image = np.linspace(100, 900, 12 * 14 * 3, dtype=np.float32).reshape(12, 14, 3)
    door.save_fits_image(image, tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as hdus:
        assert [h.name for h in hdus[1:]] == ["R", "G", "B"]
        assert hdus[0].data.shape == (12, 14)
        assert hdus["G"].data.dtype == np.uint16
    door.save_fits_image(image, tmp_path / "cube.fits", legacy_rgb_cube=True)
    back, _, info = door.load_and_validate_fits(tmp_path / "cube.fits")
    assert back.shape == (12, 14, 3)
    assert back.min() == 0
    assert back.max() == 1
    assert info["hdu"] == 0
    np.testing.assert_allclose(back, (image - 100) / 800, atol=0.03)
    door.save_fits_image(image[..., 0], tmp_path / "mono.fits")
    assert door.load_and_validate_fits(tmp_path / "mono.fits")[0].shape == (12, 14)


def test_missing_values_become_zero_only_on_request(tmp_path):
    image = np.ones((5, 6), np.float32)
    image[2, 3] = np.inf
    door.save_fits_image(image, tmp_path / "a.fits", save_as_float=True)
    back, _, info = door.load_and_validate_fits(tmp_path / "a.fits", normalize_to_float32=False)
    assert back[2, 3] == 0
    assert info["alpha_mask"][2, 3] == 0
    kept = door.load_and_validate_fits(tmp_path / "a.fits", False, attempt_fix_nonfinite=False)[0]
    assert np.isnan(kept[2, 3])


def test_unusable_files_and_targets_say_so(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"no fits")
    with pytest.raises(SkipItem) as caught:
        door.load_and_validate_fits(tmp_path / "a.fits")
    assert caught.value.key == "frame_not_fits"
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    with pytest.raises(SkipItem, match="no image"):
        door.load_and_validate_fits(tmp_path / "empty.fits")
    with pytest.raises(SaveFailed):
        door.save_fits_image(np.ones((3, 3)), tmp_path / "empty.fits", overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed):
        door.save_fits_image(np.ones((3, 3)), tmp_path / "file" / "a.fits")
    with pytest.raises(ValueError, match="axis_order"):
        door.save_fits_image(np.ones((3, 3)), tmp_path / "b.fits", axis_order="WHC")
