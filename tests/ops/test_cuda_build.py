"""The CUDA sources compile wherever there is nvcc; an install builds them where a GPU could use them."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import compile_cuda
import pytest
import torch

from diverseevol_fast.cli import environment
from diverseevol_fast.ops import backends

ROOT = Path(__file__).resolve().parents[2]
with_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or not (ROOT / "csrc").is_dir(),
    reason="nvcc is not on PATH: the CUDA sources cannot be compiled",
)
LEFT_OUT = "no NVIDIA driver answers here; DEF_CUDA=on builds them anyway"


@pytest.mark.slow
@with_nvcc
def test_every_source_compiles_for_gpus_without_spilling():
    """With nvcc, warnings as errors, for sm_80, 89, 90a and 100; needs no GPU."""
    program = ROOT / "tests" / "compile_cuda.py"
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


@with_nvcc
@pytest.mark.parametrize(
    ("code", "warning"),
    [
        ("__global__ void kernel() { int unused; }", "unused"),
        ("bool on_the_host(int a, unsigned b) { return a < b; }", "-Werror=sign-compare"),
    ],
)
def test_a_warning_is_an_error_on_the_gpu_and_on_the_host(code, warning, tmp_path):
    source = tmp_path / "warns.cu"
    source.write_text(code)
    with pytest.raises(RuntimeError, match=rf"warns.cu for 90a: [\s\S]*{warning}"):
        compile_cuda.compiled(source, "90a")


@with_nvcc
@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU an install leaves the CUDA kernels out")
def test_this_build_has_the_kernels_where_there_are_nvcc_and_a_gpu():
    """A failed build is no reason for an install to fail, but it is one for the tests to."""
    assert backends.cuda_unavailable() is None


@pytest.fixture
def install(tmp_path):
    """install(driver, DEF_CUDA): what setup.py asks of CMake, which is a stand-in, and its note on CUDA."""
    if shutil.which("c++") is None or not (ROOT / "setup.py").is_file():
        pytest.skip("needs a C++ compiler and the checkout")
    asked = tmp_path / "asked"
    (tmp_path / "cmake").write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    (tmp_path / "cmake").chmod(0o755)

    def run(driver, cuda):
        if driver:
            status, gpus = driver
            code = f'extern "C" int cuInit(unsigned) {{ return {status}; }}\n'
            code += f'extern "C" int cuDeviceGetCount(int* count) {{ *count = {gpus}; return 0; }}\n'
            command = ["c++", "-shared", "-fPIC", "-xc++", "-", "-o", tmp_path / "libcuda.so.1"]
            subprocess.run(command, input=code, text=True, check=True)
        variables = {name: value for name, value in os.environ.items() if name != "DEF_CUDA"}
        variables |= {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(tmp_path),
            **({"DEF_CUDA": cuda} if cuda else {}),
        }
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib"]
        done = subprocess.run(
            [*command, "--build-temp", tmp_path / "build"],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        note = tmp_path / "lib" / "diverseevol_fast" / "cuda_build.txt"
        (given,) = [word for word in asked.read_text().split() if word.startswith("-DDEF_CUDA=")]
        return given.removeprefix("-DDEF_CUDA="), note.read_text().strip() if note.is_file() else None

    return run


NO_DEVICE = (100, 0)  # CUDA_ERROR_NO_DEVICE, as a driver without a GPU says


@pytest.mark.parametrize(
    ("driver", "cuda", "expected"),
    [
        ((0, 1), None, ("auto", None)),
        ((0, 1), "auto", ("auto", None)),
        ((0, 1), "off", ("off", None)),
        ((0, 0), None, ("off", LEFT_OUT)),
        (NO_DEVICE, None, ("off", LEFT_OUT)),
        (NO_DEVICE, "auto", ("off", LEFT_OUT)),
        (NO_DEVICE, "on", ("on", None)),
    ],
)
def test_cuda_is_built_where_a_gpu_answers_or_where_it_is_asked_for(driver, cuda, expected, install):
    assert install(driver, cuda) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_what_an_install_without_a_driver_left_out_is_said(install, tmp_path, monkeypatch):
    assert install(None, None) == ("off", LEFT_OUT)
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "lib" / "diverseevol_fast" / "ops" / "backends.py"))
    monkeypatch.setattr(backends, "native_unavailable", lambda: None)
    monkeypatch.setitem(sys.modules, "diverseevol_fast._native", types.SimpleNamespace(cuda_architectures=""))
    backends.cuda_unavailable.cache_clear()
    try:
        assert backends.cuda_unavailable() == f"not built at install time: {LEFT_OUT}"
        assert f"  cuda, cuda_general: not built at install time: {LEFT_OUT}" in environment._unusable_lines(
            environment._unusable(["cpu"])
        )
    finally:
        backends.cuda_unavailable.cache_clear()
