"""Files that are made on request beside the pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.wcs import WCS
from PIL import Image

from zemosaic_core.sphere import tan_wcs
from zemosaic_pipeline.extra_files import annotation_of, write_annotation
from zemosaic_pipeline.finished_picture import FinishedPicture

# The middle of the Virgo cluster: many galaxies.
MOSAIC = tan_wcs((187.5, 12.7), 4.0 / 3600.0, (1200, 1500), rotation_deg=20.0)
STEP, BOX = 3, (90, 990, 120, 1320)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    shown = np.full((300, 400, 4), 30, np.uint8)
    shown[..., 3] = 255
    shown[:, :100] = 0
    image = np.zeros((1, 300, 400), np.float32)
    picture = FinishedPicture(image, image[0] > 0, None, None, STEP, BOX, [])
    mosaic = SimpleNamespace(grid=SimpleNamespace(wcs_cards=dict(MOSAIC.to_header())))
    base = tmp_path_factory.mktemp("out") / "mosaic"
    note = annotation_of(shown, picture, mosaic, ())
    return write_annotation(base, shown, note, picture, {"Software": "test"})


def test_objects_are_listed_where_the_science_file_has_them(written):
    with Path(written["objects"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"M 87", "NGC 4476"} <= {row["name"] for row in rows}
    wcs = WCS(MOSAIC.to_header())
    for row in rows:
        x, y = wcs.all_world2pix(float(row["ra_deg"]), float(row["dec_deg"]), 1)
        assert np.hypot(x - float(row["x_fits"]), y - float(row["y_fits"])) < 0.1
        # Only what is within the cut and has data.
        assert BOX[2] + 100 * STEP < float(row["x_fits"]) + 0.5 <= BOX[3] + 1
        assert BOX[0] <= float(row["y_fits"]) <= BOX[1] + 1


def test_the_annotated_picture_says_who_made_it(written):
    with Image.open(written["annotated"]) as picture:
        assert picture.size == (400, 300)
        assert picture.text["Software"] == "test"
        assert np.asarray(picture)[..., :3].max() > 200
