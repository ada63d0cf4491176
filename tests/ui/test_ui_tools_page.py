"""The bench of the tile tools: pictures, score and result are those of the commands; originals stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_io.tile_tools import crop_file, score_file
from zemosaic_settings import OPTIONS_BY_KEY
from zemosaic_ui.qt.number_slider import NumberSlider


@pytest.fixture
def tile(tmp_path):
    """A tile of three planes with stars, whose left rim is noisy and whose corner few frames cover."""
    rng = np.random.default_rng(8)
    planes = rng.normal(500.0, 5.0, (3, 240, 320)).astype(np.float32)
    for y, x in zip(rng.integers(8, 232, 60), rng.integers(8, 312, 60), strict=True):
        planes[:, y - 1 : y + 2, x - 1 : x + 2] += rng.uniform(200, 2000)
    planes[:, :, :40] += rng.normal(0.0, 60.0, (3, 240, 40)).astype(np.float32)
    coverage = np.full((240, 320), 20.0, np.float32)
    coverage[:50, -60:] = 1.0
    path = tmp_path / "tile.fits"
    header = fits.Header({"CRPIX1": 100.0, "CRPIX2": 90.0})
    fits.HDUList([fits.PrimaryHDU(planes, header), fits.ImageHDU(coverage, name="COVERAGE")]).writeto(path)
    return path


@pytest.fixture
def page(session, qtbot):
    from zemosaic_ui.qt.tools_page import ToolsPage

    made = ToolsPage(session)
    qtbot.addWidget(made)
    made.resize(1096, 660)
    made.show()
    yield made
    made.close_bench()


def opened(page, qtbot, tile):
    page.open_file(str(tile))
    qtbot.waitUntil(lambda: page.score is not None, timeout=60_000)


def test_pictures_and_score_are_those_of_the_commands(page, qtbot, tile):
    opened(page, qtbot, tile)
    wishes = page.wishes()
    expected = crop_file(tile, tile.with_name("by_command.fits"), wishes.crop)
    assert list(page.picture.cut.box) == expected["box"]
    assert expected["box"][2] >= 32
    y0, y1, x0, x1 = expected["box"]
    assert page.picture.after.shape[:2] == (y1 - y0, x1 - x0)
    assert page.picture.before.shape[:2] == (240, 320)
    assert np.array_equal(page.picture.after, page.picture.before[y0:y1, x0:x1])
    found = score_file(tile, wishes.threshold, wishes.quality)
    assert page.score.before == {name: found[name] for name in page.score.before}
    assert page.score.accepted_before == found["accepted"]
    assert page.score.after == {
        name: value
        for name, value in score_file(tile.with_name("by_command.fits"), 0.5, wishes.quality).items()
        if name in page.score.after
    }
    number = page.session.texts.number
    assert number(found["score"], 3) in page.score_words.text()
    assert page.part_labels["NBR"][1].text() == number(found["NBR"], 2)


def test_sliders_change_the_result_and_apply_writes_what_is_shown(page, qtbot, tile):
    original = tile.read_bytes()
    opened(page, qtbot, tile)
    whole = page.picture.cut.box
    page.switches["quality_crop"].setChecked(False)
    page.switches["altaz"].setChecked(True)
    page.sliders["altaz_min_coverage_abs"].set_number(4.0)
    qtbot.waitUntil(lambda: page.picture.cut.masked > 0, timeout=60_000)
    assert page.picture.cut.box != whole
    assert (page.picture.after[10, -10, 3], page.picture.before[10, -10, 3]) == (0, 255)
    target = tile.with_name("result.fits")
    assert not page.show_button.isEnabled()
    with qtbot.waitSignal(page.said, timeout=60_000) as said:
        page.apply_to(target)
    assert str(target) in said.args[0]
    assert tile.read_bytes() == original
    with fits.open(target) as hdus:
        assert np.isnan(hdus[0].data[:, 10, -10]).all()
        assert hdus["ALPHA"].data.shape == (240, 320)
    with qtbot.waitSignal(page.show_asked) as shown:
        page.show_button.click()
    assert shown.args == [str(target)]


def test_the_original_is_never_written_over(page, qtbot, tile):
    original = tile.read_bytes()
    opened(page, qtbot, tile)
    with qtbot.waitSignal(page.said, timeout=60_000) as said:
        page.apply_to(tile, overwrite=True)
    assert str(tile) in said.args[0]
    assert tile.read_bytes() == original


def test_what_cannot_be_read_is_explained(page, qtbot, tmp_path):
    (tmp_path / "x.fits").write_bytes(b"nothing")
    with qtbot.waitSignal(page.said, timeout=60_000) as said:
        page.open_file(str(tmp_path / "x.fits"))
    assert said.args[0]
    assert not page.apply_button.isEnabled()


@pytest.mark.parametrize(
    "key",
    ["quality_crop_k_sigma", "altaz_morph_open_px", "altaz_min_coverage_abs", "quality_gate_edge_band_px"],
)
def test_a_slider_begins_with_the_settings_and_stays_within_the_limits(session, qtbot, key):
    option = OPTIONS_BY_KEY[key]
    slider = NumberSlider(session, key)
    qtbot.addWidget(slider)
    slider.retranslate()
    assert slider.number == option.default
    assert isinstance(slider.number, int if option.type == "int" else float)
    slider.set_number(option.maximum + 100)
    assert slider.number <= option.maximum
    slider.set_number(option.minimum - 100)
    assert slider.number == option.minimum
