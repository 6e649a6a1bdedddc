"""`diverseevol env`: what this machine has, which backend serves, and why the others do not."""

import os
import platform
from pathlib import Path

from .errors import InputError, RunError
from .ops import backends, kernels
from .ops.self_check import version_of

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "triton", "datasets", "peft")


def describe() -> str:
    """The report, a fact a line; on a machine with a GPU whose kernels were never checked, they are checked."""
    import torch

    from . import __version__

    lines = [f"diverseevol_fast {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name} {version_of(name)}" for name in PACKAGES]
    lines += [f"CPU: {_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if backends.native_unavailable() is None:
        from .ops import native

        lines += [f"C++ kernels: {', '.join(native._native.usable_isas())}; in use: {native.chosen_isa()}"]
    lines += [f"CUDA C++ kernels: {_cuda_kernels()}"]
    lines += _gpus()
    device_types = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device_type in device_types:
        for op in backends.OPS:
            lines += _op(op, device_type)
    return "\n".join(lines + _unusable(device_types))


def check_kernels() -> str:
    """Check all GPU kernels of all GPUs anew, and remember what is found: a table, a kernel a line.

    Raises:
        InputError: there is no GPU.
        RunError: a kernel did not pass; the message is the table.
    """
    import torch

    from .ops import self_check

    if not torch.cuda.is_available():
        raise InputError(f"env --check: no GPU to check: {_no_gpu()}")
    lines, wrong = [], 0
    for name in kernels.LAUNCHERS:
        if backends.unusable(name, "cuda") is not None:
            lines.append(f"{name}: {backends.unusable(name, 'cuda')}")
    for number in range(torch.cuda.device_count()):
        lines.append(f"GPU {number}: {torch.cuda.get_device_name(number)}")
        for kernel, verdict in self_check.check_anew(number, backends.launchers()).items():
            state = {True: "passed", False: "FAILED", None: "not checked"}[verdict.passed]
            lines.append(f"  {kernel!s:40} {state:12} {verdict.reason}".rstrip())
            wrong += verdict.passed is not True
    if wrong:
        raise RunError("\n".join([*lines, f"{wrong} kernels did not pass; other backends are used in their place"]))
    return "\n".join(lines)


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return [f"GPU: none ({_no_gpu()})"]
    lines = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory, capability = f"{properties.total_memory / 2**30:.0f} GiB", f"{properties.major}.{properties.minor}"
        lines.append(f"GPU {number}: {properties.name}, {memory}, compute capability {capability}")
    return lines


def _no_gpu() -> str:
    """Why no GPU can be used: none is there, torch is built without CUDA, or the driver is missing or too old."""
    import torch

    if torch.version.cuda is None:
        return "torch is built for the CPU"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"torch is built for CUDA {torch.version.cuda}; {str(error).splitlines()[0]}"
    return f"torch is built for CUDA {torch.version.cuda} and sees none"


def _op(op: str, device_type: str) -> list[str]:
    """The chosen backend and why, once if all dtypes agree; then the others that could be."""
    dtypes: dict[backends.Choice, list[str]] = {}
    for dtype in kernels.OP_DTYPES[op]:
        dtypes.setdefault(_choice(op, device_type, dtype), []).append(dtype)
    lines = []
    for choice, names in dtypes.items():
        only = f", {' and '.join(names)}" if len(dtypes) > 1 else ""
        lines.append(f"{op} on {device_type}{only}: {choice.backend} ({choice.reason})")
    others = [name for name in backends.OPS[op] if name not in {choice.backend for choice in dtypes}]
    usable = [name for name in others if backends.unusable(name, device_type) is None]
    return lines + [f"  usable too: {', '.join(usable)}"] * bool(usable)


def _unusable(device_types: list[str]) -> list[str]:
    """Why backends cannot be used, each reason once."""
    names: dict[str, list[str]] = {}
    for device_type in device_types:
        for name in backends.NAMES:
            reason = backends.unusable(name, device_type)
            if reason is not None and name not in names.setdefault(reason, []):
                names[reason].append(name)
    return ["not usable here:", *(f"  {', '.join(names[reason])}: {reason}" for reason in names)] if names else []


def _choice(op: str, device_type: str, dtype: str) -> backends.Choice:
    import torch

    try:
        return backends.explain(device_type, "auto", op, getattr(torch, dtype))
    except ValueError as error:  # DIVERSEEVOL_BACKEND names one that cannot serve here
        return backends.Choice("none", str(error))


def _cuda_kernels() -> str:
    if backends.cuda_unavailable() is not None:
        return "none"  # the reason stands with those of the other backends
    from .ops import native

    return f"for {native._native.cuda_architectures}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
