"""Stacks that cannot become a mosaic, or only a poor one: one clear sentence each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_core.errors import RunFailed
from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_core.tile_photometry import TileOptions, solve_tiles
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import phase5_assemble, tile_intake
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_worker import run_hierarchical_mosaic

SHAPE = (64, 80)


def stack(path, *, channels=3, with_wcs=True, seed=0):
    planes = np.random.default_rng(seed).normal(500, 10, (channels, *SHAPE)).astype(np.float32)
    header = fits.Header({"STACKCNT": 9, "EXPTIME": 10.0})
    if with_wcs:
        header.update(tan_cards(150.0, 20.0, shape_hw=SHAPE))
    fits.writeto(path, planes if channels > 1 else planes[0], header)


def sentence(key, **values):
    text = ZeMosaicLocalization("en").get(key, **values)
    assert text.count(". ") == 0
    return text


def test_stacks_of_different_channels(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for number in range(2):
        stack(given / f"colour_{number}.fits", seed=number)
    stack(given / "grey.fits", channels=1, seed=5)
    context = RunContext(
        tmp_path / "out", report=lambda event: None, cancel=CancelToken(), policy=None, workers=1, threads=1
    )
    try:
        kept = tile_intake.run(
            tile_intake.TileFolders((given,), False), context, recursive=True, first_index=0, n_channels=None
        )
    finally:
        context.close()
    assert [context.name_of(frame.info.path) for frame in kept] == ["colour_0.fits", "colour_1.fits"]
    context.say("wcs_approximate", path=str(kept[0].info.path))
    assert context.messages[-1].values["path"] == str(given / "colour_0.fits")
    (left,) = context.left_out
    assert (left.path, left.key) == (str(given / "grey.fits"), "tile_other_channels")
    assert "1 colour channel," in sentence(left.key, **left.values)


def test_stacks_that_nothing_places(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for number in range(2):
        stack(given / f"{number}.fits", with_wcs=False, seed=number)
    with pytest.raises(RunFailed) as caught:
        run_hierarchical_mosaic(
            given, tmp_path / "out", use_existing_master_tiles=True, gpu_mode="off", num_base_workers=1,
            solver_method="EMBEDDED",
        )  # fmt: skip
    assert len(sentence(caught.value.key, **caught.value.values)) > 20


def test_what_is_given_as_a_stack_is_one_whatever_its_header_counts(tmp_path):
    path = tmp_path / "nobody_counted.fits"
    fits.writeto(path, np.random.default_rng(0).normal(500, 10, (3, *SHAPE)).astype(np.float32))
    assert not read_frame_info(path).is_stack
    given = tile_intake._read(path, tmp_path)
    assert given.stack_count == 1
    assert given.is_stack


def test_tiles_without_overlap():
    told = []
    context = SimpleNamespace(say=lambda key, *_, **values: told.append((key, values)))
    solution = solve_tiles(2, [], 3, options=TileOptions(fit_gain=False, fit_plane=False, fit_surface=False))
    phase5_assemble._tell_photometry([], solution, context)
    assert told == [("tiles_disconnected", {"parts": 2})]
    assert "without overlap" in sentence("tiles_disconnected", parts=2)


def test_one_stack_alone():
    assert "only usable stack" in sentence("tiles_only_one", name="a.fits")
