"""Inputs of every kind: what can be used gives the same sky, what cannot is named and left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from made_frames import (
    CENTRE,
    SCALE_DEG,
    SHAPE_HW,
    base_cards,
    expose,
    field_sky,
    pointings,
    run,
    write,
    write_all,
)

import run_zemosaic
from zemosaic_core.errors import RunFailed
from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_io.star_catalogue import catalogue_stars_near

PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")


@pytest.fixture(scope="module")
def sky():
    return field_sky(colours=True)


@pytest.fixture(scope="module")
def setups():
    return pointings(n=6)


@pytest.fixture(scope="module")
def by_form(sky, setups, tmp_path_factory):
    """The same exposures through every kind of sensor: form -> result."""
    folder = tmp_path_factory.mktemp("forms")
    results = {}
    for form in (*PATTERNS, "rgb", "mono"):
        write_all(folder / form / "raw", sky, setups, form=form)
        results[form] = run(folder / form / "raw", folder / form / "out")
    return results


@pytest.mark.parametrize("form", [*PATTERNS, "rgb", "mono"])
def test_positions_and_fluxes_are_right_for_every_sensor(by_form, sky, form):
    result = by_form[form]
    assert result.report["frames_used"] == 6
    stars = result.stars(sky)
    assert stars["x"].size >= 8
    assert np.median(stars["offset"]) < 0.06
    # One scale for all channels and sensors: that of the clearer frames.
    scale = np.nanmedian(stars["ratio"], axis=1)
    np.testing.assert_allclose(scale, 0.91, atol=0.05)
    assert np.nanmedian(np.abs(stars["ratio"] / scale[:, None] - 1)) < 0.03


@pytest.mark.parametrize("form", [*PATTERNS, "rgb"])
def test_red_stars_are_red(by_form, sky, form):
    result = by_form[form]
    stars = result.stars(sky)
    image = result.image - np.nanmedian(result.image, axis=(1, 2))[:, None, None]
    x, y = np.rint(stars["x"]).astype(int), np.rint(stars["y"]).astype(int)
    # Nine pixels: one alone of a faint star is half noise.
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    red, _, blue = (sum(image[c][y + dy, x + dx] for dy, dx in steps) for c in range(3))
    is_red = stars["row"] % 2 == 1
    assert is_red.any()
    assert (~is_red).any()
    assert (red[is_red] > 2 * blue[is_red]).all()
    assert (blue[~is_red] > 2 * red[~is_red]).all()


def test_fluxes_agree_between_the_sensors(by_form, sky):
    scales = [np.nanmedian(by_form[form].stars(sky)["ratio"], axis=1) for form in (*PATTERNS, "rgb")]
    np.testing.assert_allclose(scales, np.broadcast_to(scales[-1], (5, 3)), rtol=0.035)


def test_mono_gives_one_plane(by_form):
    assert by_form["mono"].image.shape[0] == 1


def _as_float_hwc(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(data, 0, -1)).astype(np.float32)


def test_float_rgb_stored_hwc_and_scaled_to_one(by_form, sky, setups, tmp_path):
    """Colour last, float32; divided by 65535, as some programs write: nothing in the chain knows ADU."""
    for i, setup in enumerate(setups):
        data = _as_float_hwc(expose(sky, setup, "rgb")) / np.float32(65535)
        write(tmp_path / "raw" / f"f{i}.FITS", data, base_cards(setup, i, form="rgb"))
    result = run(tmp_path / "raw", tmp_path / "out")
    assert result.report["frames_used"] == 6
    same = by_form["rgb"]
    assert result.image.shape == same.image.shape
    alike = np.isclose(result.image * 65535, same.image, rtol=3e-3, atol=0.5, equal_nan=True)
    # A sample right at a bound of the rejection may fall the other way.
    assert np.mean(~alike) < 1e-5
    # What is said of levels keeps digits that tell something.
    said, in_counts = (
        next(m["values"] for m in one.report["messages"] if m["key"].startswith("sky_assurance_"))
        for one in (result, same)
    )
    for name in ("tilt_adu", "bowl_adu", "residual_adu"):
        assert said[name] * 65535 == pytest.approx(in_counts[name], rel=0.06, abs=0.06)
        assert said[name] > 0
    for one, other in zip(result.report["frames"], same.report["frames"], strict=True):
        for name in ("sky_adu", "noise_adu"):
            assert np.array(one[name]) * 65535 == pytest.approx(np.array(other[name]), rel=2e-3)


def test_float_cfa_with_missing_pixels(sky, setups, tmp_path):
    for i, setup in enumerate(setups):
        data = expose(sky, setup).astype(np.float32)
        data[40:44, 60:66] = np.nan
        data[200, 300] = np.inf
        write(tmp_path / "raw" / f"f{i}.fit", data, base_cards(setup, i))
    result = run(tmp_path / "raw", tmp_path / "out")
    assert result.report["frames_used"] == 6
    inner = result.image[:, 40:-40, 40:-40]
    # Dither and field rotation fill the holes from the other frames.
    assert np.isfinite(inner).mean() > 0.999
    np.testing.assert_allclose(np.nanmedian(result.stars(sky)["ratio"], axis=1), 0.91, atol=0.05)


def test_bottom_up_rows_and_bayer_offsets(by_form, sky, setups, tmp_path):
    """ROWORDER BOTTOM-UP tells the pattern as displayed; XBAYROFF shifts it: both mean the same GRBG pixels."""
    assert SHAPE_HW[0] % 2 == 0
    for i, setup in enumerate(setups):
        more = {"ROWORDER": "BOTTOM-UP", "BAYERPAT": "BGGR"} if i % 2 else {"BAYERPAT": "RGGB", "XBAYROFF": 1}
        write(tmp_path / "raw" / f"f{i}.fit", expose(sky, setup), base_cards(setup, i) | more)
    result = run(tmp_path / "raw", tmp_path / "out")
    np.testing.assert_array_equal(result.image, by_form["GRBG"].image)


def test_every_name_and_depth_of_folder(by_form, sky, setups, tmp_path):
    raw = tmp_path / "raw"
    names = ["a/b/c/one.fit", "two.FITS", "a/three.fts", "four.fit.fz", "é à ü/five 5.FiT", "a/b/six.fits.FZ"]
    for i, (name, setup) in enumerate(zip(names, setups, strict=True)):
        write(raw / name, expose(sky, setup), base_cards(setup, i))
    (raw / "notes.txt").write_text("not a frame")
    (raw / "._two.FITS").write_bytes(b"companion of a foreign disk")
    result = run(raw, tmp_path / "out")
    assert result.report["frames_used"] == 6
    assert result.left_out == {}
    flat = run(raw, tmp_path / "out2", scan_recursive=False)
    assert flat.report["frames_used"] == 2
    # The order of the files decides which frame is the reference of sums, not what they show.
    image, other = result.image, by_form["GRBG"].image
    assert image.shape == other.shape
    noise = np.nanmedian(np.abs(np.diff(other, axis=2)))
    assert np.nanpercentile(np.abs(image - other), 99) < 0.05 * noise


@pytest.mark.skipif(os.name == "nt", reason="file names of POSIX are bytes")
def test_file_name_that_is_no_text(sky, setups, tmp_path):
    raw = tmp_path / "raw"
    paths = write_all(raw, sky, setups[:4])
    strange = os.fsdecode(os.fsencode(raw) + b"/caf\xe9 \xff.fit")
    try:
        os.rename(paths[1], strange)
    except OSError:
        pytest.skip("this file system takes only text")
    result = run(raw, tmp_path / "out", exclude_flagged_frames=False)
    assert result.report["frames_used"] == 4
    again = run(raw, tmp_path / "out", exclude_flagged_frames=False)
    assert "run_info_measures_reused" in again.message_keys


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_what_cannot_be_used_is_named_and_left_alone(sky, setups, tmp_path):
    raw = tmp_path / "raw"
    good = write_all(raw, sky, setups)
    data, cards = expose(sky, setups[0]), base_cards(setups[0], 7)
    whole = good[0].read_bytes()
    (raw / "cut_data.fit").write_bytes(whole[: len(whole) // 2])
    (raw / "cut_header.fit").write_bytes(whole[:1000])
    (raw / "zero.fit").write_bytes(b"")
    (raw / "text.fit").write_text("SIMPLE but not FITS")
    (raw / "noise.fit").write_bytes(np.random.default_rng(1).bytes(9000))
    (raw / "copy.fit").write_bytes(whole)
    write(raw / "packed_copy.fit.fz", data, base_cards(setups[0], 0))
    write(raw / "line.fit", data[0], cards)
    write(raw / "cube.fit", np.stack([data] * 5), cards)
    write(raw / "table_only.fit", np.empty(0, np.uint16), {})
    write(raw / "pattern.fit", data, cards | {"BAYERPAT": "XYZW"})
    write(raw / "small.fit", data[:100, :100], cards)
    write(raw / "mono.fit", data, {k: v for k, v in cards.items() if k != "BAYERPAT"})
    write(raw / "flat_level.fit", np.full_like(data, 1000), cards)
    rng = np.random.default_rng(2)
    write(raw / "no_stars.fit", rng.normal(800, 90, data.shape).astype(np.uint16), cards)
    write(raw / "all_nan.fit", np.full(data.shape, np.nan, np.float32), cards)
    write(raw / "saturated.fit", np.full_like(data, 65535), cards)
    cosmos = expose(
        field_sky((40.0, -30.0), seed=5), replace(setups[0], cards=tan_cards(40, -30, shape_hw=SHAPE_HW))
    )
    write(
        raw / "elsewhere_unsolvable.fit",
        cosmos,
        base_cards(setups[0], 9, with_wcs=False) | {"RA": 40, "DEC": -30},
    )
    before = _digests(raw)
    result = run(raw, tmp_path / "out")
    assert _digests(raw) == before
    assert result.report["frames_used"] == 6
    reasons = result.left_out
    expected = {
        "cut_data.fit": "frame_truncated",
        "cut_header.fit": "frame_truncated",
        "zero.fit": "frame_empty",
        "text.fit": "frame_not_fits",
        "noise.fit": "frame_not_fits",
        "line.fit": "frame_no_image",
        "cube.fit": "frame_wrong_shape",
        "table_only.fit": "frame_no_image",
        "pattern.fit": "frame_unknown_pattern",
        "small.fit": "frame_too_few_stars",
        "mono.fit": "frame_other_geometry",
        "flat_level.fit": "frame_empty",
        "saturated.fit": "frame_empty",
        "all_nan.fit": "frame_empty",
        "no_stars.fit": "frame_dark_content",
        "elsewhere_unsolvable.fit": "frame_unsolved",
    }
    copies = {"copy.fit", "packed_copy.fit.fz", "light_000.fit"}
    assert {name: key for name, key in reasons.items() if name not in copies} == expected
    # Of the three forms of one frame exactly one is used.
    assert sorted(reasons[name] for name in copies & set(reasons)) == ["frame_duplicate"] * 2
    assert result.report["frames_found"] == 6 + 2 + len(expected)


def test_frames_of_two_sensors_make_one_mosaic(tmp_path):
    """As of two telescopes: other size, other pattern of colours, other numbers for the same light."""
    sky = field_sky()
    whole = pointings(n=12, seed=3, rotation_deg=3.0)
    for name, narrow in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        for number, setup in enumerate(whole):
            data, cards = expose(sky, setup), base_cards(setup, number)
            if narrow and number % 2:
                data = (0.6 * data[20:250, 31:351]).astype(np.uint16)
                cards |= {"CRPIX1": cards["CRPIX1"] - 31, "CRPIX2": cards["CRPIX2"] - 20}
                cards |= {"INSTRUME": "Other camera", "BAYERPAT": "RGGB"}
            write(tmp_path / name / f"light_{number:03d}.fit", data, cards)
    assert base_cards(whole[0], 0)["BAYERPAT"] == "GRBG"
    one, two = (run(tmp_path / name, tmp_path / f"out_{name}") for name in ("one", "two"))
    assert two.report["frames_used"] == 12
    assert two.report["route"]["route"] == "direct"
    assert two.report["sky"]["model"]
    (mixed,) = (m["values"] for m in two.report["messages"] if m["key"] == "run_info_mixed")
    assert "NAXIS 400x300 (6), 320x230 (6)" in mixed["details"]
    alike, mixed_stars = one.stars(sky, min_frames=8), two.stars(sky, min_frames=8)
    assert len(mixed_stars["row"]) > 10
    scatter = []
    for found in (alike, mixed_stars):
        assert np.median(found["offset"]) < 0.1
        scale = np.nanmedian(found["ratio"], axis=1)[:, None]
        scatter.append(np.nanmedian(np.abs(found["ratio"] / scale - 1)))
    # A fifth of the light is not there.
    assert scatter[1] < 1.3 * scatter[0] < 0.02
    # The grid stays where it is in the sky: the mosaics differ by whole pixels at their borders.
    first = [round(two.header[f"CRPIX{axis}"] - one.header[f"CRPIX{axis}"]) for axis in (2, 1)]
    cut = [
        result.image[:, 30 + max(0, sign * first[0]) :, 30 + max(0, sign * first[1]) :][:, :220, :300]
        for result, sign in ((two, 1), (one, -1))
    ]
    cells = np.nanmedian((cut[0] - cut[1]).reshape(3, 11, 20, 15, 20), axis=(2, 4)).reshape(3, -1).T
    # Of tilt and bowl of the whole one field tells nothing.
    y, x = np.mgrid[:11, :15].reshape(2, -1)
    quadric = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
    cells = cells - quadric @ np.linalg.lstsq(quadric, cells, rcond=None)[0]
    assert np.quantile(np.abs(cells), 0.98) < 5.0
    assert cells.std(axis=0).max() < 2.0


def test_calibration_frames_are_not_stacked(sky, setups, tmp_path):
    raw = tmp_path / "raw"
    write_all(raw, sky, setups[:4])
    for kind in ("Dark Frame", "bias", "FLAT", "Master Dark"):
        write(raw / f"{kind}.fit", expose(sky, setups[4]), base_cards(setups[4], 5) | {"IMAGETYP": kind})
    result = run(raw, tmp_path / "out")
    assert result.report["frames_used"] == 4
    assert set(result.left_out.values()) == {"frame_not_light"}


def test_own_results_in_the_input_folder_are_not_stacked_again(sky, setups, tmp_path):
    """A forgetful user puts the output into the input folder, then calls it something else."""
    raw = tmp_path / "raw"
    write_all(raw, sky, setups[:3])
    first = run(raw, raw / "out", save_final_as_uint16=True, save_variance=True)
    again = run(raw, raw / "out")
    assert again.report["frames_found"] == 3
    shutil.move(first.folder, raw / "result of yesterday")
    third = run(raw, tmp_path / "elsewhere")
    assert third.report["frames_used"] == 3
    assert set(third.left_out.values()) == {"frame_other_geometry"}


def test_folder_without_frames(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("x")
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "raw", tmp_path / "out")
    assert error.value.key == "run_error_no_frames"
    assert (tmp_path / "out" / "run_report.json").is_file()


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_frames(sky, setups, tmp_path, n):
    write_all(tmp_path / "raw", sky, setups[:n])
    result = run(tmp_path / "raw", tmp_path / "out", save_variance=True)
    assert result.report["frames_used"] == n
    assert result.coverage.max() == n
    stars = result.stars(sky, min_frames=n)
    assert np.median(stars["offset"]) < 0.1
    variance = fits.getdata(result.outputs["variance"])
    # One frame cannot tell its own scatter.
    assert np.isfinite(variance).any() == (n == 2)


@pytest.mark.parametrize(
    "centre", [(0.02, 10.0), (359.99, -35.0), (77.0, 85.0), (200.0, 89.5), (10.0, -88.0)], ids=str
)
def test_across_the_seam_of_right_ascension_and_at_the_poles(tmp_path, centre):
    sky = field_sky(centre, size_deg=1.0)
    left, right = (pointings(centre, n=3, step_px=(step, 0), seed=s) for s, step in ((1, -140), (2, 140)))
    write_all(tmp_path / "raw", sky, [*left, *right])
    result = run(
        tmp_path / "raw", tmp_path / "out", cluster_panel_threshold=0.06, route="panels", cluster_min_frames=0
    )
    assert result.report["frames_used"] == 6
    assert len(result.report["tiles"]) == 2
    height, width = result.coverage.shape
    assert height < 480
    assert width < 780
    stars = result.stars(sky)
    assert stars["x"].size >= 8
    # Three frames each: stars this faint scatter by what the noise of sharp colour planes allows.
    assert np.median(stars["offset"]) < 0.07
    assert np.nanmedian(np.abs(stars["ratio"][1] / 0.9 - 1)) < 0.04
    plan_px = result.report["mosaic"]["width"] * result.report["mosaic"]["height"]
    assert plan_px == height * width


def test_turned_frames_fit_each_other(sky, tmp_path):
    """Frames of four nights: turned by 90, 180 and 37 degrees against each other."""
    setups = [
        pointings(n=2, rotation_deg=angle, seed=i)[k]
        for i, angle in enumerate((0, 90, 180, 37))
        for k in (0, 1)
    ]
    write_all(tmp_path / "raw", sky, setups)
    result = run(tmp_path / "raw", tmp_path / "out")
    assert result.report["frames_used"] == 8
    stars = result.stars(sky, min_frames=6)
    assert np.median(stars["offset"]) < 0.06
    split = run(
        tmp_path / "raw",
        tmp_path / "out",
        cluster_orientation_split_deg=20.0,
        route="panels",
        cluster_min_frames=0,
    )
    # Upside down is the same field: 0 and 180 degrees stay together.
    assert len(split.report["tiles"]) == 3


def test_stray_pointing_is_named_with_its_cost(sky, setups, tmp_path):
    write_all(tmp_path / "raw", sky, setups)
    far = (CENTRE[0] + 12.0, CENTRE[1] + 9.0)
    write_all(tmp_path / "raw", field_sky(far, seed=3), pointings(far, n=1), first=90)
    result = run(tmp_path / "raw", tmp_path / "out")
    assert result.left_out == {"light_090.fit": "frame_far_from_others"}
    assert max(result.coverage.shape) < 600
    values = next(m["values"] for m in result.report["messages"] if m["key"] == "canvas_outlier_left_out")
    assert values["example"] == "light_090.fit"
    assert values["cost_megapixels"] > 100
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "raw", tmp_path / "out", canvas_exclude_outliers=False, canvas_max_megapixels=100)
    assert error.value.key == "run_error_canvas_too_large"


def test_run_with_a_stray_pointing_ends_well_on_the_command_line(sky, setups, tmp_path, capsys, monkeypatch):
    """What a run says is shown by another process, which knows only what the queue can carry."""
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    write_all(tmp_path / "raw", sky, setups)
    far = (CENTRE[0] + 12.0, CENTRE[1] + 9.0)
    write_all(tmp_path / "raw", field_sky(far, seed=3), pointings(far, n=1), first=90)
    arguments = ["run", str(tmp_path / "raw"), str(tmp_path / "out"), "--gpu", "off", "--verbose"]
    assert run_zemosaic.main([*arguments, "--set", "num_processing_workers=1"]) == 0
    shown = capsys.readouterr()
    assert "light_090.fit" in shown.out + shown.err
    assert "Traceback" not in shown.err


@pytest.fixture(scope="module")
def real_field():
    """A full-width field of catalogue stars, for solving without a header WCS."""
    shape = (700, 500)
    centre = (83.0, 22.0)
    return centre, shape, field_catalogue(centre)


def field_catalogue(centre):
    from zemosaic_core.synthetic_sky import make_sky

    return make_sky(centre, 1.2, seed=4, stars_per_deg2=35, catalogue=catalogue_stars_near(*centre, 1.0))


@pytest.mark.parametrize("hint", ["degrees", "sexagesimal", "none_but_header_wcs_once"])
def test_position_from_hints_or_from_neighbours(real_field, tmp_path, hint):
    centre, shape, sky = real_field
    setups = pointings(centre, n=3, shape_hw=shape)
    for i, setup in enumerate(setups):
        cards = base_cards(setup, i, with_wcs=False)
        if hint == "sexagesimal":
            cards["RA"], cards["DEC"] = "05 32 00.0", "+22 00 00"
        if hint == "none_but_header_wcs_once":
            cards = base_cards(setup, i, with_wcs=i == 1) | {"RA": 0.0, "DEC": 0.0}
        write(tmp_path / "raw" / f"f{i}.fit", expose(sky, setup), cards)
    result = run(tmp_path / "raw", tmp_path / "out")
    assert result.report["frames_used"] == 3
    methods = sorted(frame["solution"]["method"] for frame in result.report["frames"])
    first = "header" if hint == "none_but_header_wcs_once" else "EMBEDDED"
    assert methods == sorted([first, "star_match", "star_match"])
    wcs = result.wcs
    ra, dec = wcs.all_pix2world(100, 100, 0)
    assert np.isfinite([ra, dec]).all()
    stars = result.stars(sky, min_frames=3, faintest=5000)
    assert np.median(stars["offset"]) < 0.3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RA": 83.0 / 15}, False),
        ({"FOCALLEN": 250 * 2.5}, False),
        ({"RA": 83.0 / 15, "FOCALLEN": None}, False),
        ({"RA": 0.0, "DEC": 0.0}, True),
    ],
    ids=["hours that nobody calls hours", "another scale", "both", "no place at all"],
)
def test_a_header_that_leads_nowhere_is_read_otherwise(real_field, tmp_path, wrong, said):
    """One frame is solved and the others are laid on it: the detour is made once."""
    centre, shape, sky = real_field
    for i, setup in enumerate(pointings(centre, n=3, shape_hw=shape)):
        cards = base_cards(setup, i, with_wcs=False) | wrong
        write(
            tmp_path / f"raw/f{i}.fit", expose(sky, setup), {k: v for k, v in cards.items() if v is not None}
        )
    result = run(tmp_path / "raw", tmp_path / "out", solver_method="EMBEDDED")
    assert result.left_out == {}
    methods = sorted(frame["solution"]["method"] for frame in result.report["frames"])
    assert methods == ["EMBEDDED", "star_match", "star_match"]
    searched = [m["values"] for m in result.report["messages"] if m["key"] == "solve_whole_sky"]
    # Four times the minute that a frame has.
    assert [values["minutes"] for values in searched] == [4] * said
    np.testing.assert_allclose(result.wcs.wcs.crval, centre, atol=0.2)


def test_headers_copied_from_elsewhere_are_believed_last(real_field, tmp_path):
    """All frames carry the WCS of one stack although they are dithered and turned; two that of another field."""
    centre, shape, sky = real_field
    setups = pointings(centre, n=6, shape_hw=shape, turn_deg=3.0)
    stack = tan_cards(*centre, rotation_deg=40.0, shape_hw=shape)
    for i, setup in enumerate(setups):
        place = {"CRVAL1": 210.8, "CRVAL2": 54.35} if i in (1, 4) else {}
        write(tmp_path / f"raw/f{i}.fit", expose(sky, setup), base_cards(setup, i) | stack | place)
    result = run(tmp_path / "raw", tmp_path / "out", solver_method="EMBEDDED")
    assert result.left_out == {}
    assert result.report["frames_used"] == 6
    stars = result.stars(sky, min_frames=6, faintest=5000)
    assert np.median(stars["offset"]) < 0.3


def test_nothing_at_all_is_unsolved_and_none_is_approximate(sky, setups, tmp_path):
    """Invented stars: no catalogue knows them, and the hint is 30 degrees off."""
    for i, setup in enumerate(setups[:3]):
        cards = base_cards(setup, i, with_wcs=False)
        write(tmp_path / "raw" / f"f{i}.fit", expose(sky, setup), cards)
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "raw", tmp_path / "out", solver_method="EMBEDDED", astrometry_timeout=5)
    assert error.value.key == "run_error_nothing_solved"
    result = run(tmp_path / "raw", tmp_path / "out", solver_method="NONE")
    assert result.report["frames_used"] == 3
    assert result.header["WCSAPPRX"] is True
    assert WCS(result.header).celestial.has_celestial
    scale = np.sqrt(abs(np.linalg.det(result.wcs.pixel_scale_matrix)))
    assert scale == pytest.approx(SCALE_DEG, rel=5e-3)
