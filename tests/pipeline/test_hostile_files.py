"""Damaged, absurd, or no files at all: each is left out with its reason, the good frames become a mosaic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, expose, field_sky, pointings, run, write_all

from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_core.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.frame_boundary import TRACEBACK, result_or_skip

BLOCK, CARD = 2880, 80
SIP = {"CTYPE1": "'RA---TAN-SIP'", "CTYPE2": "'DEC--TAN-SIP'"}
# Headers of whole frames: the pixels are good, what they mean is known without these cards.
ABSURD_CARDS = {
    "clock_at_zero": {"DATE-OBS": "'0001-01-01T00:00:00'"},
    "clock_at_the_end": {"DATE-OBS": "'9999-12-31T23:59:59'", "SITELONG": "179.9"},
    "sip_nan": {**SIP, "A_ORDER": "2", "B_ORDER": "2", "A_2_0": "NaN"},
    "sip_one_sided": {**SIP, "A_ORDER": "2", "A_2_0": "1E-6"},
    "sip_order_text": {**SIP, "A_ORDER": "'x'", "B_ORDER": "2"},
    "sip_order_vast": {**SIP, "A_ORDER": "999999999", "B_ORDER": "999999999"},
    "sip_explodes": {**SIP, "A_ORDER": "2", "B_ORDER": "2", "A_2_0": "1E30", "B_0_2": "1E30"},
    "pole_nan": {"LONPOLE": "NaN"},
    "unit": {"CUNIT2": "'parsec'"},
    "radesys_bytes": {"RADESYS": "'J2000.0\xe9'"},
    "radesys_infinite": {"RADESYS": "Inf"},
    "pv_nan": {"CTYPE1": "'RA---TPV'", "CTYPE2": "'DEC--TPV'", "PV1_1": "NaN"},
    "two_projections": {"CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--SIN'"},
    "no_projection": {"CTYPE1": "'RA---XYZ'", "CTYPE2": "'DEC--XYZ'"},
    "cd_nan": {"CD1_1": "NaN"},
    "far_reference": {"CRPIX1": "1E300"},
    "vast_ra": {"CRVAL1": "1E300"},
    "rotation_infinite": {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None, "CDELT1": "6.6E-4",
                          "CDELT2": "6.6E-4", "CROTA2": "Inf"},
}  # fmt: skip


@pytest.fixture(scope="module")
def sky():
    return field_sky()


@pytest.fixture(scope="module")
def setups():
    return pointings(n=6)


def with_cards(path: Path, changes: dict[str, str | None]) -> None:
    """Change, add or (None) drop literal cards of a plain FITS file, as no library would let one."""
    content = path.read_bytes()
    end = (content.find(b"END     ") // BLOCK + 1) * BLOCK
    cards = [content[i : i + CARD] for i in range(0, end, CARD)]
    cards = [card for card in cards if card.strip() and not card.startswith(b"END     ")]
    cards = [card for card in cards if card[:8].decode("latin-1").rstrip() not in changes]
    cards += [f"{k:8}= {v}".encode("latin-1").ljust(CARD)[:CARD] for k, v in changes.items() if v is not None]
    header = b"".join(cards) + b"END".ljust(CARD)
    path.write_bytes(header.ljust(-(-len(header) // BLOCK) * BLOCK) + content[end:])


@pytest.mark.parametrize("processes", [1, 2])
def test_absurd_cards_cost_no_frame(sky, setups, tmp_path, processes):
    """The pixels and their neighbours say where these frames lie; one good header places them all."""
    raw = tmp_path / "raw"
    write_all(raw, sky, setups)
    odd = write_all(raw / "odd", sky, pointings(n=len(ABSURD_CARDS), seed=3), first=20)
    for path, (name, cards) in zip(odd, ABSURD_CARDS.items(), strict=True):
        with_cards(path, cards)
        path.rename(path.with_name(f"{name}.fit"))
    result = run(raw, tmp_path / "out", exclude_flagged_frames=False, num_processing_workers=processes)
    assert result.left_out == {}
    assert result.report["frames_used"] == len(setups) + len(ABSURD_CARDS)
    stars = result.stars(sky, min_frames=10)
    assert np.median(stars["offset"]) < 0.06


def flipped(path: Path, seed: int = 3) -> None:
    """Flip bits in the compressed pixels."""
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(len(content) // 2, len(content) - 3000, 50):
        content[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def packed(path: Path, data: np.ndarray, cards: dict, algorithm: str) -> Path:
    unit = fits.CompImageHDU(data, fits.Header(cards), compression_type=algorithm)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    return path


def units(*headers: dict[str, str]) -> bytes:
    content = b""
    for cards in headers:
        header = b"".join(f"{k:8}= {v}".encode().ljust(CARD) for k, v in cards.items()) + b"END".ljust(CARD)
        content += header.ljust(-(-len(header) // BLOCK) * BLOCK)
    return content


NO_DATA = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "0"}


def test_damaged_files_are_left_out_by_name(sky, setups, tmp_path):
    raw = tmp_path / "raw"
    good = write_all(raw, sky, setups)
    data, cards = expose(sky, pointings(n=7, seed=8)[6]), base_cards(setups[0], 7)
    flipped(packed(raw / "rice.fits.fz", data, cards, "RICE_1"))
    backwards = {"XTENSION": "'BINTABLE'", "BITPIX": "8", "NAXIS": "1", "NAXIS1": "-2880"}
    (raw / "backwards.fit").write_bytes(units(NO_DATA, backwards) + bytes(BLOCK))
    (raw / "minus_one_group.fit").write_bytes(units(NO_DATA, backwards | {"NAXIS1": "2880", "GCOUNT": "-1"}))
    (raw / "vast.fit").write_bytes(units(NO_DATA | {"NAXIS": "2", "NAXIS1": "9" * 18, "NAXIS2": "9" * 18}))
    (raw / "many.fit").write_bytes(
        units(NO_DATA, *[{"XTENSION": "'IMAGE'", "BITPIX": "8", "NAXIS": "0"}] * 500)
    )
    (raw / "endless.fit").write_bytes(
        good[0].read_bytes()[:BLOCK].replace(b"END     ", b"HISTORY ") + b"HISTORY x".ljust(CARD) * 400_000
    )
    result = run(raw, tmp_path / "out", exclude_flagged_frames=False, num_processing_workers=2)
    assert result.report["frames_used"] == 6
    assert result.left_out == {
        "rice.fits.fz": "frame_unreadable",
        "backwards.fit": "frame_bad_header",
        "minus_one_group.fit": "frame_bad_header",
        "vast.fit": "frame_truncated",
        "many.fit": "frame_no_image",
        "endless.fit": "frame_truncated",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
def test_what_is_no_file_is_never_opened(sky, setups, tmp_path):
    raw = tmp_path / "raw"
    write_all(raw, sky, setups)
    os.mkfifo(raw / "pipe.fit")
    (raw / "device.fit").symlink_to("/dev/zero")
    (raw / "loop.fit").symlink_to("loop.fit")
    (raw / "nowhere.fit").symlink_to("not there")
    (raw / "folder.fit").mkdir()
    result = run(raw, tmp_path / "out", exclude_flagged_frames=False)
    assert result.report["frames_used"] == 6
    assert result.left_out == {
        "pipe.fit": "frame_not_regular",
        "device.fit": "frame_not_regular",
        "loop.fit": "frame_unreadable",
        "nowhere.fit": "frame_unreadable",
    }


def test_the_boundary_of_a_frame(tmp_path):
    """What a frame does wrong is told as text; what ends the run passes."""

    class Local(Exception):
        """Cannot be pickled: it belongs to a function."""

    def fail(error: Exception) -> Callable[[], None]:
        def raise_it() -> None:
            raise error

        return raise_it

    skip = result_or_skip(tmp_path, fail(Local("decoder lost its way")))
    assert isinstance(skip, SkipItem)
    assert skip.key == "frame_unexpected"
    assert skip.values["path"] == str(tmp_path)
    assert skip.values["reason"] == "Local: decoder lost its way"
    assert "raise_it" in skip.values[TRACEBACK]
    assert result_or_skip(tmp_path, fail(MemoryError())).key == "frame_no_memory"
    own = SkipItem("frame_empty")
    assert result_or_skip(tmp_path, fail(own)) is own
    with pytest.raises(SaveFailed):
        result_or_skip(tmp_path, fail(SaveFailed("save_failed")))


def test_an_unexpected_error_is_named_in_report_and_log(sky, setups, tmp_path, monkeypatch, caplog):
    write_all(tmp_path / "raw", sky, setups)
    from zemosaic_pipeline import measure

    real = measure.begin_look

    def sometimes(info, *rest):
        if info.path.name == "light_003.fit":
            raise ZeroDivisionError("no sky at all")
        return real(info, *rest)

    monkeypatch.setattr(measure, "begin_look", sometimes)
    result = run(tmp_path / "raw", tmp_path / "out", exclude_flagged_frames=False)
    assert result.left_out == {"light_003.fit": "frame_unexpected"}
    values = result.report["left_out"][0]["values"]
    assert values == {"reason": "ZeroDivisionError: no sky at all"}
    assert "in sometimes" in caplog.text


GOOD = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 20.0, "CRPIX1": 200.5, "CRPIX2": 150.5,
    "CD1_1": -6.6e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 6.6e-4,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"CD1_1": 0.5, "CD2_2": 0.5},
        {"CRPIX1": 1e300},
        {"CTYPE1": "RA---ZZZ"},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1.0},
        {"CD1_1": "x"},
    ],
    ids=str,
)
def test_a_wcs_that_leads_nowhere_is_none(changes):
    ra, dec = build_frame_wcs(GOOD, (300, 400)).all_pix2world(199.5, 149.5, 0)
    assert (float(ra), float(dec)) == pytest.approx((150.0, 20.0))
    with pytest.raises(UnusableWcs):
        build_frame_wcs({**GOOD, **changes}, (300, 400))


@pytest.mark.parametrize("name", ["NAXIS", "ZNAXIS"])
def test_nobody_counts_to_a_number_of_axes_that_cannot_be(tmp_path, name):
    """In a unit before that with the image, as the second of two cards: astropy would count up to it, for ever."""
    path = tmp_path / "light.fits"
    units = [fits.PrimaryHDU(), fits.ImageHDU(), fits.CompImageHDU(np.zeros((300, 400), np.uint16))]
    fits.HDUList(units).writeto(path)
    content = bytearray(path.read_bytes())
    end = content.find(b"END     ", content.find(b"XTENSION"))
    content[end : end + 80] = f"{name:8}= {2**63 - 1:20}".ljust(80).encode()
    content[end + 80 : end + 160] = b"END".ljust(80)
    path.write_bytes(content)
    with pytest.raises(SkipItem) as caught:
        read_frame_info(path)
    assert caught.value.key == "frame_bad_header"
