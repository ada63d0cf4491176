"""A picture for a browser without network."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from zemosaic_core.annotation import Mark, SkyObject
from zemosaic_core.errors import SaveFailed
from zemosaic_io.zoom_page import write_zoom_page


def sky(height=700, width=1100):
    y, x = np.indices((height, width))
    picture = np.zeros((height, width, 4), np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 3] = x * 255 // width, y * 255 // height, 255
    return picture


def write(folder, picture, *rest, rows=192):
    """Write a picture in bands from its last rows on."""
    bands = [picture[y : y + rows] for y in range(0, len(picture), rows)]
    return write_zoom_page(folder, bands[::-1], picture.shape[:2], *rest)


def read(page):
    text = page.read_text(encoding="utf-8")
    return (
        text,
        json.loads(re.search(r"const PICTURE = (.*);", text)[1]),
        json.loads(re.search(r"const MARKS = (.*);", text)[1]),
    )


def assembled(folder, level, facts):
    """Put the tiles of a level together again."""
    step = 2 ** (facts["levels"] - level)
    height, width = -(-facts["height"] // step), -(-facts["width"] // step)
    whole = np.zeros((height, width, 3), np.uint8)
    for path in (folder / facts["folder"] / str(level)).iterdir():
        column, row = (int(v) for v in path.stem.split("_"))
        with Image.open(path) as tile:
            part = np.asarray(tile)
        y, x = row * facts["tile"], column * facts["tile"]
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def test_each_level_is_the_picture_at_its_scale(tmp_path):
    picture = sky()
    page = write(tmp_path / "zoom", picture, "M 1")
    _, facts, _ = read(page)
    assert (facts["levels"], facts["first"]) == (11, 9)
    upright = picture[::-1, :, :3].astype(float)
    for level, tolerance in ((11, 3), (10, 4), (8, 6)):
        found = assembled(page.parent, level, facts)
        step = 2 ** (11 - level)
        np.testing.assert_allclose(
            found[:80, :130], upright[step // 2 :: step, step // 2 :: step][:80, :130], atol=tolerance
        )
    whole = write(tmp_path / "whole", picture, "M 1", rows=700)
    for tile in sorted((page.parent / facts["folder"]).rglob("*.jpg")):
        assert tile.read_bytes() == (whole.parent / tile.relative_to(page.parent)).read_bytes()
    with Image.open(page.parent / facts["folder"] / "0" / "0_0.jpg") as least:
        assert least.size == (1, 1)
    size = ElementTree.parse(page.parent / "tiles.dzi").getroot()[0].attrib
    assert size == {"Width": "1100", "Height": "700"}


def test_a_picture_of_one_tile_begins_with_itself(tmp_path):
    _, facts, _ = read(write(tmp_path / "zoom", sky(40, 300), "small"))
    assert facts["first"] == facts["levels"] == 9


def test_the_page_needs_no_network_and_no_title_breaks_it(tmp_path):
    thing = SkyObject("galaxy", "M 1", "", "</script><b>", 1.0, 2.0, 3.0, 1.0, 30.0, 5.0)
    page = write(tmp_path / "zoom", sky(), "a <b> & c", [Mark(thing, 100.0, 50.0, 30.0, 10.0, 40.0)])
    text, _, marks = read(page)
    assert "http" not in text
    assert "<title>a &lt;b&gt; &amp; c</title>" in text
    assert text.count("</script>") == 1
    # Upright, from the corner of the first pixel; angles turn the other way.
    assert marks == [["M 1 </script><b>", 100.5, 649.5, 30.0, 10.0, round(-math.radians(40), 4), False]]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "zoom").write_text("a file")
    with pytest.raises(SaveFailed, match="zoom"):
        write(tmp_path / "zoom", sky(40, 30), "M 1")
