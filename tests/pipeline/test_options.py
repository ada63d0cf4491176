"""Every choice really does what it says, and none ends a run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from made_frames import SHAPE_HW, Result, field_sky, pointings, run, with_hot_pixels, write_all
from PIL import Image

from zemosaic_core.synthetic_sky import FrameSetup, Satellite, Sky
from zemosaic_io.xisf_read import read_xisf
from zemosaic_pipeline import phase3_master_tiles
from zemosaic_pipeline import sky as sky_of_frames

HOT = [(40 + 37 * k) * SHAPE_HW[1] + 30 + 41 * k for k in range(6)]


@pytest.fixture(scope="module")
def sky():
    return field_sky()


@pytest.fixture(scope="module")
def setups() -> list[FrameSetup]:
    """Two panels of seven frames: satellites, hot pixels, one blurred and one hazy frame, tilted skies."""
    made = []
    for panel, step in enumerate((-130.0, 130.0)):
        panel_setups = with_hot_pixels(
            pointings(n=7, step_px=(step, 20.0 * panel), seed=5 + panel, rotation_deg=4.0 * panel),
            HOT,
            4000.0,
        )
        trail = Satellite(-5.0, 60.0, 405.0, 240.0, 1.4, 3000.0)
        panel_setups[1] = replace(panel_setups[1], satellites=(trail,))
        panel_setups[2] = replace(panel_setups[2], fwhm_px=3.1)
        haze = tuple(0.35 * t for t in panel_setups[3].transparency)
        panel_setups[3] = replace(panel_setups[3], transparency=haze, sky_adu=(800.0, 1100.0, 700.0))
        made += panel_setups
    return made


@pytest.fixture(scope="module")
def raw(sky, setups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("options") / "raw"
    write_all(folder, sky, setups)
    return folder


# By panels: most options are about tiles.
COMMON = {
    "exclude_flagged_frames": False,
    "cluster_panel_threshold": 0.06,
    "route": "panels",
    "cluster_min_frames": 0,
    "sky_model": "planes",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One output folder: measurements and solutions are reused from run to run."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def make(raw, shared):
    """Return a function that runs with some settings and gives image, coverage and report, kept by settings."""
    known: dict[str, Result] = {}

    def with_settings(**settings) -> Kept:
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            known[key] = Kept(run(raw, shared, **{**COMMON, **settings}))
        return known[key]

    return with_settings


class Kept:
    """What a run left, read before the next one replaces it."""

    def __init__(self, result: Result) -> None:
        result.load()
        self.report = result.report
        self.outputs = result.outputs
        self.image, self.coverage, self.header, self.wcs = (
            result.image, result.coverage, result.header, result.wcs,
        )  # fmt: skip
        self.sky = fits.getdata(result.outputs["sky"]) if "sky" in result.outputs else None
        self.truth = result.truth
        self.stars = result.stars
        self.extra = {
            k: Path(p).read_bytes() for k, p in result.outputs.items() if k in ("viewer", "tiff", "variance")
        }

    @property
    def tiles(self) -> list[dict]:
        return self.report["tiles"]


@pytest.fixture(scope="module")
def plain(make) -> Kept:
    return make()


def sky_scatter(result: Kept, channel=1) -> float:
    """Pixel scatter of the deep sky, from differences of pixels three apart (interpolation links neighbours)."""
    image = np.where(result.coverage >= 5, result.image[channel], np.nan)
    step = image[:, 3:] - image[:, :-3]
    return float(1.4826 * np.nanmedian(np.abs(step - np.nanmedian(step))) / np.sqrt(2))


def same_grid(a: Kept, b: Kept) -> np.ndarray:
    """Return |a - b| of the common finite pixels."""
    assert a.image.shape == b.image.shape
    both = np.isfinite(a.image) & np.isfinite(b.image)
    return np.abs(a.image - b.image)[both]


def trail_excess(result: Kept, setups: list[FrameSetup], sky: Sky) -> float:
    """Mean excess (ADU) along the satellite of the first panel over the lines beside it."""
    from astropy.wcs import WCS

    frame = WCS(setups[1].cards)
    along = np.linspace(0.1, 0.9, 300)
    x, y = -5 + 410 * along, 60 + 180 * along
    across = np.array([-180.0, 410.0]) / np.hypot(180, 410)

    def level(offset: float) -> float:
        ra, dec = frame.all_pix2world(x + offset * across[0], y + offset * across[1], 0)
        px, py = result.wcs.all_world2pix(ra, dec, 0)
        return float(np.nanmedian(result.image[1][np.rint(py).astype(int), np.rint(px).astype(int)]))

    return level(0.0) - 0.5 * (level(8.0) + level(-8.0))


def test_default_run(plain, sky):
    assert plain.report["frames_used"] == 14
    assert len(plain.tiles) == 2
    assert np.median(plain.stars(sky)["offset"]) < 0.06


@pytest.mark.parametrize("method", ["none", "linear_fit", "sky_mean"])
def test_stacking_normalize_method(make, method):
    """The hazy frame is brighter and dimmer: without normalisation it is thrown out or leaves its mark."""
    result = make(stacking_normalize_method=method, stacking_rejection_algorithm="none")
    assert result.header["STK_NORM"] == method
    deep = result.coverage >= 7
    spread = np.nanstd([np.nanmedian(result.image[1][deep & part]) for part in quarters(result.coverage)])
    assert np.isfinite(spread)
    assert sky_scatter(result) < 60


def quarters(coverage: np.ndarray) -> list[np.ndarray]:
    y, x = np.indices(coverage.shape)
    left, top = x < coverage.shape[1] / 2, y < coverage.shape[0] / 2
    return [left & top, left & ~top, ~left & top, ~left & ~top]


def test_normalisation_brings_frames_to_one_flux(make, sky):
    """Without it a star has the mean transparency of its frames; with it that of the clearer ones."""
    ratios = {
        method: np.nanmedian(
            make(
                stacking_normalize_method=method,
                stacking_rejection_algorithm="none",
                stacking_weighting_method="none",
                intertile_photometric_match=False,
            ).stars(sky)["ratio"][1]
        )
        for method in ("none", "linear_fit", "sky_mean")
    }
    assert 0.8 < ratios["none"] < 0.88
    assert ratios["linear_fit"] == pytest.approx(0.92, abs=0.03)
    assert ratios["linear_fit"] > ratios["none"] + 0.03


def test_stacking_weighting_method(make):
    scatter = {
        method: sky_scatter(make(stacking_weighting_method=method, stacking_rejection_algorithm="none"))
        for method in ("none", "noise_variance", "noise_fwhm")
    }
    # The hazy frame, scaled up, has twice the noise: weights must gain from knowing it.
    assert scatter["noise_variance"] < 0.98 * scatter["none"]
    assert scatter["noise_fwhm"] < 1.1 * scatter["none"]


def test_noise_fwhm_prefers_sharp_frames(make, sky):
    widths = {
        method: star_width(make(stacking_weighting_method=method), sky)
        for method in ("noise_variance", "noise_fwhm")
    }
    assert widths["noise_fwhm"] < widths["noise_variance"]


def star_width(result: Kept, sky: Sky) -> float:
    stars = result.stars(sky)
    values = []
    image = result.image[1] - np.nanmedian(result.image[1])
    for x, y in zip(np.rint(stars["x"]).astype(int), np.rint(stars["y"]).astype(int), strict=True):
        cut = image[y - 5 : y + 6, x - 5 : x + 6]
        values.append(cut.sum() / cut.max())
    return float(np.median(values))


@pytest.mark.parametrize("algorithm", ["none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"])
def test_stacking_rejection_algorithm(make, setups, sky, algorithm):
    result = make(stacking_rejection_algorithm=algorithm, stacking_kappa_high=2.2)
    excess = trail_excess(result, setups, sky)
    rejected = [tile["rejected_fraction"] for tile in result.tiles]
    if algorithm == "none":
        assert excess > 150
        assert rejected == [0, 0]
    else:
        assert excess < 60
        assert all(0.001 < fraction < 0.2 for fraction in rejected)


def test_kappa_sets_how_much_is_rejected(make):
    def rejected(**kappa) -> float:
        return np.mean([tile["rejected_fraction"] for tile in make(**kappa).tiles])

    default = rejected()
    assert rejected(stacking_kappa_low=1.5, stacking_kappa_high=1.5) > 2 * default
    assert rejected(stacking_kappa_low=10.0, stacking_kappa_high=10.0) < 0.5 * default


def test_winsor_limits_matter(sky, tmp_path):
    """Where frames are many; up to fifteen samples are judged by their known noise."""
    write_all(tmp_path / "raw", sky, pointings(n=18, seed=3))
    usual, other = (
        run(tmp_path / "raw", tmp_path / "out", **COMMON, stacking_winsor_limits=limits).image
        for limits in ("0.05,0.05", "0.3,0.3")
    )
    assert (usual != other)[np.isfinite(usual)].any()


def test_stacking_final_combine_method(make, plain, setups, sky):
    median = make(stacking_final_combine_method="median", stacking_rejection_algorithm="none")
    mean = make(stacking_rejection_algorithm="none")
    assert trail_excess(median, setups, sky) < 0.5 * trail_excess(mean, setups, sky)
    assert sky_scatter(median) > 1.05 * sky_scatter(mean)
    assert median.header["STK_COMB"] == "median"


def test_resample_kernel(make, plain, sky):
    bilinear = make(resample_kernel="bilinear")
    assert star_width(bilinear, sky) > 1.03 * star_width(plain, sky)
    assert sky_scatter(bilinear) < sky_scatter(plain)


def test_final_assembly_methods_agree(make, plain):
    assert same_grid(make(final_assembly_method="incremental"), plain).max() < 2e-3


def test_poststack_equalize_rgb(make, plain):
    equal = make(poststack_equalize_rgb=True)
    before = np.nanmedian(plain.image, axis=(1, 2))
    after = np.nanmedian(equal.image, axis=(1, 2))
    assert np.ptp(before) > 80
    assert np.ptp(after) < 0.03 * np.ptp(before)


def test_apply_radial_weight(make, plain):
    result = make(
        apply_radial_weight=True,
        radial_feather_fraction=0.5,
        radial_shape_power=2.0,
        min_radial_weight_floor=0.05,
    )
    assert result.header["STK_RADW"] is True
    assert plain.header["STK_RADW"] is False
    difference = np.abs(result.image[1] - plain.image[1])
    assert np.nanmedian(difference) > 0.1
    floor = make(apply_radial_weight=True, radial_feather_fraction=0.5, min_radial_weight_floor=1.0)
    assert same_grid(floor, plain).max() < 0.5


def test_route(make, plain):
    direct = make(route="direct")
    assert [len(r.report["tiles"]) for r in (plain, direct)] == [2, 1]
    assert [r.header["ROUTE"] for r in (plain, direct)] == ["panels", "direct"]
    assert direct.report["route"] == {"route": "direct", "reason_key": "route_asked", "values": {}}
    # The same frames on the same pixels, whatever stands between.
    np.testing.assert_array_equal(direct.coverage, plain.coverage)
    assert make(route="auto").header["ROUTE"] == "direct"
    assert "mosaic_first" not in direct.report["settings"].values()
    assert make(route="Mosaic_First").header["ROUTE"] == "direct"


def test_groups_of_few_frames_join_others(make, plain):
    """Seven frames each, side by side: too few for a tile where another one lies over it."""
    joined = make(cluster_min_frames=8)
    assert joined.header["ROUTE"] == "panels"
    assert [len(tile["frames"]) for tile in joined.tiles] == [14]
    said = {m["key"]: m["values"] for m in joined.report["messages"]}
    assert said["run_info_small_groups"] == {"before": 2, "groups": 1, "frames": 8}
    np.testing.assert_array_equal(joined.coverage, plain.coverage)
    assert len(make(cluster_min_frames=7).tiles) == 2


def test_sky_model(make, plain):
    full = make(route="direct", sky_model="full")
    assert [r.header["SKYMODEL"] for r in (plain, full)] == ["planes", "full"]
    assert plain.report["sky"]["model"] is False
    sky = full.report["sky"]
    assert sky["model"] is True
    assert len(sky["channels"]) == 3
    assert full.header["SKYFROM"] in ("night", "night_and_dark_parts", "assumed_flat")
    level = make(route="direct", sky_model="none")
    assert level.header["SKYMODEL"] == "none"
    tilt = [np.abs(large_slope(r)).max() for r in (full, make(route="direct"))]
    # The skies of these frames are tilted: the model leaves less of it than what only compares frames.
    assert tilt[0] < 0.5 * tilt[1]


def large_slope(result: Kept) -> np.ndarray:
    """Change of the sky of the middle channel from edge to edge, along both axes, ADU."""
    image = result.image[1]
    height, width = image.shape
    y, x = np.mgrid[0:height:8, 0:width:8]
    value = image[::8, ::8]
    good = np.isfinite(value) & (value < np.nanpercentile(value, 80))
    terms = np.column_stack([np.ones(good.sum()), x[good] / width, y[good] / height])
    return np.linalg.lstsq(terms, value[good], rcond=None)[0][1:]


def test_remove_gradient(make):
    removed = make(route="direct", sky_model="full")
    kept = make(route="direct", sky_model="full", remove_gradient=False)
    assert removed.header["SKYGRAD"] is True
    assert kept.header["SKYGRAD"] is False
    assert "sky" not in kept.outputs
    assert removed.sky.shape == removed.image.shape
    assert np.ptp(removed.sky[1]) > 1.0
    np.testing.assert_allclose(removed.image + removed.sky, kept.image, atol=2e-3, equal_nan=True)


def test_observer_site(make):
    unknown = make(route="direct", sky_model="full")
    assert unknown.report["sky"]["site"] not in ("sky_site_setting", "sky_site_header")
    known = make(route="direct", sky_model="full", observer_site="47.5, 8.5")
    assert known.report["sky"]["site"] in ("sky_site_setting", "sky_site_misfit")


def overlap_step(result: Kept) -> float:
    pairs = result.report["photometry"]["overlaps"]
    assert len(pairs) == 1
    return pairs[0]["rms_after_adu"]


def test_match_background_for_final(make, plain):
    off = make(match_background_for_final=False, intertile_photometric_match=False)
    assert overlap_step(off) >= overlap_step(plain)
    terms = np.array(list(off.report["photometry"]["terms"].values()))
    np.testing.assert_allclose(terms[..., 0], 1.0)
    np.testing.assert_allclose(terms[..., 1:], 0.0, atol=1e-6)
    matched = np.array(list(plain.report["photometry"]["terms"].values()))
    assert np.abs(matched[..., 1]).max() > 1


def test_intertile_gradient(make, plain):
    off = make(intertile_gradient=False)
    terms = np.array(list(off.report["photometry"]["terms"].values()))
    np.testing.assert_allclose(terms[..., 2:], 0.0)
    assert np.abs(np.array(list(plain.report["photometry"]["terms"].values()))[..., 2:]).max() > 0


def test_intertile_gradient_order(make, plain):
    straight = make(intertile_gradient_order=1)
    assert straight.report["photometry"]["curved_tiles"] == []
    assert straight.report["photometry"]["surfaces"] == {}
    assert any("order=1" in line for line in straight.header["HISTORY"])
    assert any("order=2" in line for line in plain.header["HISTORY"])


def test_intertile_photometric_match(make, sky):
    """Without normalisation the tiles differ in scale; matching them must bring the gain."""
    settings = {"stacking_normalize_method": "none"}
    on, off = make(**settings), make(**settings, intertile_photometric_match=False)
    gains_on = np.array(list(on.report["photometry"]["terms"].values()))[..., 0]
    gains_off = np.array(list(off.report["photometry"]["terms"].values()))[..., 0]
    np.testing.assert_allclose(gains_off, 1.0)
    # The stars know how hazy the frames of each tile were.
    assert (gains_on > 1.01).all()
    bright = on.stars(sky)["ratio"][1]
    assert np.nanmedian(bright) > 1.01 * np.nanmedian(off.stars(sky)["ratio"][1])


def test_tile_feather(make, plain):
    hard = make(tile_feather_px=0)
    assert same_grid(hard, plain).max() > 1
    np.testing.assert_array_equal(hard.coverage, plain.coverage)


@pytest.mark.parametrize(("sky_model", "found"), [("full", True), ("full", False), ("planes", False)])
def test_frames_keep_weight_at_their_borders_only_on_one_sky(raw, tmp_path, monkeypatch, sky_model, found):
    made: list[float] = []
    real, solve = phase3_master_tiles.tile_sources, sky_of_frames.run

    def tile_sources(*args, **kwargs):
        sources = real(*args, **kwargs)
        made.extend(source.feather_start for source in sources)
        return sources

    def solve_in_vain(*args):
        solution = solve(*args)
        return solution if found else replace(solution, model=None, terms={}, reason_key="sky_not_wanted")

    monkeypatch.setattr(phase3_master_tiles, "tile_sources", tile_sources)
    monkeypatch.setattr(sky_of_frames, "run", solve_in_vain)
    run(raw, tmp_path / "out", **{**COMMON, "route": "direct", "sky_model": sky_model, "cfa_refine": "off"})
    assert len(made) > 10
    assert set(made) == {0.5 if found else 0.0}


def test_crop_follow_signal(make, plain):
    whole = make(crop_follow_signal=False)
    assert whole.coverage.size > plain.coverage.size
    covered = whole.coverage > 0
    # Nothing but empty border is cut, and no row or column of it is left.
    assert covered.sum() == (plain.coverage > 0).sum()
    assert (plain.coverage > 0).any(axis=1)[[0, -1]].all()
    assert (plain.coverage > 0).any(axis=0)[[0, -1]].all()
    ra, dec = plain.wcs.all_pix2world(50, 60, 0)
    x, y = whole.wcs.all_world2pix(ra, dec, 0)
    assert whole.image[1][round(float(y)), round(float(x))] == plain.image[1][60, 50]


def test_cropped_picture_and_its_forms(make, plain):
    result = make(
        crop="rectangle",
        crop_science=True,
        picture_style="deep",
        save_formats="jpeg, tiff16, fz, xisf, astrobin",
        save_annotation=True,
        save_zoom=True,
    )
    assert result.image.shape[1:] == result.coverage.shape
    assert result.coverage.size < plain.coverage.size
    assert (result.coverage > 0).all()
    assert np.isfinite(result.image).all()
    ra, dec = result.wcs.all_pix2world(20, 30, 0)
    x, y = plain.wcs.all_world2pix(ra, dec, 0)
    assert result.image[1][30, 20] == plain.image[1][round(float(y)), round(float(x))]
    fine = tifffile.imread(result.outputs["picture_tiff16"])
    assert fine.shape[:2] == result.coverage.shape
    sky = np.median(fine[..., :3].reshape(-1, 3) / 257.0, axis=0)
    assert (np.abs(sky - 50) < 12).all()
    with Image.open(result.outputs["preview"]) as shown, Image.open(result.outputs["picture_jpeg"]) as jpeg:
        assert shown.size == jpeg.size == fine.shape[1::-1]
        recipe = json.loads(shown.text["Picture"])
    assert recipe["params"]["style"] == "deep"
    with Image.open(result.outputs["annotated"]) as annotated:
        assert annotated.size == fine.shape[1::-1]
    assert Path(result.outputs["objects"]).read_text(encoding="utf-8").startswith("kind,name,")
    assert Path(result.outputs["annotation"]).read_text(encoding="utf-8").startswith("<svg ")
    zoom = Path(result.outputs["zoom"])
    assert zoom.parent.parent == Path(result.outputs["science"]).parent
    assert f'"width":{fine.shape[1]}' in zoom.read_text(encoding="utf-8")
    assert "_zoom/index.html" in Path(result.outputs["report_page"]).read_text(encoding="utf-8")
    np.testing.assert_array_equal(fits.getdata(result.outputs["science_fits.fz"], 1), result.image)
    np.testing.assert_array_equal(read_xisf(Path(result.outputs["science_xisf"])).planes, result.image)
    with open(result.outputs["astrobin"], encoding="utf-8", newline="") as listed:
        assert sum(int(row["number"]) for row in csv.DictReader(listed)) == result.report["frames_used"]


def test_viewer_files(make, plain):
    result = make(save_final_as_uint16=True, save_viewer_tiff=True)
    assert set(result.extra) >= {"viewer", "tiff"}
    viewer = fits.HDUList.fromstring(result.extra["viewer"])[0]
    assert viewer.header["BITPIX"] == 16
    data = viewer.data.astype(float)
    covered = result.coverage > 0
    shown, real = data[1][covered], result.image[1][covered]
    inside = (shown > 0) & (shown < 65535)
    assert inside.mean() > 0.9
    order = np.argsort(real[inside])
    # Brighter in the mosaic is never darker in the picture.
    assert (np.diff(shown[inside][order]) >= 0).mean() > 0.999
    path = Path(result.outputs["tiff"])
    picture = tifffile.imread(path)
    assert picture.dtype == np.uint16
    assert picture.shape == (*result.coverage.shape, 3)
    assert not plain.extra
    science = fits.getdata(result.outputs["science"])
    np.testing.assert_array_equal(science.astype(np.float32), plain.image)


def test_hot_pixel_correction(make, setups):
    def hottest(result: Kept) -> float:
        """Mean excess at the places where the defects land, over the five frames with least turn."""
        from astropy.wcs import WCS

        values = []
        for setup in setups:
            y, x = np.divmod(HOT, SHAPE_HW[1])
            ra, dec = WCS(setup.cards).all_pix2world(x, y, 0)
            px, py = result.wcs.all_world2pix(ra, dec, 0)
            values.extend(result.image[:, np.rint(py).astype(int), np.rint(px).astype(int)].max(axis=0))
        return float(np.median(values) - np.nanmedian(result.image))

    settings = {"stacking_rejection_algorithm": "none"}
    on = make(**settings)
    off = make(**settings, hot_pixel_correction=False)
    assert hottest(off) > hottest(on) + 100
    again = make(**settings, save_variance=True)
    # Arrays of the run without correction must not be taken for those with it.
    assert same_grid(again, on).max() == 0


def test_exclude_flagged_frames(make, plain):
    result = make(exclude_flagged_frames=True)
    assert result.report["frames_used"] < plain.report["frames_used"]
    keys = {item["key"] for item in result.report["left_out"]}
    assert keys <= {"frame_clouded", "frame_bright_sky", "frame_defocused", "frame_trailed"}
    flagged = [m for m in plain.report["messages"] if m["key"] == "frame_flagged_kept"]
    assert len(flagged) == len(result.report["left_out"])


def test_frame_quality_sigma(make):
    strict = make(exclude_flagged_frames=True, frame_quality_sigma=1.0)
    lenient = make(exclude_flagged_frames=True, frame_quality_sigma=20.0)
    assert strict.report["frames_used"] < lenient.report["frames_used"]


def test_groups(make, plain):
    one = make(cluster_panel_threshold=2.0)
    assert len(one.tiles) == 1
    many = make(max_raw_per_master_tile=2)
    assert all(tile["n_frames"] <= 2 for tile in many.tiles)
    assert len(many.tiles) == 8
    np.testing.assert_array_equal(many.coverage, plain.coverage)
    target = make(cluster_target_groups=5)
    assert len(target.tiles) == 5


@pytest.mark.parametrize("mode", ["min", "median", "max"])
def test_pixelscale_mode(make, mode):
    assert make(global_wcs_pixelscale_mode=mode).report["mosaic"]["scale_arcsec"] == pytest.approx(
        2.374, rel=3e-3
    )


def test_orientation_of_the_mosaic(make, plain):
    turned = make(global_wcs_orientation="median_pc")
    matrix, north = turned.wcs.pixel_scale_matrix, plain.wcs.pixel_scale_matrix
    assert abs(north[0, 1]) < 1e-9
    assert abs(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0]))) % 180 > 0.5


def test_preview_options(make):
    small = make(preview_png_max_dim=100)
    from PIL import Image

    with Image.open(small.outputs["preview"]) as picture:
        assert max(picture.size) <= 100


def test_variance_is_the_scatter_against_the_truth(make, sky):
    """Residuals of the sky between the stars, in units of the root of the variance, scatter by one."""
    result = make(save_variance=True)
    variance = fits.HDUList.fromstring(result.extra["variance"])[0].data.astype(float)
    assert variance.shape == result.image.shape
    unknown = ~np.isfinite(variance) & np.isfinite(result.image)
    assert not unknown[:, result.coverage >= 3].any()
    truth = result.truth(sky)
    from scipy.ndimage import median_filter

    for channel in range(3):
        faint = (truth[channel] < 20) & (result.coverage >= 6)
        residual = np.where(faint, result.image[channel] - 0.91 * truth[channel], np.nan)
        level = np.nanmedian(residual)
        smooth = median_filter(np.where(np.isfinite(residual), residual, level), 25)
        scaled = ((residual - smooth) / np.sqrt(variance[channel]))[faint]
        scatter = 1.4826 * np.median(np.abs(scaled - np.median(scaled)))
        assert scatter == pytest.approx(1.0, abs=0.2)
    # In the overlap of the tiles the variance is lower than on either side.
    overlap = variance[1][result.coverage >= 12]
    single = variance[1][(result.coverage >= 6) & (result.coverage <= 7)]
    assert np.nanmedian(overlap) < 0.75 * np.nanmedian(single)
