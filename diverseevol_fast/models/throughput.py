"""What the machine can do and what a model needs: the rate of matrix products, a model's operations, memory."""

import time
from functools import cache
from pathlib import Path

import torch

ROUNDS = 5


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a large matrix product, the best of five; 0 for a dtype that has none."""
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return 0.0
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.ones((size, size), dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first product starts threads and loads kernels
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


@torch.enable_grad()  # FlopCounterMode counts nothing under inference_mode
def flops_per_token(body: torch.nn.Module) -> float:
    """Floating-point operations a token: the products with the weights; the row is too short for attention to count."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens = 4
    ids = torch.zeros((1, tokens), dtype=torch.int64, device=next(body.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        body(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops() / tokens


def reset_peak_memory(device: torch.device) -> None:
    """Make peak_memory count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the system does not allow it: the peak is that of the whole process


def peak_memory(device: torch.device) -> int:
    """The most bytes used since reset_peak_memory: of the GPU as torch counts them, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
