"""The viewer: parts fit together, large files are not read whole, and every tool does what it says."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PySide6.QtCore import QPointF, Qt

from zemosaic_core.errors import SkipItem
from zemosaic_ui.footprints import find_outputs, read_footprints
from zemosaic_ui.mosaic_image import (
    MosaicImage,
    adjusted,
    base_params,
    coverage_rgba,
    half_size,
    render,
    sexagesimal,
)
from zemosaic_ui.part_renderer import PartRenderer


def write_mosaic(folder, *, shape=(3, 700, 1300), name="mosaic.fits"):
    rng = np.random.default_rng(4)
    image = rng.normal(100.0, 3.0, shape).astype(np.float32)
    image[..., 200:205, 300:305] += 4000
    image[..., :40, :60] = np.nan
    header = fits.Header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 650.5, "CRPIX2": 350.5})
    header.update({"CRVAL1": 10.0, "CRVAL2": 41.0, "CDELT1": -0.001, "CDELT2": 0.001})
    path = folder / name
    fits.writeto(path, image, header)
    return path, image


@pytest.fixture
def mosaic(tmp_path):
    return write_mosaic(tmp_path)


def test_parts_are_the_pixels_of_the_file(mosaic):
    path, image = mosaic
    opened = MosaicImage(path)
    assert opened.shape_hw == (700, 1300)
    assert np.array_equal(opened.part(0, 1, 2), image[:, 512:700, 1024:1300], equal_nan=True)
    assert opened.values_at(302, 202) == pytest.approx(tuple(image[:, 202, 302]))
    assert opened.values_at(-1, 5) is None
    wcs = WCS(fits.getheader(path)).celestial
    assert opened.sky_at(30.0, 40.0) == pytest.approx(
        tuple(float(v) for v in wcs.wcs_pix2world(30.0, 40.0, 0))
    )


def test_reduced_copies_are_means_of_finite_pixels(mosaic):
    path, image = mosaic
    opened = MosaicImage(path)
    assert opened.n_levels == 3
    assert opened.build_copies(threading.Event())
    blocks = image.reshape(3, 350, 2, 650, 2)
    expected = np.where(np.isfinite(blocks).all(axis=(2, 4)), blocks.mean(axis=(2, 4)), np.nan)
    part = opened.part(1, 0, 0)
    assert np.allclose(part, expected[:, :512, :512], equal_nan=True, rtol=1e-5)
    assert opened.part(2, 0, 0).shape == (3, 175, 325)
    opened.close()


def test_half_size_of_odd_shapes():
    image = np.arange(15, dtype=np.float32).reshape(1, 3, 5)
    image[0, 0, 0] = np.nan
    half = half_size(image)
    assert half.shape == (1, 2, 3)
    assert half[0, 0, 0] == pytest.approx((1 + 5 + 6) / 3)
    assert half[0, 1, 2] == 14


def test_parts_render_as_the_whole_does(mosaic):
    path, image = mosaic
    opened = MosaicImage(path)
    params = base_params(opened.overview(), "rgb")
    whole = render(image, "rgb", params)
    part = render(opened.part(0, 1, 1), "rgb", params)
    assert np.array_equal(part, whole[512:700, 512:1024])
    assert whole[10, 10, 3] == 0
    brighter = render(image, "rgb", adjusted(params, 0.5, 0.0))
    assert brighter[..., :3].mean() > whole[..., :3].mean()
    deeper = render(image, "rgb", adjusted(params, 0.0, 0.5))
    assert deeper[..., :3].mean() < whole[..., :3].mean()
    red = base_params(opened.overview(), "red")
    assert render(image, "red", red).shape == (700, 1300, 4)


def test_only_some_rows_are_read_for_the_first_look(tmp_path, monkeypatch):
    path, _ = write_mosaic(tmp_path, shape=(3, 3000, 400))
    opened = MosaicImage(path)
    rows = []
    plain = MosaicImage.rows
    monkeypatch.setattr(
        MosaicImage, "rows", lambda self, y0, y1, *a: rows.append(y1 - y0) or plain(self, y0, y1, *a)
    )
    overview = opened.overview()
    assert overview.shape[1] <= 900
    assert sum(rows) <= 900


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "x.fits").write_bytes(b"nothing")
    with pytest.raises(SkipItem):
        MosaicImage(tmp_path / "x.fits")


def test_sexagesimal_positions():
    assert sexagesimal(10.6847083, 41.26875) == "00:42:44.33  +41:16:07.5"
    assert sexagesimal(359.99999999, -0.5) == "00:00:00.00  -00:30:00.0"


def test_coverage_map_is_clear_where_nothing_is():
    rgba = coverage_rgba(np.array([[0.0, 1.0], [5.0, np.nan]], dtype=np.float32))
    assert rgba[0, 0, 3] == 0
    assert rgba[1, 1, 3] == 0
    assert rgba[1, 0, 0] > rgba[0, 1, 0]


def test_outputs_and_footprints_of_a_report(mosaic):
    path, _ = mosaic
    tiles = [{"tile_id": 3, "origin_yx": [10, 20], "shape_hw": [100, 50]}]
    frames = [{"name": "a.fit", "footprint": [[10.0, 41.0], [10.1, 41.0], [10.1, 41.1], [10.0, 41.1]]}]
    report = {"outputs": {"science": str(path)}, "tiles": tiles, "frames": frames}
    (path.parent / "run_report.json").write_text(json.dumps(report))
    opened = MosaicImage(path)
    found = read_footprints(find_outputs(path), opened)
    outline, name = found["tiles"][0][0], found["tiles"][1][0]
    assert name == "3"
    assert outline.min(axis=0).tolist() == [19.5, 9.5]
    assert outline.max(axis=0).tolist() == [69.5, 109.5]
    assert found["frames"][0][0][0] == pytest.approx(opened.pixel_of(np.array(10.0), np.array(41.0)))
    moved = find_outputs(path.parent)
    assert moved["science"] == str(path)


def test_renderer_forgets_old_wishes(mosaic):
    renderer = PartRenderer(MosaicImage(mosaic[0]))
    renderer.close()
    assert renderer.take() == []


# ---------------------------------------------------------------------- the page


@pytest.fixture
def page(make_window, mosaic, qtbot):
    window = make_window()
    window.show_page("mosaic")
    window.take_dropped(str(mosaic[0]))
    qtbot.waitUntil(lambda: window.viewer_page.canvas.has_overview, timeout=60_000)
    yield window.viewer_page
    window.viewer_page.close_file()


def test_the_mosaic_appears_and_parts_follow(page, qtbot):
    qtbot.waitUntil(lambda: page.canvas.n_parts >= 1, timeout=60_000)
    assert "1" in page.name.text()
    picture = page.canvas.grab().toImage()
    x, y = picture.width() // 2, picture.height() // 2
    values = [picture.pixelColor(x + i, y + j).value() for i in range(-20, 20) for j in range(-20, 20)]
    assert np.mean(values) > 15


def test_zoom_keeps_the_point_under_the_cursor(page):
    canvas = page.canvas
    point = QPointF(100.0, 80.0)
    before = canvas.to_image(point)
    canvas.zoom(3.0, point)
    after = canvas.to_image(point)
    assert (before.x(), before.y()) == pytest.approx((after.x(), after.y()))
    canvas.fit()
    assert page.zoom_words.text().endswith("%")


def test_keys_and_mouse(page, qtbot):
    canvas = page.canvas
    qtbot.keyClick(canvas, Qt.Key.Key_1)
    assert canvas.scale == pytest.approx(1.0)
    centre = canvas.centre.x()
    qtbot.keyClick(canvas, Qt.Key.Key_Right)
    assert canvas.centre.x() > centre
    qtbot.keyClick(canvas, Qt.Key.Key_0)
    assert canvas.scale < 1.0
    qtbot.mouseDClick(canvas, Qt.MouseButton.LeftButton)
    assert canvas.scale == pytest.approx(1.0)


def test_value_and_position_under_the_cursor(page, mosaic, qtbot):
    page._on_hovered(302.0, 202.0)
    qtbot.waitUntil(lambda: "302.0" in page.facts.text())
    assert "+40:51" in page.facts.text()
    value = mosaic[1][0, 202, 302]
    assert page.session.texts.number(float(value), 1) in page.facts.text()


def test_channels_and_sliders_change_the_picture(page, qtbot):
    number = page.canvas.look.number
    page.channels.setCurrentIndex(1)
    qtbot.waitUntil(lambda: page.canvas.look.number > number, timeout=60_000)
    assert page.canvas.look.view == "red"
    before = page.canvas.look.params
    page.brightness.setValue(60)
    qtbot.waitUntil(lambda: page.canvas.look.params != before, timeout=60_000)
    page.reset_stretch()
    qtbot.waitUntil(lambda: page.canvas.look.params == before, timeout=60_000)
    page.channels.setCurrentIndex(0)


def test_style_and_saturation_change_the_picture(page, qtbot):
    qtbot.waitUntil(lambda: page.canvas.look is not None, timeout=8000)
    natural = page.canvas.look
    assert natural.params.style == "natural"
    page.styles.setCurrentIndex(1)
    qtbot.waitUntil(lambda: page.canvas.look.params.style == "deep", timeout=8000)
    assert page.canvas.look.params.asinh_a < natural.params.asinh_a
    page.saturation.setValue(-100)
    qtbot.waitUntil(lambda: page.canvas.look.params.saturation == 0.0, timeout=8000)
    page.reset_stretch()
    qtbot.waitUntil(lambda: page.canvas.look.params.saturation == 1.0, timeout=8000)
    assert page.canvas.look.params.style == "deep"


def test_a_file_that_cannot_be_shown_is_explained(make_window, tmp_path):
    window = make_window()
    (tmp_path / "x.fits").write_bytes(b"nothing")
    window.take_dropped(str(tmp_path / "x.fits"))
    assert window.footer_text.text()
    window.viewer_page.open_result_folder(str(tmp_path))
    assert str(tmp_path) in window.footer_text.text()
