"""The viewer: parts fit together, large files are not read whole, and every tool does what it says."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from PySide6.QtCore import QPointF, QRectF, Qt

from zemosaic_core.annotation import Annotation, Compass, Mark, ScaleBar, SkyObject
from zemosaic_core.errors import SkipItem
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_core.stretch import StretchParams, preview_rgba
from zemosaic_io.fits_write import write_image
from zemosaic_pipeline.picture_look import stretch_move
from zemosaic_ui import mosaic_image
from zemosaic_ui.footprints import find_outputs, read_footprints
from zemosaic_ui.look import Look, base_params, coverage_overlay, render, render_window, same_numbers
from zemosaic_ui.mosaic_image import MosaicImage, sexagesimal
from zemosaic_ui.part_renderer import PartRenderer
from zemosaic_ui.qt.annotation_overlay import labelled_marks


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


def test_parts_are_those_of_the_picture_a_run_would_make(mosaic):
    path, image = mosaic
    opened = MosaicImage(path)
    look = Look(1, "rgb", base_params(opened.overview(), "rgb"))
    whole = preview_rgba(image, params=look.params, max_dim=None)
    part = render_window(opened, look, 0, (512, 1024, 512, 1024), finish=False)
    assert np.array_equal(part, whole[512:700, 512:1024])
    assert np.array_equal(part, render(opened.part(0, 1, 1), look))
    assert whole[10, 10, 3] == 0
    assert render(image, Look(2, "red", base_params(image, "red"))).shape == (700, 1300, 4)


def test_finishing_uses_the_noise_and_the_clipped_light_of_the_run(tmp_path):
    """The whole in small, and windows of it, are the picture of the run with the same numbers."""
    path, image = write_mosaic(tmp_path, shape=(3, 260, 400))
    clipped = np.zeros((260, 400), np.uint8)
    clipped[200:205, 300:305] = 1
    sigma = np.full((3, 8, 12), 3.0, np.float32)
    coverage = tmp_path / "mosaic_coverage.fits"
    planes = [("CLIPPED", clipped), ("NOISE", sigma)]
    write_image(coverage, np.ones((260, 400), np.float32), extensions=planes)
    opened = MosaicImage(path, find_outputs(path))
    opened.read_facts()
    look = Look(1, "rgb", base_params(image, "rgb", {"white_gains": (0.8, 1.0, 1.2)}))
    noise = NoiseMap(sigma, 32.0)
    expected = preview_rgba(
        image, params=look.params, max_dim=None, calm_noise=True, noise=noise, clipped=clipped > 0
    )
    whole = render_window(opened, look, 0, (0, 260, 0, 400), finish=True)
    assert np.array_equal(whole, expected)
    part = render_window(opened, look, 0, (128, 256, 256, 384), finish=True).astype(int)
    assert np.abs(part - expected[128:256, 256:384]).max() <= 8
    assert np.abs(part - expected[128:256, 256:384]).mean() < 0.5
    deaf = MosaicImage(path)
    deaf.read_facts()
    assert deaf.noise is None
    assert not np.array_equal(render_window(deaf, look, 0, (0, 260, 0, 400), finish=True), expected)
    # Means of 2 x 2 pixels have half the noise.
    assert opened.noise_of(1).of_sum((1.0, 0.0, 0.0), (130, 200)).max() == pytest.approx(1.5)


def test_two_pictures_are_stretched_alike_unless_their_units_differ():
    own = StretchParams((5.0,) * 3, (1.0, 1.0, 1.0), 20.0, 1000.0, 0.01)
    other = StretchParams((90.0,) * 3, (0.9, 1.0, 1.1), 30.0, 2000.0, 0.02, "deep")
    assert same_numbers(own, other) == replace(other, sky=own.sky)
    assert same_numbers(own, replace(other, span=9000.0)) == own
    assert same_numbers(own, replace(other, gain=(1.0,), sky=(90.0,))) == own


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
    rgba = coverage_overlay(np.array([[0.0, 1.0], [5.0, np.nan]], dtype=np.float32))
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
def shown(tmp_path):
    """A mosaic of four parts: large enough for every tool, quickly finished."""
    return write_mosaic(tmp_path, shape=(3, 560, 900))


@pytest.fixture
def page(make_window, shown, qtbot):
    window = make_window()
    window.show_page("mosaic")
    window.take_dropped(str(shown[0]))
    qtbot.waitUntil(lambda: window.viewer_page.canvas.has_overview, timeout=60_000)
    yield window.viewer_page
    window.viewer_page.close_file()


def test_the_mosaic_appears_and_parts_follow(page, qtbot):
    qtbot.waitUntil(lambda: page.canvas.n_parts >= 1, timeout=60_000)
    assert "900" in page.name.text()
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


def test_value_and_position_under_the_cursor(page, shown, qtbot):
    page._on_hovered(302.0, 202.0)
    qtbot.waitUntil(lambda: "302.0" in page.facts.text())
    assert "+40:51" in page.facts.text()
    value = shown[1][0, 202, 302]
    assert page.session.texts.number(float(value), 1) in page.facts.text()


def test_channels_and_sliders_change_the_picture(page, qtbot):
    number = page.canvas.look.number
    page.look.channels.setCurrentIndex(1)
    qtbot.waitUntil(lambda: page.canvas.look.number > number, timeout=60_000)
    assert page.canvas.look.view == "red"
    before = page.canvas.look.params
    page.look.sliders["mid"].setValue(60)
    qtbot.waitUntil(lambda: page.canvas.look.params != before, timeout=60_000)
    page.look.reset()
    qtbot.waitUntil(lambda: page.canvas.look.params == before, timeout=60_000)
    page.look.channels.setCurrentIndex(0)


def test_style_and_saturation_change_the_picture(page, qtbot):
    qtbot.waitUntil(lambda: page.canvas.look is not None, timeout=8000)
    natural = page.canvas.look
    assert natural.params.style == "natural"
    page.look.styles.setCurrentIndex(1)
    qtbot.waitUntil(lambda: page.canvas.look.params.style == "deep", timeout=8000)
    assert page.canvas.look.params.asinh_a < natural.params.asinh_a
    page.look.sliders["saturation"].setValue(-100)
    qtbot.waitUntil(lambda: page.canvas.look.params.saturation == 0.0, timeout=8000)
    page.look.reset()
    qtbot.waitUntil(lambda: page.canvas.look.params.saturation == 1.0, timeout=8000)
    assert page.canvas.look.params.style == "deep"


def test_sliders_become_the_settings_of_the_next_run(page, session, qtbot):
    page.look.sliders["white"].setValue(-30)
    page.look.styles.setCurrentIndex(2)
    page.look.keep_button.click()
    settings = session.form.settings()
    assert (settings.picture_style, settings.picture_white, settings.picture_black) == ("print", -30.0, 0.0)
    assert stretch_move(settings.to_mapping()) == page.look.move_wanted
    page.look.reset()
    page.open_file(str(page.canvas.image.path))
    assert page.look.sliders["white"].value() == -30
    assert page.look.style_name == "print"
    page.look.reset()


def test_single_pixels_are_finished_when_the_view_rests(page, qtbot, monkeypatch):
    monkeypatch.setattr(mosaic_image, "OVERVIEW_PX", 300)
    page.canvas.zoom_to(1.0)
    qtbot.waitUntil(lambda: page.canvas.n_finished > 1, timeout=60_000)
    assert page.look.histogram.histogram.counts.sum() > 0
    page.look.calm.setChecked(False)
    qtbot.waitUntil(lambda: not page.canvas.look.calm, timeout=8000)
    qtbot.waitUntil(lambda: page.canvas.n_parts > 0, timeout=60_000)
    assert page.canvas.n_finished == 0
    page.look.calm.setChecked(True)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_what_is_in_sight_can_be_saved(page, shown, tmp_path, qtbot, ending):
    page.look.calm.setChecked(False)
    page.canvas.zoom_to(1.0)
    qtbot.waitUntil(lambda: not page.canvas.look.calm, timeout=8000)
    level, (y0, y1, x0, x1) = page.canvas.visible_box()
    assert level == 0
    path = tmp_path / f"view.{ending}"
    with qtbot.waitSignal(page.said, timeout=60_000) as said:
        page.save_view(path)
    assert str(path) in said.args[0]
    bits = 16 if ending == "tif" else 8
    expected = render(shown[1], page.canvas.look, bits=bits)[y0:y1, x0:x1][::-1]
    if ending == "tif":
        saved = tifffile.imread(path)
    else:
        with Image.open(path) as picture:
            saved = np.asarray(picture)
            recipe = json.loads(picture.text["Picture"])
        assert recipe["box"] == [y0, y1, x0, x1]
        assert recipe["params"]["span"] == page.canvas.look.params.span
    assert np.array_equal(saved, expected)
    page.look.calm.setChecked(True)


def test_colours_before_their_calibration_beside_them(page, shown, qtbot):
    assert not page.look.calibrated.isEnabled()
    with fits.open(shown[0], mode="update") as hdus:
        hdus[0].header.update({"WBAL_R": 0.8, "WBAL_G": 1.0, "WBAL_B": 1.2})
    page.open_file(str(shown[0]))
    qtbot.waitUntil(lambda: page.canvas.look is not None, timeout=8000)
    assert page.look.calibrated.isEnabled()
    assert page.canvas.look.params.gain == (0.8, 1.0, 1.2)
    page.compare_with("before")
    qtbot.waitUntil(lambda: page.pane.other.has_overview, timeout=60_000)
    other = page.pane.other
    assert other.isVisible()
    assert other.look.params == replace(page.canvas.look.params, gain=(1.0, 1.0, 1.0))
    page.canvas.zoom_to(1.0)
    assert (other.scale, other.centre) == (page.canvas.scale, page.canvas.centre)
    other.zoom(0.5)
    assert page.canvas.scale == other.scale
    page.compare_with("off")
    assert other.image is None
    assert page.canvas.isVisible()
    page.look.calibrated.setChecked(False)
    qtbot.waitUntil(lambda: page.canvas.look.params.gain == (1.0, 1.0, 1.0), timeout=8000)
    page.look.calibrated.setChecked(True)


def test_another_result_blinks_at_the_same_place_of_the_sky(page, tmp_path, qtbot):
    (tmp_path / "b").mkdir()
    path, _ = write_mosaic(tmp_path / "b", shape=(3, 300, 500))
    with fits.open(path, mode="update") as hdus:
        hdus[0].header.update({"CRPIX1": 200.5, "CRPIX2": 100.5, "CDELT1": -0.002, "CDELT2": 0.002})
    assert page.compare_with_file(str(path))
    other = page.pane.other
    page.pane.set_way("blink")
    page.canvas.zoom_to(1.0)
    assert other.isVisible() != page.canvas.isVisible()
    first = page.canvas.isVisible()
    page.pane.blink()
    assert page.canvas.isVisible() != first
    # The reference pixel lies at (649.5, 349.5) here and at (199.5, 99.5) there, where pixels are twice as large.
    page.canvas.look_at(649.5, 349.5, 1.0)
    page.canvas.view_changed.emit()
    assert (other.centre.x(), other.centre.y(), other.scale) == pytest.approx((199.5, 99.5, 2.0), abs=1e-4)
    qtbot.waitUntil(lambda: other.look is not None, timeout=60_000)
    assert other.look.params.span == page.canvas.look.params.span
    assert not page.compare_with_file(str(tmp_path / "missing.fits"))
    page.stop_comparing()


def test_objects_are_named_where_the_sky_has_them(page, shown, qtbot):
    """The field is that of M 31: its companions lie where the WCS puts them, and the zoom makes room for more."""
    canvas = page.canvas
    page.overlay_buttons["annotation"].setChecked(True)
    qtbot.waitUntil(lambda: canvas.annotation is not None, timeout=60_000)
    assert canvas.annotation.marks
    wcs = WCS(fits.getheader(shown[0])).celestial
    for mark in canvas.annotation.marks:
        if mark.sky_object.kind != "star":
            place = wcs.wcs_world2pix(mark.sky_object.ra_deg, mark.sky_object.dec_deg, 0)
            assert (mark.x_px, mark.y_px) == pytest.approx(tuple(map(float, place)), abs=0.01)
    with_names = canvas.grab().toImage()
    page.overlay_buttons["annotation"].setChecked(False)
    assert canvas.grab().toImage() != with_names


def test_labels_that_have_no_room_wait_for_a_closer_look():
    def mark(name, x):
        thing = SkyObject("galaxy", name, "", "", 0.0, 0.0, 1.0, 1.0, 0.0, 10.0)
        return Mark(thing, x, 50.0, 3.0, 3.0, 0.0)

    marks = (mark("first", 50.0), mark("second", 54.0), mark("third", 400.0), mark("outside", 5000.0))
    note = Annotation((100, 6000), marks, (), ScaleBar(60.0, 10.0), Compass((0.0, 1.0), (-1.0, 0.0)))

    def named(scale):
        found = labelled_marks(
            note,
            QRectF(0, 0, 1000, 1000),
            lambda x, y: QPointF(scale * x, y),
            lambda text: QRectF(0, 0, 60, 14),
        )
        return [mark.label for mark, _ in found]

    assert named(1.0) == ["first", "third"]
    assert named(18.0) == ["first", "second"]


def test_panning_reads_parts_and_not_the_file(page, monkeypatch, qtbot):
    page.canvas.zoom_to(1.0)
    qtbot.waitUntil(lambda: not page.canvas.missing_parts(), timeout=60_000)
    read = []
    plain = MosaicImage.rows
    monkeypatch.setattr(
        MosaicImage, "rows", lambda self, *window: read.append(window) or plain(self, *window)
    )
    qtbot.keyClick(page.canvas, Qt.Key.Key_Right)
    qtbot.waitUntil(lambda: not page.canvas.missing_parts(), timeout=60_000)
    assert all(x1 - x0 <= 512 + 2 * 128 for _, _, x0, x1 in read)


def test_a_file_that_cannot_be_shown_is_explained(make_window, tmp_path):
    window = make_window()
    (tmp_path / "x.fits").write_bytes(b"nothing")
    window.take_dropped(str(tmp_path / "x.fits"))
    assert window.footer_text.text()
    window.viewer_page.open_result_folder(str(tmp_path))
    assert str(tmp_path) in window.footer_text.text()
