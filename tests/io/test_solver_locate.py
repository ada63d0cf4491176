from __future__ import annotations

import pytest
from solver_fakes import write_program

from zemosaic_io.solvers.locate import (
    find_astap,
    find_astap_data,
    find_index_folders,
    find_solve_field,
    has_astap_database,
)


@pytest.fixture
def astap(tmp_path):
    folder = tmp_path / "astap folder"
    folder.mkdir()
    write_program(folder / "astap", "")
    return write_program(folder / "astap_cli", "")


def test_configured_program_or_folder(astap):
    assert find_astap(str(astap), {}) == astap
    assert find_astap(str(astap.parent), {}) == astap
    assert find_astap(str(astap.parent / "astap"), {}).name == "astap"


def test_environment_in_order(astap, tmp_path):
    other = write_program(tmp_path / "astap", "")
    environment = {"ASTAP_EXE": str(tmp_path / "missing"), "ASTAP_BIN": str(other), "ASTAP_PATH": str(astap)}
    assert find_astap("", environment) == other
    assert find_astap(str(astap), environment) == astap


def test_file_that_is_no_program_is_not_taken(tmp_path):
    (tmp_path / "astap").write_text("")
    found = find_astap(str(tmp_path / "astap"), {"HOME": str(tmp_path), "PATH": ""})
    assert found is None or found.parent != tmp_path


def test_database_beside_the_program(astap, tmp_path):
    assert find_astap_data("", astap, {"HOME": str(tmp_path)}) is None or not has_astap_database(astap.parent)
    data = astap.parent / "data"
    data.mkdir()
    (data / "d05_0101.1476").touch()
    assert find_astap_data("", astap, {"HOME": str(tmp_path)}) == data
    stated = tmp_path / "stated"
    stated.mkdir()
    (stated / "h18_0101.290").touch()
    assert find_astap_data("", astap, {"ASTAP_STAR_DB": str(stated)}) == stated
    assert find_astap_data(str(data), astap, {"ASTAP_STAR_DB": str(stated)}) == data


def test_solve_field_and_its_index_files(tmp_path):
    program = write_program(tmp_path / "solve-field", "")
    assert find_solve_field(str(program), {}) == program
    assert find_solve_field(str(tmp_path), {}) == program
    assert find_solve_field("", {"PATH": str(tmp_path)}) == program
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.mkdir()
    empty.mkdir()
    (good / "index-4107.fits").touch()
    config = tmp_path / "a.cfg"
    config.write_text(f"# add_path /no\ninparallel\nadd_path {empty}\nadd_path {good}\nautoindex\n")
    assert find_index_folders(config, program) == [good]
    config.write_text(f"index {good}/index-4107.fits\n")
    assert find_index_folders(config, program) == [good]
    assert find_index_folders(tmp_path / "missing.cfg", program) == []
