"""`diverseevol env`: what this machine has, which backend serves, and why the others do not."""

import importlib.metadata
import os
import platform
from pathlib import Path

from .ops import backends

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "triton", "datasets", "peft")


def describe() -> str:
    """The report, a fact a line."""
    import torch

    from . import __version__

    lines = [f"diverseevol_fast {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"CPU: {_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if backends.native_unavailable() is None:
        from .ops import native

        lines += [f"C++ kernels: {', '.join(native._native.usable_isas())}; in use: {native.chosen_isa()}"]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            lines += [f"GPU {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"]
    else:
        lines += [f"GPU: none (torch built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU'})"]
    for device_type in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for op, names in backends.OPS.items():
            chosen = backends.choose(device_type, op=op)
            lines += [f"{op} on {device_type}: {chosen}"]
            others = [name for name in names if name != chosen]
            lines += [f"  {name}: {backends.unusable(name, device_type) or 'usable'}" for name in others]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
