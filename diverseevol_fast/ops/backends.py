"""Which backend runs an op: the tensor's device and what is installed decide, `backend=` or the environment forces.

`reference` always works; `native` is the C++ extension on the CPU; `triton` needs a CUDA tensor, or the
interpreter (TRITON_INTERPRET=1). A Triton op becomes the automatic choice on a GPU once a recorded device
measurement of it exists; none does yet, so a GPU tensor takes `reference`, which runs on its device.
"""

import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

NAMES = ("native", "cuda", "triton", "reference")
OPS = {
    "masked_mean_pool": NAMES,
    "min_sqdist": NAMES,
    "pool_min_sqdist": NAMES,
    "pick_block": NAMES,
    "update_argmax": NAMES,
}


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
    built = importlib.import_module("diverseevol_fast._native").cuda_architectures
    return None if built else "not built: needs nvcc at install time (DEF_CUDA=on says why it fails)"


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


def choose(device_type: str, backend: str = "auto", op: str = "masked_mean_pool") -> str:
    """The backend of `op` for a tensor on `device_type`; `backend` other than "auto" wins over DIVERSEEVOL_BACKEND.

    Raises:
        ValueError: an unknown name, or one that cannot serve; the message gives every backend's reason.
    """
    source = "backend"
    if backend == "auto":
        source, backend = "DIVERSEEVOL_BACKEND", os.environ.get("DIVERSEEVOL_BACKEND", "auto")
    if backend == "auto":
        return "native" if device_type == "cpu" and native_unavailable() is None else "reference"
    if backend not in NAMES:
        raise ValueError(f"{source}: expected 'auto' or one of {NAMES}, got {backend!r}")
    if backend not in OPS[op]:
        raise ValueError(f"{source}={backend!r}: {op} has {' and '.join(OPS[op])}")
    if unusable(backend, device_type) is not None:
        reasons = "; ".join(f"{name}: {unusable(name, device_type) or 'usable'}" for name in OPS[op])
        raise ValueError(f"{source}={backend!r} cannot serve a tensor on {device_type}. {reasons}")
    return backend


def module_of(name: str, op: str) -> ModuleType:
    """The module that holds `op` for backend `name`, imported on first use."""
    if name == "triton":
        return importlib.import_module(f"diverseevol_fast.triton_ops.{op}")
    return importlib.import_module(f"diverseevol_fast.ops.{'native' if name == 'cuda' else name}")
