"""The child process of the self-check: computes the problems of GPU kernels, one kernel after the other.

self_check.py starts it and acts on the verdicts.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from . import check_problems
from .isolated import serve
from .kernels import kernel_named
from .self_check import Verdict


def checked(name: str, device: torch.device, sizes: str) -> Verdict:
    """The verdict on one kernel, from the problems of these sizes."""
    try:
        check_problems.check(kernel_named(name), device, sizes)
    except check_problems.WrongResultError as error:
        return Verdict(False, str(error))
    except RuntimeError as error:  # raised by torch or by a CUDA call
        if "out of memory" not in str(error):
            raise
        return Verdict(None, str(error).splitlines()[0][:200])  # this says nothing about the kernel
    return Verdict(True)


def main(index: int, gpu_name: str, kernels: Sequence[str]) -> None:
    """Check the named kernels on the GPU with this index, and send the verdicts to the parent.

    Raises:
        RuntimeError: the GPU is not the one that the parent means, or this process cannot have it.
    """
    if torch.cuda.get_device_name(index) != gpu_name:  # CUDA_VISIBLE_DEVICES was changed meanwhile
        raise RuntimeError(f"GPU {index} is {torch.cuda.get_device_name(index)} here, not {gpu_name}")
    device = torch.device("cuda", index)
    torch.zeros(1, device=device)  # fails before the first kernel would be blamed
    serve(kernels, lambda name: [asdict(checked(name, device, "first_use"))])
