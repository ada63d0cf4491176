"""One mosaic per filter, where asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from made_frames import Result, base_cards, expose, field_sky, pointings, run, write

from zemosaic_pipeline.plan import make_plan
from zemosaic_settings import Settings

SETTINGS = {"solver_method": "EMBEDDED"}
# What the narrow one lets pass of stars, in red, green and blue.
NARROW = (0.30, 0.22, 0.20)


@pytest.fixture(scope="module")
def sky():
    return field_sky(size_deg=0.9)


@pytest.fixture(scope="module")
def raw(sky, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filters") / "raw"
    for i, setup in enumerate(pointings(n=9)):
        name = "LP" if i >= 5 else "ircut" if i == 2 else "IRCUT"
        if name == "LP":
            setup = replace(
                setup,
                transparency=tuple(t * c for t, c in zip(setup.transparency, NARROW, strict=True)),
                sky_adu=tuple(v * c for v, c in zip(setup.sky_adu, NARROW, strict=True)),
            )
        write(folder / f"f{i}.fit", expose(sky, setup), base_cards(setup, i, FILTER=name))
    return folder


@pytest.mark.parametrize("route", ["direct", "panels"])
def test_each_filter_has_its_own_mosaic_on_one_grid(sky, raw, tmp_path, route):
    result = run(raw, tmp_path / "out", split_by_filter=True, route=route, **SETTINGS)
    assert result.left_out == {}
    assert result.report["frames_used"] == 9
    wide = result.load()
    narrow = Result(
        result.report,
        {kind.removesuffix(":LP"): path for kind, path in result.outputs.items() if kind.endswith(":LP")},
    ).load()
    assert {"science", "coverage", "preview"} <= set(narrow.outputs)
    for part, name, n in ((wide, "IRCUT", 5), (narrow, "LP", 4)):
        assert part.header["FILTER"] == name
        assert part.header["NRAWPROC"] == n
        assert part.coverage.max() == n
        assert Path(part.outputs["science"]).stem.endswith(f"_R{n}_{name}")
    # The same pixels of the sky, up to how far the frames reach.
    shift = wide.wcs.wcs.crpix - narrow.wcs.wcs.crpix
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-6)
    # Each on the scale of its own clear frames, no haze for the narrow one.
    flux = [np.nanmedian(part.stars(sky)["ratio"], axis=1) for part in (wide, narrow)]
    air = np.array([setup.transparency[0] for setup in pointings(n=9)])
    clear = [np.exp(np.median(np.log(np.sort(part)[::-1][:n]))) for part, n in ((air[:5], 3), (air[5:], 2))]
    np.testing.assert_allclose(flux[1] / flux[0], np.array(NARROW) * clear[1] / clear[0], rtol=0.04)
    shown = [frame["transparency"] for frame in result.report["frames"]]
    assert min(shown) > 0.8
    assert [entry["filter"] for entry in result.report["mosaics"]] == ["IRCUT", "LP"]
    told = [
        m["values"]["details"] for m in result.report["messages"] if m["key"] == "run_info_split_by_filter"
    ]
    assert told == ["IRCUT (5), LP (4)"]
    assert "run_info_mixed" not in result.message_keys


def test_the_plan_says_what_there_will_be(raw, tmp_path):
    settings = Settings.from_mapping(SETTINGS)
    plan = make_plan(raw, tmp_path / "out", settings)
    assert plan.split == ""
    assert plan.mixture == "FILTER IRCUT (5), LP (4)"
    plan = make_plan(raw, tmp_path / "out", settings.updated({"split_by_filter": True}))
    assert plan.split == "IRCUT (5), LP (4)"
    assert plan.mixture == ""


def test_a_single_filter_is_no_reason_to_split(sky, tmp_path):
    for i, setup in enumerate(pointings(n=3)):
        write(tmp_path / "raw" / f"f{i}.fit", expose(sky, setup), base_cards(setup, i, FILTER="LP"))
    together = run(tmp_path / "raw", tmp_path / "a", **SETTINGS).load()
    split = run(tmp_path / "raw", tmp_path / "b", split_by_filter=True, **SETTINGS).load()
    assert Path(split.outputs["science"]).name == Path(together.outputs["science"]).name
    np.testing.assert_array_equal(split.image, together.image)
    assert WCS(fits.getheader(split.outputs["science"])).celestial.wcs.compare(together.wcs.wcs)
