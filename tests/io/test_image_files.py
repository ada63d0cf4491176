"""Pictures that are read whole: what is told of files that are none."""

from __future__ import annotations

import pytest

from zemosaic_core.errors import SkipItem
from zemosaic_io.image_files import read_image_file


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b'{"no": "picture"}', "frame_not_fits"),
        (b"", "frame_not_fits"),
        (b"SIMPLE  =                    T", "frame_unreadable"),
        (b"\x1f\x8b broken", "frame_unreadable"),
    ],
)
def test_a_file_of_another_kind_is_told_as_that(tmp_path, content, key):
    (tmp_path / "notes.fits").write_bytes(content)
    with pytest.raises(SkipItem) as raised:
        read_image_file(tmp_path / "notes.fits")
    assert raised.value.key == key


def test_a_file_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(SkipItem) as raised:
        read_image_file(tmp_path / "a.fits")
    assert raised.value.key == "frame_unreadable"
