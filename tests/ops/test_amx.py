"""The AMX kernel, where no CPU with AMX is at hand: on an emulation of its instructions."""

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SOURCES = TESTS.parent / "csrc"


def test_products_of_the_tiles(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("needs a C++ compiler and csrc/")
    program = tmp_path / "amx_emulated"
    built = subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-O1",
            "-mamx-tile",
            "-mamx-bf16",
            "-fopenmp",
            "-I",
            str(SOURCES),
            str(TESTS / "support" / "amx_emulated.cpp"),
            "-o",
            str(program),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized command-line option" in built.stderr:
        pytest.skip("the compiler does not know AMX")
    assert built.returncode == 0, built.stderr
    largest = float(subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout)
    assert 0 < largest < 0.02  # elements are cut to 8 bits
