"""`diverseevol env`: what this machine has, which backend serves, and why the others do not."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from .ops import backends, measured

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "triton", "datasets", "peft")


def describe() -> str:
    """The report, a fact a line.

    Raises:
        ValueError: the record of device measurements cannot be read; file and line are named.
    """
    import torch

    from . import __version__

    lines = [f"diverseevol_fast {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"CPU: {_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if backends.native_unavailable() is None:
        from .ops import native

        lines += [f"C++ kernels: {', '.join(native._native.usable_isas())}; in use: {native.chosen_isa()}"]
    lines += [f"CUDA C++ kernels: {_cuda_kernels()}"]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory, capability = f"{properties.total_memory / 2**30:.0f} GiB", f"{properties.major}.{properties.minor}"
            lines += [f"GPU {number}: {properties.name}, {memory}, compute capability {capability}"]
    else:
        lines += [f"GPU: none (torch built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU'})"]
    lines += device_record(measured.record())
    for device_type in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for op in backends.OPS:
            lines += _op(op, device_type)
    return "\n".join(lines)


def device_record(record: Sequence[measured.Measurement]) -> list[str]:
    """What the record of device measurements holds: a line for each GPU, backend and state of the sources."""
    groups: dict[tuple[str, str, bool], list[measured.Measurement]] = {}
    for line in record:
        groups.setdefault((line.device, line.backend, line.current), []).append(line)
    described = []
    for (device, backend, current), lines in sorted(groups.items()):
        dates = sorted({line.date for line in lines})
        between = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        passed = f"{sum(line.passed for line in lines)} of {len(lines)} lines passed"
        sources = "of these sources" if current else "of other sources, which count for nothing"
        described.append(f"Device record: {device}, {backend}, {between}, {passed}, {sources}")
    return described or ["Device record: no GPU has measured these kernels; a CUDA tensor takes reference"]


def _op(op: str, device_type: str) -> list[str]:
    """The chosen backend, why, and the date of the line that it rests on, once if all dtypes agree; then the others."""
    dtypes: dict[measured.Choice, list[str]] = {}
    for dtype in backends.DTYPES[op]:
        dtypes.setdefault(_choice(op, device_type, dtype), []).append(dtype)
    lines = []
    for choice, names in dtypes.items():
        only = f", {' and '.join(names)}" if len(dtypes) > 1 else ""
        date = f", {choice.date}" if choice.date else ""
        lines.append(f"{op} on {device_type}{only}: {choice.backend} ({choice.reason}{date})")
    others = [name for name in backends.OPS[op] if name not in {choice.backend for choice in dtypes}]
    return lines + [f"  {name}: {backends.unusable(name, device_type) or 'usable'}" for name in others]


def _choice(op: str, device_type: str, dtype: str) -> measured.Choice:
    import torch

    try:
        return backends.explain(device_type, "auto", op, getattr(torch, dtype))
    except ValueError as error:  # DIVERSEEVOL_BACKEND names one that cannot serve here
        return measured.Choice("none", str(error))


def _cuda_kernels() -> str:
    if backends.cuda_unavailable() is not None:
        return f"none; {backends.cuda_unavailable()}"
    from .ops import native

    return f"for {native._native.cuda_architectures}"


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
