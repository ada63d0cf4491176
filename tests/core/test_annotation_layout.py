"""Words of an annotation do not lie on each other, and what matters most has its words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from zemosaic_core.annotation import SkyObject, annotate
from zemosaic_core.annotation_layout import lay_out
from zemosaic_core.sphere import tan_wcs

SHAPE_HW = (500, 700)
LETTER_PX = 12.0


def width_px(text):
    return 0.55 * LETTER_PX * len(text)


def crowd(n, seed=1):
    """A Messier object among many galaxies without a name, and a star."""
    rng = np.random.default_rng(seed)
    wcs = tan_wcs((187.0, 12.0), 10 / 3600, SHAPE_HW)
    places = wcs.all_pix2world(rng.uniform((30, 30), (670, 470), (n, 2)), 0) if n else []
    objects = [
        SkyObject("galaxy", f"NGC {k}", "", "", *place, 1.0, 0.5, 30.0, 15.0)
        for k, place in enumerate(places)
    ]
    middle = [float(v) for v in wcs.all_pix2world(350, 250, 0)]
    objects.append(SkyObject("galaxy", "M 1", "", "Great One", *middle, 9.0, 5.0, 45.0, 8.0))
    star = [float(v) for v in wcs.all_pix2world(100, 400, 0)]
    objects.append(SkyObject("star", "α Vir", "", "", *star, math.nan, math.nan, math.nan, 1.0))
    return annotate(wcs, SHAPE_HW, objects)


def box(label):
    half_width, half_height = width_px(label.text) / 2, LETTER_PX / 2
    return (
        label.x_px - half_width,
        label.y_px - half_height,
        label.x_px + half_width,
        label.y_px + half_height,
    )


@pytest.mark.parametrize("n", [0, 10, 300])
def test_words_lie_within_the_picture_and_not_on_each_other(n):
    layout = lay_out(crowd(n), LETTER_PX, width_px)
    boxes = [box(label) for label in layout.labels if label.text not in "NE"]
    for x0, y0, x1, y1 in boxes:
        assert x0 > -1
        assert y0 > -1
        assert x1 < SHAPE_HW[1]
        assert y1 < SHAPE_HW[0]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_marks_are_all_drawn_and_known_names_written_however_crowded_it_is():
    note = crowd(300)
    layout = lay_out(note, LETTER_PX, width_px)
    texts = {label.text for label in layout.labels}
    assert {"M 1 Great One", "α Vir", "N", "E", note.scale_bar.label} <= texts
    assert sum(stroke.role == "object" for stroke in layout.strokes) == 301
    assert sum(stroke.role == "star" for stroke in layout.strokes) == 4
    assert sum(text.startswith("NGC") for text in texts) < 300


def test_an_ellipse_has_the_size_and_direction_of_its_mark():
    note = crowd(0)
    (mark,) = [m for m in note.marks if m.sky_object.kind == "galaxy"]
    (stroke,) = [s for s in lay_out(note, LETTER_PX, width_px).strokes if s.role == "object"]
    off = stroke.points_px - (mark.x_px, mark.y_px)
    far = np.hypot(*off.T)
    assert far.max() == pytest.approx(mark.semi_major_px, rel=1e-3)
    assert far.min() == pytest.approx(mark.semi_minor_px, rel=1e-3)
    x, y = off[far.argmax()]
    assert math.degrees(math.atan2(y, x)) % 180 == pytest.approx(mark.angle_deg, abs=1.0)


def test_arrows_and_bar_are_as_long_as_they_say():
    note = crowd(0)
    layout = lay_out(note, LETTER_PX, width_px)
    bar = next(s.points_px for s in layout.strokes if s.role == "scale")
    assert np.ptp(bar[:, 0]) == pytest.approx(note.scale_bar.length_px)
    place = {label.text: np.array([label.x_px, label.y_px]) for label in layout.labels if label.text in "NE"}
    # North up, east to the left.
    assert place["N"][1] > place["E"][1]
    assert place["N"][0] > place["E"][0]
