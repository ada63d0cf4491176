from __future__ import annotations

import pytest

from zemosaic_core.errors import SkipItem
from zemosaic_io.headers import read_frame_info
from zemosaic_io.light_frames import refuse_other_than_light


@pytest.fixture
def reason(write_cfa, tmp_path):
    """Why the file at a path below the folder searched, with such an IMAGETYP, is refused; None when it is used."""

    def judge(path: str, image_type: str | None = None, **cards) -> str | None:
        source, _ = write_cfa(**({"IMAGETYP": image_type} if image_type else {}), **cards)
        target = tmp_path / "My darks and flats" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        try:
            refuse_other_than_light(read_frame_info(target), tmp_path / "My darks and flats")
        except SkipItem as skip:
            return skip.key if skip.values["path"] == str(target) else "another path"
        return None

    return judge


@pytest.mark.parametrize(
    "kind", ["Dark Frame", "bias", "FLAT", "Master Dark", "MASTERFLAT", "DARKFLAT", "zero"]
)
def test_header_says_what_it_is(reason, kind):
    assert reason("M 31.fit", kind) == "frame_not_light"


def test_other_words_for_imagetyp(reason):
    assert reason("a.fit", FRAME="Dark") == "frame_not_light"
    assert reason("b.fit", FRAMETYP="Flat") == "frame_not_light"


@pytest.mark.parametrize(
    "path",
    [
        "darks/0001.fit",
        "Dark/0001.fit",
        "night 1/M31 darks/0001.fit",
        "DWARF_DARK/tele_exp_10_gain_60_bin_1/raw_10s_60_0001_20C.fits",
        "CALI_FRAME/flat/cam_0/x.fits",
        "CALI_FRAME/bias/cam_0/y.fits",
        "masterDarks/0001.fit",
        "flats_2025-03-26/0001.fit",
        "dark 30s gain 80 -10C/0001.fit",
        "Dark_300sec/0001.fit",
        "Thumbnails/M 31.fit",
    ],
)
def test_folder_says_what_it_is(reason, path):
    assert reason(path) == "frame_not_light_folder"
    if "humb" not in path:
        assert reason("again/" + path, "Light") is None


@pytest.mark.parametrize(
    "name",
    [
        "dark_0001.fit",
        "Dark_30s_Bin1_gain80_20250326-212046_-10.0C_0007.fit",
        "master_flat.fits",
        "MasterBias_ISO800.fit",
        "flat_gain_2_bin_1.fits",
        "bias_gain_2_bin_1.fits",
        "BIAS-001.fits",
        "Light_M 31_10.0s_IRCUT_20250326-212046_thn.fit",
    ],
)
def test_name_says_what_it_is(reason, name):
    assert reason(name) == "frame_not_light_name"


@pytest.mark.parametrize(
    "path",
    [
        "Dark Horse Nebula/Light_0001.fit",
        "Dark Horse Nebula/Dark Horse Nebula_0001.fit",
        "Dark Doodad/0001.fit",
        "Barnard 33 dark nebula/0001.fit",
        "Flatiron/0001.fit",
        "Flat Top site/M31_0001.fit",
        "Zeropoint/Light_M 31_0001.fit",
        "dark sky site/raw/Light_M_31_10.0s_IRCUT_20250326-212046.fit",
        "M 94_10s60_Astro_0001_16C.fits",
        "DWARF_RAW_TELE_M 94_EXP_10_GAIN_60_2025-03-26/failed_M 94_10s60_0001.fits",
        "lights/0001.fit",
        "2025-10-18/0001.fit",
        "The Thumbprint Galaxy/0001.fit",
        "0001.fit",
    ],
)
def test_objects_and_places_are_not_taken_for_it(reason, path):
    assert reason(path) is None


def test_the_folder_that_was_searched_says_nothing(write_cfa, tmp_path):
    folder = tmp_path / "darks"
    folder.mkdir()
    target = folder / "M 31.fit"
    write_cfa()[0].rename(target)
    refuse_other_than_light(read_frame_info(target), folder)
    refuse_other_than_light(read_frame_info(target))
    with pytest.raises(SkipItem):
        refuse_other_than_light(read_frame_info(target), tmp_path)
