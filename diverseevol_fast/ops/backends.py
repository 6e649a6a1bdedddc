"""Which backend runs an op: the tensor's device and what is installed decide, `backend=` or the environment forces.

`reference` always works; `native` is the C++ extension on the CPU, `cuda` its CUDA kernels, `cuda_general` those of
them that run on every GPU; `triton` needs a CUDA tensor, or the interpreter (TRITON_INTERPRET=1); `torch` is torch in
float32, for ops without C++ on the CPU. On a GPU the automatic choice is the first in the order of preference
(kernels.py) whose kernels have passed their self-check on that GPU (self_check.py).
"""

import contextlib
import importlib
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from .._common.dtypes import dtype_name
from . import kernels, self_check

NAMES = ("native", "cuda", "cuda_general", "triton", "torch", "reference")
COMPILED = ("native", "cuda", "triton", "reference")
OPS = {
    "masked_mean_pool": COMPILED,
    "min_sqdist": ("native", "cuda", "cuda_general", "triton", "reference"),
    "pool_min_sqdist": COMPILED,
    "pick_block": COMPILED,
    "update_argmax": COMPILED,
    "logit_stats": ("cuda", "triton", "torch", "reference"),
}
MODULES = {
    "cuda": "native",
    "cuda_general": "native",
    "torch": "torch_tiles",
}  # other backends: a module of the same name


@dataclass(frozen=True)
class Choice:
    """A backend, and why it was chosen."""

    backend: str
    reason: str


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
    except ModuleNotFoundError as error:
        return "triton is not installed: pip install triton" if error.name == "triton" else f"triton: {error}"
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return None


def unusable(name: str, device_type: str) -> str | None:
    """Why backend `name` cannot serve a tensor on `device_type`, or None when it can."""
    if name == "native":
        return native_unavailable() or (None if device_type == "cpu" else f"runs on the CPU, not on {device_type}")
    if name in ("cuda", "cuda_general"):
        return cuda_unavailable() or (None if device_type == "cuda" else f"runs on a GPU, not on {device_type}")
    if name == "triton":
        on_device = device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        return triton_unavailable() or (None if on_device else "needs a CUDA tensor, or TRITON_INTERPRET=1")
    return None


def choose(
    device: str | torch.device, backend: str = "auto", op: str = "masked_mean_pool", dtype: torch.dtype | None = None
) -> str:
    """The backend of `op` for a tensor on `device`; `backend` other than "auto" wins over DIVERSEEVOL_BACKEND.

    The automatic choice is that of one op. A caller of several ops passes "auto" to each of them, never the choice of
    another op: on a GPU, the same backend may have failed its self-check for this one. Results do not depend on it.

    Args:
        device: the tensor's device, or its type; "cuda" is the current one.
        backend: "auto", or a name in NAMES.
        op: a name in OPS.
        dtype: the tensor's; None: the choice must hold for every dtype that the op takes.

    Raises:
        ValueError: an unknown name, or one that cannot serve; the message gives every backend's reason.
    """
    return explain(device, backend, op, dtype).backend


def explain(device: str | torch.device, backend: str, op: str, dtype: torch.dtype | None = None) -> Choice:
    """What `choose` chooses, and why. Arguments and errors are those of choose."""
    device = torch.device(device)
    source = "backend"
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected 'auto' or one of {NAMES}, got {type(backend).__name__}")
    if backend == "auto":
        source, backend = "DIVERSEEVOL_BACKEND", os.environ.get("DIVERSEEVOL_BACKEND", "auto")
    if backend == "auto":
        return _automatic(device, op, dtype)
    if backend not in NAMES:
        raise ValueError(f"{source}: expected 'auto' or one of {NAMES}, got {backend[:80]!r}")
    if backend not in OPS[op]:
        raise ValueError(f"{source}={backend!r}: {op} has {' and '.join(OPS[op])}")
    if unusable(backend, device.type) is not None:
        reasons = "; ".join(f"{name}: {unusable(name, device.type) or 'usable'}" for name in OPS[op])
        raise ValueError(f"{source}={backend!r} cannot serve a tensor on {device.type}. {reasons}")
    return Choice(backend, f"{source} says so")


def _automatic(device: torch.device, op: str, dtype: torch.dtype | None) -> Choice:
    if device.type == "cuda":
        dtypes = kernels.OP_DTYPES[op] if dtype is None else (dtype_name(dtype),)
        return _first_that_passed(torch.cuda.current_device() if device.index is None else device.index, op, dtypes)
    if device.type == "cpu" and "native" in OPS[op] and native_unavailable() is None:
        return Choice("native", "C++ on the CPU")
    if device.type == "cpu" and "torch" in OPS[op]:
        return Choice("torch", "float32 on the CPU")
    return Choice("reference", "torch in float64; the C++ extension has no kernel for it here")


def launchers() -> tuple[str, ...]:
    """The backends whose GPU kernels can run on this machine."""
    return tuple(name for name in kernels.LAUNCHERS if unusable(name, "cuda") is None)


@cache
def _first_that_passed(gpu: int, op: str, dtypes: tuple[str, ...]) -> Choice:
    capability = torch.cuda.get_device_capability(gpu)
    if capability < kernels.OLDEST_CAPABILITY:
        here, oldest = (".".join(map(str, each)) for each in (capability, kernels.OLDEST_CAPABILITY))
        return Choice("reference", f"this GPU has compute capability {here}; the kernels need {oldest} or later")
    verdicts = self_check.verdicts(gpu, launchers())
    passed_over = []
    for backend in kernels.preference(op, dtypes[0], capability):
        if backend not in OPS[op]:
            continue
        reason = unusable(backend, "cuda") or _failure(verdicts, backend, op, dtypes, capability)
        if reason is None:
            return Choice(backend, "; ".join(["passed its self-check on this GPU", *passed_over]))
        passed_over.append(f"{backend}: {reason}")
    return Choice("reference", "; ".join(passed_over))


def _failure(
    verdicts: dict[kernels.Kernel, self_check.Verdict],
    backend: str,
    op: str,
    dtypes: tuple[str, ...],
    capability: tuple[int, int],
) -> str | None:
    """Why the first kernel of a backend that did not pass failed, or None when all passed."""
    for dtype in dtypes:
        for kernel in kernels.kernels_of(backend, op, dtype, capability):
            if not verdicts[kernel].passed:
                return f"{kernel.name} {dtype}: {verdicts[kernel].reason}"
    return None


def run(name: str, op: str, device: torch.device, *arguments: Any) -> Any:
    """Call `op` of backend `name`, imported on first use; the GPU is the current one, on which Triton launches."""
    home = f"triton_ops.{op}" if name == "triton" else f"ops.{MODULES.get(name, name)}"
    function = getattr(importlib.import_module(f"diverseevol_fast.{home}"), op)
    if name == "cuda_general":
        function = partial(function, general=True)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return function(*arguments)
