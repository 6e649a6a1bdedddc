"""The CUDA sources compile, and this build has them, wherever there is nvcc."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_source_compiles_for_gpus_without_spilling():
    """With nvcc, warnings as errors, for sm_80, 89, 90a and 100; needs no GPU."""
    if shutil.which("nvcc") is None or not (ROOT / "csrc").is_dir():
        pytest.skip("nvcc is not on PATH: the CUDA sources cannot be compiled")
    program = Path(__file__).with_name("compile_cuda.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["source"], line["sm"]) for line in lines} == {
        (source.name, capability)
        for source in (ROOT / "csrc" / "cuda").glob("*.cu")
        for capability in ("80", "89", "90a", "100")
        if source.name != "min_sqdist_hopper.cu" or capability == "90a"
    }
    assert [line for line in lines if line["spilled"]] == []


def test_this_build_has_the_kernels_where_there_is_nvcc():
    """A failed build is no reason for an install to fail, but it is one for the tests to."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    done = subprocess.run(
        [sys.executable, "-c", "from diverseevol_fast.ops import backends; print(backends.cuda_unavailable())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "None"
