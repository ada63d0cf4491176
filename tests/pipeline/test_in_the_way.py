"""What stands where a result is to be is told before the work, not after it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_frames import field_sky, pointings, run, write_all

from zemosaic_core.errors import SaveFailed
from zemosaic_io.result_set import ResultSet
from zemosaic_pipeline.phase6_export import refuse_what_is_in_the_way


def refused(folder: Path, *, n_found: int = 8, **options: bool) -> str:
    wanted = SimpleNamespace(**({"zoom": False, "hips": False} | options))
    context = SimpleNamespace(output_dir=folder, results=ResultSet(folder))
    try:
        refuse_what_is_in_the_way(n_found, cast(Any, wanted), cast(Any, context))
    except SaveFailed as error:
        return Path(str(error.values["path"])).name
    return ""


@pytest.mark.parametrize(
    "name",
    [
        "zemosaic_MT1_R8.fits",
        "zemosaic_MT12_R3_coverage.fits",
        "zemosaic_MT1_R8_LP_preview.png",
        "zemosaic_MT1_R8_viewer.tif",
        "zemosaic_MT2_R8.xisf",
    ],
)
def test_a_folder_by_the_name_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    assert refused(tmp_path) == name


@pytest.mark.parametrize(
    "name",
    ["zemosaic_MT1_R8", "zemosaic_MT1_R8_old", "zemosaic_MT1_R80.fits", "my.fits", "zemosaic_MT1_R8_zoom"],
)
def test_other_folders_stand_in_nobodys_way(tmp_path, name):
    (tmp_path / name).mkdir()
    assert refused(tmp_path) == ""


def test_folders_of_tiles_are_refused_where_they_are_wanted(tmp_path):
    (tmp_path / "zemosaic_MT1_R8_zoom").mkdir()
    (tmp_path / "zemosaic_MT1_R8_hips").write_text("mine")
    assert refused(tmp_path, hips=True) == "zemosaic_MT1_R8_hips"
    assert refused(tmp_path, zoom=True) == "zemosaic_MT1_R8_zoom"
    (tmp_path / "zemosaic_MT1_R8_zoom" / ".made_by_zemosaic").touch()
    assert refused(tmp_path, zoom=True) == ""


def test_a_run_says_so_before_it_measures(tmp_path):
    write_all(tmp_path / "raw", field_sky(), pointings(n=3))
    (tmp_path / "out" / "zemosaic_MT1_R3.fits").mkdir(parents=True)
    with pytest.raises(SaveFailed) as error:
        run(tmp_path / "raw", tmp_path / "out", num_processing_workers=1)
    assert "it is a folder" in str(error.value)
    assert not list((tmp_path / "out" / ".zemosaic_state").glob("frames/*.npz"))
    assert (tmp_path / "out" / "zemosaic_MT1_R3.fits").is_dir()
