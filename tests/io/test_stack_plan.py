"""Lists of frames as ZeAnalyser and ZeMosaic 4 write them: columns, paths of other computers, and bad lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import RunFailed
from zemosaic_io.headers import read_frame_info
from zemosaic_io.stack_plan import find_stack_plan, planned_infos, read_stack_plan

ANALYSER = "order,batch_id,mount,bortle,telescope,session_date,filter,exposure,file_path,ra,dec\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("a.fit", "b.fit", "c.fit", "deep/d.fit"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        fits.writeto(path, np.zeros((4, 4), np.uint16))
    return tmp_path


def planned(folder, text, name="stack_plan.csv", encoding="utf-8"):
    (folder / name).write_text(text, encoding=encoding)
    path = find_stack_plan(folder)
    assert path is not None
    return read_stack_plan(path)


def names(plan):
    return [frame.path.name for frame in plan.frames]


def test_a_list_of_zeanalyser(folder):
    lines = [
        "1,1,ALTZ,3,S50,2025-01-01,LP,10.0,a.fit,12:50:53.1,+41:07:13",
        f"2,2,ALTZ,3,S50,2025-01-02,LP,20,{folder / 'b.fit'},,",
        "3,1,ALTZ,3,S50,2025-01-01,IR,,gone.fit,,",
        "4,2,ALTZ,3,S50,2025-01-02,LP,20,b.fit,,",
    ]
    plan = planned(folder, ANALYSER + "\n".join(lines))
    assert names(plan) == ["a.fit", "b.fit"]
    assert plan.missing == ("gone.fit",)
    first = plan.frames[0]
    assert (first.batch, first.filter_name, first.exposure_s, first.weight) == ("1", "LP", 10.0, 1.0)
    assert (first.ra_deg, first.dec_deg) == pytest.approx((192.72125, 41.120278), abs=1e-5)
    assert [len(batch) for batch in plan.batches] == [1, 1]


def test_names_of_columns_delimiters_and_encodings(folder):
    plan = planned(
        folder,
        "Filename;Weight;Session;Band\n\nc.fit;0,5;Été;Hα\na.fit;0;Été;\n",
        "Stack_Plan.CSV",
        "utf-8-sig",
    )
    assert [(f.path.name, f.weight, f.batch, f.filter_name) for f in plan.frames] == [
        ("c.fit", 0.5, "Été", "Hα")
    ]
    assert plan.n_without_weight == 1
    latin = planned(folder, "file\tbatch\nb.fit\tÉté\n", encoding="cp1252")
    assert latin.frames[0].batch == "Été"


def test_paths_of_another_computer_and_lists_without_names_of_columns(folder):
    plan = planned(folder, "file_path,exposure\nD:\\ASTRO\\night\\d.fit,10\nD:\\ASTRO\\night\\none.fit,10\n")
    assert (names(plan), plan.n_by_name, plan.missing) == (["d.fit"], 1, ("D:\\ASTRO\\night\\none.fit",))
    bare = planned(folder, "10.0,a.fit\n10.0,deep\\d.fit\n")
    assert (names(bare), bare.n_by_name) == (["a.fit", "d.fit"], 0)
    fits.writeto(folder / "deep" / "a.fit", np.zeros((4, 4), np.uint16))
    assert planned(folder, "file\n/else/a.fit\nb.fit\n").missing == ("/else/a.fit",)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "stack_plan_empty"),
        ("file_path,batch\n", "stack_plan_empty"),
        ("order,batch\n1,2\n", "stack_plan_no_files_column"),
        ("file,weight\na.fit,heavy\n", "stack_plan_bad_number"),
        ("file,weight\na.fit,-1\n", "stack_plan_bad_number"),
        ("file,exposure\na.fit,inf\n", "stack_plan_bad_number"),
        ("file\nz.fit\n", "stack_plan_nothing_there"),
        ("file\0\n", "stack_plan_unreadable"),
    ],
)
def test_bad_lists_are_refused_in_one_sentence(folder, text, key):
    with pytest.raises(RunFailed) as caught:
        planned(folder, text)
    assert caught.value.key == key
    assert "stack_plan.csv" in str(caught.value)


def test_what_the_list_adds_to_headers(folder):
    plan = planned(folder, "file,filter,exposure,ra,dec\na.fit,OIII,12,10.5,-3\nb.fit,,,,\n")
    a, b = (read_frame_info(folder / name) for name in ("a.fit", "b.fit"))
    known = replace(b, exposure_s=5.0, filter_name="L")
    told, same = planned_infos(plan, [a, known])
    assert (told.filter_name, told.exposure_s, told.ra_deg, told.dec_deg) == ("OIII", 12.0, 10.5, -3.0)
    assert same == known
    (kept,) = planned_infos(plan, [replace(a, exposure_s=5.0, ra_deg=1.0, dec_deg=2.0)])
    assert (kept.exposure_s, kept.ra_deg) == (5.0, 1.0)
    assert find_stack_plan(folder / "deep") is None
