"""Helpers of the GPU tests: the device of their tensors, and the CUDA kernels on an emulated GPU without one."""

import contextlib
import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import filelock
import pytest
import torch
from support.problems import DTYPES as DTYPES
from support.problems import make

from diverseevol_fast.ops import backends, native

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def rows(kind: str, n: int, d: int, seed: int, offset: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """problems.make on DEVICE."""
    return torch.from_numpy(make(kind, n, d, seed, scale, offset)).to(DEVICE)


def infinite(n: int) -> torch.Tensor:
    """Bounds before any screen."""
    return torch.full((n,), float("inf"), device=DEVICE)


@contextlib.contextmanager
def cuda_works(*, build: bool = True) -> Iterator[None]:
    """backend="cuda" works on DEVICE: on a GPU for real, else tests/support/cuda_emulated runs the threads.

    build: False where another process has built the emulated GPU.
    """
    if ON_GPU:
        if backends.cuda_unavailable():
            pytest.skip(backends.cuda_unavailable())
        yield
        return
    if build:
        _build_emulated()
    module, usable = _emulated_module(), backends.unusable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_native", module)
        patch.setattr(native, "execution_target", _emulated_target(module))
        patch.setattr(backends, "unusable", lambda name, *more: None if name == "cuda" else usable(name, *more))
        yield


EMULATED = ROOT / "build" / "emulated"


@cache
def _build_emulated() -> None:
    """Compile the extension with csrc/cuda on an emulated GPU."""
    import pybind11

    if shutil.which("c++") is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler and csrc/")
    tools = Path(sys.executable).parent
    commands = [
        [
            tools / "cmake",
            "-S",
            ROOT,
            "-B",
            EMULATED,
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DDEF_CUDA=emulated",
            f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        [tools / "cmake", "--build", EMULATED],
    ]
    EMULATED.parent.mkdir(exist_ok=True)
    with filelock.FileLock(EMULATED.with_suffix(".lock")):  # several test processes build it
        for command in commands:
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@cache
def _emulated_module():
    (library,) = EMULATED.glob("_native*.so")
    loader = importlib.machinery.ExtensionFileLoader("_native", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_native", loader))
    loader.exec_module(module)
    return module


def _emulated_target(module):
    """native.execution_target for the emulated GPU; every byte of its scratch memory is 255, NaN in each dtype."""
    buffers = []

    def allocate(count: int) -> int:
        buffers.append(torch.full((count + 256,), 0xFF, dtype=torch.uint8))
        return buffers[-1].data_ptr() + -buffers[-1].data_ptr() % 256

    return lambda device: module.gpu_target(device=0, stream=0, allocate=allocate)


def assert_same_products(got: torch.Tensor, expected: torch.Tensor, backend: str) -> None:
    """The same bits; Triton's interpreter multiplies in numpy, whose last bits depend on a row's position in a tile."""
    if backend == "triton" and not ON_GPU:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    else:
        assert torch.equal(got, expected)
