"""Which backend runs an op: the tensor's device and what is installed decide, `backend=` or the environment forces.

`reference` always works; `native` is the C++ extension on the CPU, `cuda` its CUDA kernels; `triton` needs a CUDA
tensor, or the interpreter (TRITON_INTERPRET=1); `torch` is torch in float32, for what has no C++ on the CPU.
On a GPU the automatic choice follows the record of measurements (measured.py): without a passing line for its present
sources an op of a backend is not chosen, and a CUDA tensor takes `reference`, which runs on its device.
"""

import contextlib
import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import measured

NAMES = ("native", "cuda", "triton", "torch", "reference")
COMPILED = ("native", "cuda", "triton", "reference")
OPS = {
    "masked_mean_pool": COMPILED,
    "min_sqdist": COMPILED,
    "pool_min_sqdist": COMPILED,
    "pick_block": COMPILED,
    "update_argmax": COMPILED,
    "logit_stats": ("cuda", "triton", "torch", "reference"),
}
MODULES = {"cuda": "native", "torch": "torch_tiles"}  # others are named as the backend
DTYPES = dict.fromkeys(OPS, ("float32", "bfloat16", "float16")) | {"pick_block": ("float32",)}


@cache
def native_unavailable() -> str | None:
    """Why the C++ extension cannot be used, or None when it can."""
    try:
        importlib.import_module("diverseevol_fast._native")
    except ImportError as error:
        note = Path(__file__).parent.parent / "native_build.txt"
        if note.is_file():
            return f"not built at install time: {note.read_text(encoding='utf-8').strip()}"
        return str(error)
    return None


@cache
def cuda_unavailable() -> str | None:
    """Why the CUDA C++ kernels cannot be used, or None when this build has them."""
    if native_unavailable() is not None:
        return native_unavailable()
    if importlib.import_module("diverseevol_fast._native").cuda_architectures:
        return None
    note = Path(__file__).parent.parent / "cuda_build.txt"
    reason = note.read_text(encoding="utf-8").strip() if note.is_file() else "no nvcc was found, or DEF_CUDA=off"
    return f"not built at install time: {reason}"


@cache
def triton_unavailable() -> str | None:
    """Why Triton cannot be imported, or None when it can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"{error}; pip install triton"
    return None


def unusable(name: str, device_type: str) -> str | None:
    """Why backend `name` cannot serve a tensor on `device_type`, or None when it can."""
    if name == "native":
        return native_unavailable() or (None if device_type == "cpu" else f"runs on the CPU, not on {device_type}")
    if name == "cuda":
        return cuda_unavailable() or (None if device_type == "cuda" else f"runs on a GPU, not on {device_type}")
    if name == "triton":
        on_device = device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        return triton_unavailable() or (None if on_device else "needs a CUDA tensor, or TRITON_INTERPRET=1")
    return None


def choose(
    device: str | torch.device, backend: str = "auto", op: str = "masked_mean_pool", dtype: torch.dtype | None = None
) -> str:
    """The backend of `op` for a tensor on `device`; `backend` other than "auto" wins over DIVERSEEVOL_BACKEND.

    The automatic choice is one op's. What calls several ops hands "auto" on to each of them, never the name that one op
    was given: on a GPU another op of that backend may have no passing line. Results do not depend on it.

    Args:
        device: the tensor's device, or its type; "cuda" is the current one.
        backend: "auto", or a name in NAMES.
        op: a name in OPS.
        dtype: the tensor's; None: the choice must hold for every dtype that the op takes.

    Raises:
        ValueError: an unknown name, or one that cannot serve; the message gives every backend's reason. Or, on a GPU,
            a record of measurements that cannot be read.
    """
    return explain(device, backend, op, dtype).backend


def explain(device: str | torch.device, backend: str, op: str, dtype: torch.dtype | None = None) -> measured.Choice:
    """What `choose` chooses, and why. Arguments and errors are those of choose."""
    device = torch.device(device)
    source = "backend"
    if backend == "auto":
        source, backend = "DIVERSEEVOL_BACKEND", os.environ.get("DIVERSEEVOL_BACKEND", "auto")
    if backend == "auto":
        return _automatic(device, op, dtype)
    if backend not in NAMES:
        raise ValueError(f"{source}: expected 'auto' or one of {NAMES}, got {backend!r}")
    if backend not in OPS[op]:
        raise ValueError(f"{source}={backend!r}: {op} has {' and '.join(OPS[op])}")
    if unusable(backend, device.type) is not None:
        reasons = "; ".join(f"{name}: {unusable(name, device.type) or 'usable'}" for name in OPS[op])
        raise ValueError(f"{source}={backend!r} cannot serve a tensor on {device.type}. {reasons}")
    return measured.Choice(backend, f"{source} says so")


def _automatic(device: torch.device, op: str, dtype: torch.dtype | None) -> measured.Choice:
    if device.type == "cuda":
        dtypes = DTYPES[op] if dtype is None else (str(dtype).removeprefix("torch."),)
        return _measured_best(torch.cuda.current_device() if device.index is None else device.index, op, dtypes)
    if device.type == "cpu" and "native" in OPS[op] and native_unavailable() is None:
        return measured.Choice("native", "C++ on the CPU")
    if device.type == "cpu" and "torch" in OPS[op]:
        return measured.Choice("torch", "float32 on the CPU")
    return measured.Choice("reference", "torch in float64; the C++ extension has no kernel for it here")


@cache
def _measured_best(gpu: int, op: str, dtypes: tuple[str, ...]) -> measured.Choice:
    usable = [name for name in OPS[op] if name in measured.SOURCES and unusable(name, "cuda") is None]
    name, capability = torch.cuda.get_device_name(gpu), torch.cuda.get_device_capability(gpu)
    return measured.best(measured.record(), op, dtypes, name, capability, usable)


def run(name: str, op: str, device: torch.device, *arguments: Any) -> Any:
    """Call `op` of backend `name`, imported on first use; the GPU is the current one, on which Triton launches."""
    home = f"triton_ops.{op}" if name == "triton" else f"ops.{MODULES.get(name, name)}"
    function = getattr(importlib.import_module(f"diverseevol_fast.{home}"), op)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return function(*arguments)
