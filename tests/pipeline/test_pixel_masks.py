"""Small nights with what is no light of the sky: clipped stars, a tree, trails, bad pixels, darks without a name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from made_frames import base_cards, expose, field_sky, pointings, run, with_hot_pixels, write, write_all
from scipy import ndimage

from zemosaic_core import measure_pass, streaks
from zemosaic_core.synthetic_sky import NOMINAL_SCALE_ARCSEC, Camera, Satellite, make_sky, render_frame

SHAPE = (384, 320)


@pytest.fixture(scope="module")
def sky():
    return field_sky(seed=5)


def covered_by_tree(pixels, rows, rng):
    """A foreground, faintly lit, over the first rows, with a soft ragged edge."""
    edge = rows + ndimage.gaussian_filter(rng.normal(size=pixels.shape[1]), 12) * 60
    cover = (np.arange(pixels.shape[0])[:, None] < edge[None]).astype(float)
    cover = ndimage.gaussian_filter(cover, 2.0)
    dark = 530 + rng.normal(0, 35, pixels.shape)
    return np.clip(pixels * (1 - cover) + dark * cover, 0, 65535).astype(np.uint16)


def test_a_frame_that_is_mostly_covered_is_left_out(sky, tmp_path):
    rng = np.random.default_rng(2)
    for i, setup in enumerate(pointings(n=9, shape_hw=SHAPE, turn_deg=0.1)):
        pixels = expose(sky, setup)
        if i >= 5:
            pixels = covered_by_tree(pixels, (90, 150, 200, 340)[i - 5], rng)
        write(tmp_path / "in" / f"light_{i:03d}.fit", pixels, base_cards(setup, i))
    result = run(tmp_path / "in", tmp_path / "out").load()
    assert result.left_out == {"light_008.fit": "frame_covered"}


def cells_of(picture, side=32):
    """Medians of cells of a picture (H, W); NaN where less than half of a cell is known."""
    height, width = (n // side * side for n in picture.shape)
    cells = picture[:height, :width].reshape(height // side, side, width // side, side).swapaxes(1, 2)
    cells = cells.reshape(height // side, width // side, -1)
    known = np.isfinite(cells).mean(axis=-1) > 0.5
    return np.where(known, np.nanmedian(np.where(known[..., None], cells, 0.0), axis=-1), np.nan)


def test_parts_of_small_frames_leave_nothing_in_the_background(sky, tmp_path):
    """Frames of 9 x 8 cells: what covers a row of them lies beside stars everywhere."""
    rng = np.random.default_rng(8)
    for i, setup in enumerate(pointings(n=10, shape_hw=(540, 480), turn_deg=0.1, seed=8)):
        pixels, cards = expose(sky, setup), base_cards(setup, i)
        if i < 6:
            write(tmp_path / "open" / f"light_{i:03d}.fit", pixels, cards)
        else:
            pixels = covered_by_tree(pixels, (45, 110, 250, 470)[i - 6], rng)
        write(tmp_path / "in" / f"light_{i:03d}.fit", pixels, cards)
    without = run(tmp_path / "open", tmp_path / "out_open").load()
    result = run(tmp_path / "in", tmp_path / "out").load()
    assert result.left_out == {"light_009.fit": "frame_covered"}
    (message,) = [m for m in result.report["messages"] if m["key"] == "run_info_covered"]
    assert message["values"]["frames"] == 3
    dx, dy = (round(result.header[key] - without.header[key]) for key in ("CRPIX1", "CRPIX2"))
    height, width = without.coverage.shape
    got = np.full((height, width), np.nan)
    top, left = max(0, -dy), max(0, -dx)
    part = result.image[1][max(0, dy) :, max(0, dx) :][: height - top, : width - left]
    got[top : top + part.shape[0], left : left + part.shape[1]] = part
    difference = cells_of(np.where(without.coverage >= 5, got - without.image[1], np.nan))
    difference -= np.nanmedian(difference)
    assert np.isfinite(difference).mean() > 0.5
    # Where the tree stood it was up to 150 ADU off.
    assert np.sqrt(np.nanmean(difference**2)) < 8.0
    assert np.nanmax(np.abs(difference)) < 25.0


def test_bright_stars_in_two_exposures_have_no_spikes_and_are_flagged(sky, tmp_path):
    # A few stars far beyond the ceiling; every third frame three times as long; air of 0.8 to 1.
    bright = np.flatnonzero(np.hypot(sky.ra_deg - 150.0, sky.dec_deg - 20.0) < 0.1)[:5]
    flux = sky.flux.copy()
    flux[bright] = np.array([3e6, 1e6, 6e5, 4e5, 2e5])[: len(bright), None]
    strong = replace(sky, flux=flux)
    for i, setup in enumerate(pointings(n=7, shape_hw=SHAPE, turn_deg=0.3)):
        exposure = 3 if i % 3 == 2 else 1
        air = (1.0, 0.8, 0.9)[i % 3]
        lit = replace(strong, flux=exposure * strong.flux, texture=exposure * strong.texture)
        setup = replace(setup, transparency=(air,) * 3, sky_adu=tuple(exposure * v for v in setup.sky_adu))
        pixels = np.minimum(expose(lit, setup), 60000).astype(np.uint16)
        cards = base_cards(setup, i) | {"EXPTIME": 10.0 * exposure}
        write(tmp_path / "in" / f"light_{i:03d}.fit", pixels, cards)
    result = run(tmp_path / "in", tmp_path / "out").load()
    assert result.left_out == {}
    clipped = fits.getdata(result.outputs["coverage"], extname="CLIPPED")
    assert set(np.unique(clipped)) <= set(range(8))
    assert 10 < (clipped > 0).sum() < 4000
    saturate = result.header["SATURATE"]
    assert saturate > 5000
    x, y = result.wcs.all_world2pix(strong.ra_deg[bright], strong.dec_deg[bright], 0)
    for channel in range(3):
        image = result.image[channel]
        flagged = clipped & (1 << channel) > 0
        # No pixel that was cut off lies far below the least ceiling, and none stands alone above its surroundings.
        inner = ndimage.binary_erosion(flagged, np.ones((5, 5), bool))
        assert (image[inner] > 0.95 * saturate).all()
        for sx, sy in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
            if not (12 < sx < image.shape[1] - 13 and 12 < sy < image.shape[0] - 13):
                continue
            cut = image[sy - 8 : sy + 9, sx - 8 : sx + 9]
            ring = np.array([[image[sy + j, sx + i] for i in (-1, 0, 1)] for j in (-1, 0, 1)])
            assert cut.max() < 2.0 * np.median(ring)
            assert ring.min() > 0.35 * cut.max()


def beside_trail(setup, result, picture, offsets):
    """Values of a picture (H, W) of the mosaic along the satellite of a frame, so many px to either side of it."""
    line = setup.satellites[0]
    along = np.array([line.x1 - line.x0, line.y1 - line.y0])
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    t = np.linspace(0.05, 0.95, 400)[:, None]
    found = []
    for offset in offsets:
        place = np.array([line.x0, line.y0]) + t * along + offset * across
        x, y = result.wcs.all_world2pix(*WCS(setup.cards).all_pix2world(*place.T, 0), 0)
        found.append(picture[np.rint(y).astype(int), np.rint(x).astype(int)])
    return np.array(found)


def test_trails_leave_no_wings_where_four_frames_overlap(sky, tmp_path):
    rng = np.random.default_rng(4)
    setups = []
    for i, setup in enumerate(pointings(n=4, shape_hw=SHAPE, turn_deg=0.2)):
        y0, y1 = rng.uniform(40, SHAPE[0] - 40, 2)
        satellite = Satellite(-5.0, y0, SHAPE[1] + 5.0, y1, 1.4, (3000.0, 400.0, 150.0, 90.0)[i])
        setups.append(replace(setup, satellites=(satellite,)))
        write_all(tmp_path / "in", sky, setups[-1:], first=i)
        write_all(tmp_path / "clean", sky, [setup], first=i)
    without = run(tmp_path / "clean", tmp_path / "out_clean").load()
    result = run(tmp_path / "in", tmp_path / "out").load()
    assert "run_info_trails" in result.message_keys
    assert "run_info_trails" not in without.message_keys
    assert result.image.shape == without.image.shape
    deep = (without.coverage == 4) & (result.coverage >= 3)
    difference = result.image - without.image
    smooth = ndimage.median_filter(np.nan_to_num(without.image), (1, 5, 5))
    noise = 1.4826 * np.median(np.abs(without.image - smooth)[:, deep])
    difference -= np.median(difference[:, deep], axis=1)[:, None, None]
    # Beside stars a frame less is a difference, too.
    level = np.median(smooth[:, deep], axis=1)[:, None, None]
    empty = deep & (ndimage.maximum_filter(smooth, (1, 9, 9)) < level + 5 * noise).all(axis=0)
    # The wings of a trail are within the noise of every pixel: only means along it show them.
    for setup in setups[:3]:
        picture = np.where(empty, difference[1], np.nan)
        wings = beside_trail(setup, result, picture, (-4, -3, -2, 2, 3, 4))
        assert abs(np.nanmean(wings)) < 0.35 * noise
    # No more than the trails and what is next to them is given up.
    assert np.mean((result.coverage < without.coverage)[without.coverage > 0]) < 0.15


def test_blends_of_a_crowded_field_are_no_trail(monkeypatch):
    sky = field_sky(seed=5, size_deg=1.4)
    (setup,) = pointings(n=1, shape_hw=(640, 448), step_px=(75.0, 105.0), seed=3)
    pixels = expose(sky, setup)
    assert not len(measure_pass.measure_raw(pixels, "GRBG").streaks)
    # As few stretched stars as knots of faint light make a line here, if not an even one.
    monkeypatch.setattr(measure_pass, "_KNOTS", 8)
    assert not len(measure_pass.measure_raw(pixels, "GRBG").streaks)
    monkeypatch.setattr(streaks, "_LEAST_EVEN", -9.0)
    assert len(measure_pass.measure_raw(pixels, "GRBG").streaks)


@pytest.mark.parametrize("seed", [4, 12])
def test_rows_of_stars_in_a_crowded_field_are_no_trail(seed, monkeypatch):
    """Some 4,600 stars per million pixels; a satellite is found among them."""
    side = 1024
    density = 3000 * side**2 / 1e6 / (side**2 * (NOMINAL_SCALE_ARCSEC / 3600) ** 2)
    sky = make_sky((150.0, 20.0), 1.0875, seed=seed, stars_per_deg2=density)
    (setup,) = pointings(n=1, shape_hw=(side, side), seed=seed)
    pixels = expose(sky, setup)
    assert not len(measure_pass.measure_raw(pixels, "GRBG").streaks)
    satellite = Satellite(-5.0, 300.0, side + 5.0, 640.0, 1.4, 700.0)
    lit = expose(sky, replace(setup, satellites=(satellite,)))
    (streak,) = measure_pass.measure_raw(lit, "GRBG").streaks
    assert streak[:4] == pytest.approx([0, 301.6, side - 1, 638.4], abs=2.0)
    monkeypatch.setattr(streaks, "_LEAST_EVEN", -9.0)
    assert len(measure_pass.measure_raw(pixels, "GRBG").streaks)


def test_bad_pixels_of_a_mono_camera_are_mended_and_its_stars_are_not(sky, tmp_path):
    rng = np.random.default_rng(6)
    flat = rng.choice(SHAPE[0] * SHAPE[1], 60, replace=False)
    hot, dead = flat[:40], flat[40:]
    setups = with_hot_pixels(pointings(n=4, shape_hw=SHAPE, fwhm_px=1.9), hot, 1500.0)
    for i, setup in enumerate(setups):
        pixels = render_frame(sky, setup, Camera(pattern="GGGG"))
        pixels.ravel()[dead] = np.maximum(pixels.ravel()[dead].astype(int) - 700, 1)
        write(tmp_path / "in" / f"light_{i:03d}.fit", pixels, base_cards(setup, i, form="mono"))
    write_all(tmp_path / "good", sky, pointings(n=4, shape_hw=SHAPE, fwhm_px=1.9), form="mono")
    good = run(tmp_path / "good", tmp_path / "out_good").load()
    result = run(tmp_path / "in", tmp_path / "out").load()
    assert "run_info_hot_pixels" not in good.message_keys
    ours, theirs = (
        one.stars(sky, faintest=8_000, brightest=200_000, min_frames=4)["ratio"] for one in (result, good)
    )
    assert ours.shape == theirs.shape
    assert ours.size > 15
    assert np.nanpercentile(np.abs(ours / theirs - 1), 95) < 0.05
    difference = (result.image - good.image)[:, (result.coverage == 4) & (good.coverage == 4)]
    assert np.mean(np.abs(difference) > 200) < 2e-4
    (message,) = [m for m in result.report["messages"] if m["key"] == "run_info_hot_pixels"]
    assert 54 <= message["values"]["pixels"] <= 62


def test_darks_and_flats_that_nobody_named_go_first(sky, tmp_path):
    rng = np.random.default_rng(7)
    setups = pointings(n=4, shape_hw=SHAPE)
    write_all(tmp_path / "in", sky, setups, IMAGETYP=None)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    hot = rng.choice(SHAPE[0] * SHAPE[1], 300, replace=False)
    for k in range(3):
        dark = rng.normal(440, 16, SHAPE)
        dark.ravel()[hot] += 3000
        flat = (1 - 0.25 * ((x - 160) ** 2 + (y - 192) ** 2) / 192**2) * 30000 + rng.normal(0, 200, SHAPE)
        for name, pixels in (("a", dark), ("b", flat)):
            data = np.clip(pixels, 0, 65535).astype(np.uint16)
            cards = base_cards(setups[0], 20 + k, IMAGETYP=None, with_wcs=False)
            write(tmp_path / "in" / f"{name}_{k}.fit", data, cards)
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.left_out == {f"a_{k}.fit": "frame_dark_content" for k in range(3)} | {
        f"b_{k}.fit": "frame_flat_content" for k in range(3)
    }


def test_a_sky_cut_off_at_zero_is_said(sky, tmp_path):
    for i, setup in enumerate(pointings(n=3, shape_hw=SHAPE)):
        pixels = expose(sky, setup).astype(int) - 840
        write(
            tmp_path / "in" / f"light_{i}.fit", np.maximum(pixels, 0).astype(np.uint16), base_cards(setup, i)
        )
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.left_out == {}
    assert "run_warn_zero_sky" in {m["key"] for m in result.report["messages"]}
