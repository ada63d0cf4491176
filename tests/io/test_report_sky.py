"""The sky's part of the report page, drawn from made-up facts."""

from __future__ import annotations

import re

import pytest

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_io.report_sky import sky_section


class Keys:
    """Words that show their key and values, numbers as Python writes them."""

    language_code = "en"

    def __call__(self, key: str, /, **values: object) -> str:
        return f"{key}({', '.join(f'{k}={v}' for k, v in values.items())})"

    def number(self, value: float, digits: int = 0) -> str:
        return f"{value:.{digits}f}"

    def written(self, number: str) -> str:
        return number

    def size(self, n_bytes: float) -> str:
        return str(n_bytes)

    def moment(self, iso: str) -> str:
        return iso


text = Keys()


def facts(**more: object) -> dict[str, object]:
    channel = {
        "assurance": "night",
        "gauge_used": True,
        "conflict": False,
        "sigma_tilt_adu": [3.0, 4.0],
        "sigma_bowl_adu": [1.0, 0.5, 2.0],
        "background_adu": 900.0,
        "empty_share": 0.6,
        "glow": [[10.0, 1.0, -1.0], [12.0, 1.0, -1.0]],
        "residual_adu": [1.5, 1.7],
        "overlaps": [[0, 1, 40, 0.3], [0, 2, 25, -0.2]],
        "removed_quadric": [0.0, 3.0, -1.0, 0.5, 0.0, 0.2],
        "quadric_centre_xy": [50.0, 40.0],
        **more,
    }
    sky = {
        "model": True,
        "site": "sky_site_header",
        "hours": [0.0, 1.0],
        "flat": {"applied": True, "nu": [-0.04, 0.0], "corner": 0.96, "corner_sigma": 0.002, "stars": 900},
        "pedestal": {"adu": [410.0] * 3, "sigma_adu": [20.0] * 3, "measured": True},
        "mosaic_origin_xy": [0, 0],
        "channels": [channel] * 3,
    }
    return {"sky": sky, "mosaic": {"width": 100, "height": 80}}


def figures(page: str) -> dict[str, str]:
    found = re.findall(r"<figure>(.*?)<figcaption>([a-z_.]+)", page, re.DOTALL)
    return {caption: picture for picture, caption in found}


def test_everything_known_of_the_sky_has_its_picture():
    drawn = figures(sky_section(facts(), text))
    assert set(drawn) == {
        "report.sky_glow",
        "report.sky_residuals",
        "report.sky_overlaps",
        "report.sky_flat_applied",
        "report.sky_removed",
        "report.sky_uncertainty",
    }
    assert drawn["report.sky_overlaps"].count("<circle") == 2 * 3
    # One line up and one down per channel.
    assert drawn["report.sky_uncertainty"].count("<polyline") == 2 * 3


def test_the_sentence_says_what_the_run_said():
    told = facts()
    channels = [dict(channel) for channel in told["sky"]["channels"]]
    for channel, residuals in zip(channels, ([3.0, 3.74], [3.0, 2.0], [5.0, None]), strict=True):
        channel["residual_adu"] = residuals
    told["sky"]["channels"] = channels
    # The median of the channels' medians, as `zemosaic_pipeline.sky` tells it.
    assert "residual_adu=3.37)" in sky_section(told, text)


@pytest.mark.parametrize(
    ("applied", "cells", "caption"),
    [
        (True, 0, "report.sky_flat_applied"),
        (False, 0, "report.sky_flat_not_applied"),
        (True, 900, "report.sky_flat_of_sky"),
        (False, 900, "report.sky_flat_of_sky_not_applied"),
    ],
)
def test_the_caption_of_the_flat_says_what_told_it_and_what_was_done(applied: bool, cells: int, caption: str):
    known = facts()
    known["sky"]["flat"] |= {"applied": applied, "cells": cells}
    assert caption in figures(sky_section(known, text))


def test_uncertainty_reaches_tilt_and_bowl_at_the_edge():
    line = re.search(r'points="([^"]+)"', figures(sky_section(facts(), text))["report.sky_uncertainty"])
    assert line
    heights = [float(point.split(",")[1]) for point in line[1].split()]
    # Zero in the middle, the same at both edges.
    assert heights[0] == heights[-1] == min(heights)
    assert heights[20] == max(heights)


def test_what_is_not_known_is_not_drawn():
    drawn = figures(sky_section(facts(sigma_tilt_adu=[None, 4.0], overlaps=[]), text))
    assert not {"report.sky_uncertainty", "report.sky_overlaps"} & set(drawn)


@pytest.mark.parametrize(("measured", "key"), [(True, "measured"), (False, "guessed")])
def test_the_pedestal_says_where_it_comes_from(measured, key):
    known = facts()
    known["sky"]["pedestal"]["measured"] = measured
    assert f"report.sky_pedestal_{key}(level=410, error=20)" in sky_section(known, text)


def test_numbers_of_the_page_are_those_of_its_language():
    page = sky_section(facts(), ZeMosaicLocalization("fr"))
    assert "900,0" in page
    assert "900.0" not in page
    axes = re.findall(r'text-anchor="(?:end|middle)">([^<]+)<', page)
    assert any("," in number for number in axes)
    assert not any("." in number for number in axes)


def test_levels_of_frames_from_0_to_1_keep_their_digits():
    small = facts(
        sigma_tilt_adu=[4.6e-5, 6.1e-5],
        sigma_bowl_adu=[1.5e-5, 8e-6, 3e-5],
        background_adu=0.01373,
        residual_adu=[2.3e-5, 2.6e-5],
    )
    small["sky"]["pedestal"] |= {"adu": [0.0063] * 3, "sigma_adu": [0.0003] * 3}
    page = sky_section(small, text)
    assert "tilt_adu=0.000061, bowl_adu=0.000030, residual_adu=0.000024" in page
    assert "(level=0.0063, error=0.00030)" in page
    assert "0.000046 / 0.000061" in page
    assert '<td class="n">0.014</td>' in page
