"""The report of `diverseevol env`: hardware, versions, the chosen backends, and why others cannot be used."""

import os
import platform
from pathlib import Path
from typing import Any

from .._common.errors import InputError, RunError
from ..ops import backends, kernels
from ..ops.self_check import version_of
from .result import Result

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "triton", "datasets", "peft")


def describe() -> Result:
    """The report, one fact per line. GPU kernels that were never checked on this GPU are checked first."""
    import torch

    from .._common.version import __version__

    device_types = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    record = {
        "diverseevol_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "cpu": {"name": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda_kernels": _cuda_kernels(),
        "gpus": _gpus(),
        "backends": [_op(op, device_type) for device_type in device_types for op in backends.OPS],
        "unusable": _unusable(device_types),
    }
    lines = [f"diverseevol_fast {__version__}, Python {record['python']}, {record['platform']}"]
    lines += [f"{name} {version}" for name, version in record["packages"].items()]
    lines += ["CPU: {name}, {cores} cores, {threads} threads".format(**record["cpu"])]
    if backends.native_unavailable() is None:
        from ..ops import native

        record["cpp_kernels"] = {"usable": list(native._native.usable_isas()), "in_use": native.chosen_isa()}
        lines += [f"C++ kernels: {', '.join(record['cpp_kernels']['usable'])}; in use: {native.chosen_isa()}"]
    lines += [f"CUDA C++ kernels: {record['cuda_kernels']}", *record["gpus"]]
    for op in record["backends"]:
        lines += _op_lines(op)
    return Result("\n".join(lines + _unusable_lines(record["unusable"])), record)


def check_kernels() -> Result:
    """Check all GPU kernels on all GPUs again and save the verdicts: a table with a line per kernel.

    Raises:
        InputError: there is no GPU.
        RunError: a kernel did not pass; the message is the table.
    """
    import torch

    from ..ops import self_check

    if not torch.cuda.is_available():
        raise InputError(f"env --check: no GPU to check: {_no_gpu()}")
    lines, verdicts, wrong = [], [], 0
    for name in kernels.LAUNCHERS:
        if backends.unusable(name, "cuda") is not None:
            lines.append(f"{name}: {backends.unusable(name, 'cuda')}")
    for index in range(torch.cuda.device_count()):
        lines.append(f"GPU {index}: {torch.cuda.get_device_name(index)}")
        for kernel, verdict in self_check.check_anew(index, backends.launchers()).items():
            state = {True: "passed", False: "FAILED", None: "not checked"}[verdict.passed]
            lines.append(f"  {kernel!s:40} {state:12} {verdict.reason}".rstrip())
            verdicts.append({"gpu": index, "kernel": str(kernel), "passed": verdict.passed, "reason": verdict.reason})
            wrong += verdict.passed is not True
    if wrong:
        raise RunError("\n".join([*lines, f"{wrong} kernels did not pass; other backends are used in their place"]))
    return Result("\n".join(lines), {"kernels": verdicts})


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return [f"GPU: none ({_no_gpu()})"]
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory, capability = f"{properties.total_memory / 2**30:.0f} GiB", f"{properties.major}.{properties.minor}"
        lines.append(f"GPU {index}: {properties.name}, {memory}, compute capability {capability}")
    return lines


def _no_gpu() -> str:
    """Why torch sees no GPU: it is built without CUDA, the driver is missing or too old, or there is none."""
    import torch

    if torch.version.cuda is None:
        return "torch is built for the CPU"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"torch is built for CUDA {torch.version.cuda}; {str(error).splitlines()[0]}"
    return f"torch is built for CUDA {torch.version.cuda} and sees none"


def _op(op: str, device_type: str) -> dict[str, Any]:
    """An op's chosen backends, each with its reason and dtypes; and the other backends that could be chosen."""
    dtypes: dict[backends.Choice, list[str]] = {}
    for dtype in kernels.OP_DTYPES[op]:
        dtypes.setdefault(_choice(op, device_type, dtype), []).append(dtype)
    others = [name for name in backends.OPS[op] if name not in {choice.backend for choice in dtypes}]
    return {
        "op": op,
        "device": device_type,
        "chosen": [{"backend": c.backend, "reason": c.reason, "dtypes": names} for c, names in dtypes.items()],
        "others": [name for name in others if backends.unusable(name, device_type) is None],
    }


def _op_lines(op: dict[str, Any]) -> list[str]:
    lines = []
    for choice in op["chosen"]:
        only = f", {' and '.join(choice['dtypes'])}" if len(op["chosen"]) > 1 else ""
        lines.append(f"{op['op']} on {op['device']}{only}: {choice['backend']} ({choice['reason']})")
    return lines + [f"  usable too: {', '.join(op['others'])}"] * bool(op["others"])


def _unusable(device_types: list[str]) -> dict[str, list[str]]:
    """Each reason for which backends cannot be used -> their names."""
    names: dict[str, list[str]] = {}
    for device_type in device_types:
        for name in backends.NAMES:
            reason = backends.unusable(name, device_type)
            if reason is not None and name not in names.setdefault(reason, []):
                names[reason].append(name)
    return names


def _unusable_lines(unusable: dict[str, list[str]]) -> list[str]:
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in unusable.items()]
    return ["not usable here:", *lines] if lines else []


def _choice(op: str, device_type: str, dtype: str) -> backends.Choice:
    import torch

    try:
        return backends.explain(device_type, "auto", op, getattr(torch, dtype))
    except ValueError as error:  # DIVERSEEVOL_BACKEND names one that cannot be used here
        return backends.Choice("none", str(error))


def _cuda_kernels() -> str:
    if backends.cuda_unavailable() is not None:
        return "none"  # the list of unusable backends has the reason
    from ..ops import native

    return f"for {native._native.cuda_architectures}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
