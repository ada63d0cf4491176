"""An annotation as pixels, as SVG and as a list says the same."""

from __future__ import annotations

import csv
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from zemosaic_core.annotation import SkyObject, annotate
from zemosaic_core.annotation_layout import Layout, Stroke
from zemosaic_core.sphere import tan_wcs
from zemosaic_io.annotation_files import (
    LIST_COLUMNS,
    draw_annotation,
    layout_for,
    write_annotation_svg,
    write_object_list,
)

SHAPE_HW = (300, 400)
WCS = tan_wcs((10.0, 40.0), 20 / 3600, SHAPE_HW)


def note(x_px=300.0, y_px=50.0):
    ra, dec = (float(v) for v in WCS.all_pix2world(x_px, y_px, 0))
    galaxy = SkyObject("galaxy", "M 1", "NGC 9", "Big, Round", ra, dec, 20.0, 20.0, math.nan, 8.25)
    return annotate(WCS, SHAPE_HW, [galaxy])


def grey_picture():
    picture = np.full((*SHAPE_HW, 4), 40, np.uint8)
    picture[..., 3] = 255
    return picture


def test_a_circle_is_drawn_where_the_object_lies():
    before = grey_picture()
    after = draw_annotation(before, layout_for(note()))
    # 20 arcmin are 60 px: the ring passes 30 px from the middle in rows as in FITS.
    y, x = np.indices(SHAPE_HW)
    ring = np.abs(np.hypot(x - 300, y - 50) - 30) < 0.6
    yellow = (after[..., 0] > 110) & (after[..., 2] < 140)
    assert yellow[ring].mean() > 0.9
    assert not yellow[np.hypot(x - 300, y - 50) < 25].any()
    assert (before == grey_picture()).all()


def test_a_line_is_smooth_and_where_it_should_be_to_a_fifth_of_a_pixel():
    points = np.array([(20.0, 100.3), (380.0, 140.7)])
    drawn = draw_annotation(grey_picture(), Layout((Stroke("scale", points),), (), 12.0))
    light = drawn[..., 0].astype(float) - 40
    for column in (60, 199, 340):
        expected = 100.3 + (column - 20) / 360 * 40.4
        assert np.average(np.arange(300), weights=light[:, column]) == pytest.approx(expected, abs=0.2)
        assert light[:, column].sum() == pytest.approx(215 * 1.2, rel=0.15)


def test_lines_beyond_the_data_are_seen():
    picture = np.zeros((*SHAPE_HW, 4), np.uint8)
    drawn = draw_annotation(picture, layout_for(note()))
    assert drawn[..., 3].max() == 255
    assert drawn[drawn[..., 3] == 0].max() == 0


def test_the_layer_is_as_large_as_the_picture_and_upright(tmp_path):
    path = write_annotation_svg(tmp_path / "a.svg", layout_for(note()), SHAPE_HW)
    root = ElementTree.parse(path).getroot()
    assert root.attrib["viewBox"] == "0 0 400 300"
    name = "{http://www.w3.org/2000/svg}"
    (ring,) = root.find(f"{name}g[@id='object']")
    points = np.array([pair.split(",") for pair in ring.attrib["points"].split()], float)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    # SVG counts from the upper corner of the first pixel.
    np.testing.assert_allclose(middle, (300.5, 300 - 50 - 0.5), atol=0.1)
    assert "M 1 Big, Round" in {text.text for text in root.iter(f"{name}text")}


def test_the_list_counts_pixels_of_the_science_file_as_fits_does(tmp_path):
    path = write_object_list(tmp_path / "o.csv", note().marks, 4, (100, 200))
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == LIST_COLUMNS
    assert (row["name"], row["title"], row["mag"]) == ("M 1", "Big, Round", "8.25")
    assert row["position_angle_deg"] == ""
    # Pixel 300 of the picture covers 1300 to 1303 of the science file, whose first is 1 in FITS.
    assert (float(row["x_fits"]), float(row["y_fits"])) == (1302.5, 402.5)


@pytest.mark.parametrize(
    ("text", "plain"), [("α2 Cen", "Alpha2 Cen"), ("λ Ori", "Lambda Ori"), ("Étoile", "Etoile")]
)
def test_the_font_of_pictures_has_all_letters(text, plain):
    from zemosaic_io.annotation_files import _plain

    assert _plain(text) == plain
