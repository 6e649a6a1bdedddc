"""The GPU kernels: their names, which of them each backend of an op launches, and the order of the backends.

The order is a table, preference.json, which bench/device/preference.py rewrites from the lines in bench/results.
self_check.py decides on each GPU whether a kernel may be used at all.
"""

import importlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .._common.dtypes import DTYPES

OLDEST_CAPABILITY = (8, 0)  # the CUDA sources are compiled for it, and bfloat16 products need it
HOPPER = (9, 0)
STORED = DTYPES
OP_DTYPES = {
    "masked_mean_pool": STORED,
    "min_sqdist": STORED,
    "pool_min_sqdist": STORED,
    "pick_block": ("float32",),
    "update_argmax": STORED,
    "logit_stats": STORED,
}
LAUNCHERS = ("cuda", "triton")  # the backends that have GPU kernels; "cuda_general" is a part of "cuda"


@dataclass(frozen=True, order=True)
class Kernel:
    """A kernel for rows of one dtype; it has a self-check of its own, and lines of its own in bench/results."""

    launcher: str  # one of LAUNCHERS
    name: str  # its op's name, or that of a variant
    dtype: str

    def __str__(self) -> str:
        return f"{self.launcher} {self.name} {self.dtype}"

    @property
    def op(self) -> str:
        """The name of its op."""
        return self.name.removesuffix("_hopper")


def kernel_named(text: str) -> Kernel:
    """The kernel whose str() is `text`."""
    return Kernel(*text.split(" "))


def all_kernels(capability: tuple[int, int]) -> list[Kernel]:
    """All kernels for a GPU of this compute capability, built or not; those of "cuda" first."""
    return [
        Kernel(launcher, name, dtype)
        for launcher in LAUNCHERS
        for op, dtypes in OP_DTYPES.items()
        for dtype in dtypes
        for name in (op, f"{op}_hopper")
        if not name.endswith("_hopper") or (launcher == "cuda" and _has_hopper_kernel(op, dtype, capability))
    ]


def kernels_of(backend: str, op: str, dtype: str, capability: tuple[int, int]) -> list[Kernel]:
    """The kernels that a backend of an op may launch for rows of a dtype."""
    launcher = "cuda" if backend == "cuda_general" else backend
    kernels = [Kernel(launcher, op, dtype)]
    if backend == "cuda" and _has_hopper_kernel(op, dtype, capability):
        kernels.append(Kernel("cuda", f"{op}_hopper", dtype))
    return kernels


def _has_hopper_kernel(op: str, dtype: str, capability: tuple[int, int]) -> bool:
    return op == "min_sqdist" and dtype != "float32" and capability == HOPPER and "90a" in cuda_architectures()


@cache
def cuda_architectures() -> tuple[str, ...]:
    """The architectures that the CUDA C++ kernels were compiled for; empty where there are none."""
    try:
        native = importlib.import_module("diverseevol_fast._native")
    except ImportError:
        return ()
    return tuple(native.cuda_architectures.split())


@cache
def _table() -> dict:
    return json.loads(Path(__file__).with_name("preference.json").read_text(encoding="utf-8"))


def preference(op: str, dtype: str, capability: tuple[int, int]) -> list[str]:
    """The backends of an op in the order in which they are tried; backends without a measurement come last."""
    major_minor = f"{capability[0]}.{capability[1]}"
    measured = _table()["measured"].get(f"{op} {dtype}", {}).get(major_minor, {}).get("order", [])
    return measured + [name for name in _table()["default"] if name not in measured]
