"""update_argmax: the classical streaming step, one center and one pass."""

import torch

from . import backends, reference
from .checks import check_rows, chunks


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor, backend: str = "auto") -> int:
    """Lower `nearest` for one more center and find the farthest row, lowest on ties.

    Args:
        x: [N, D] float32, bfloat16 or float16; any strides; finite.
        center: [D] float32.
        nearest: [N] float64 squared distances, lowered in place; negative entries are centers and stay.
        backend: "auto", "native", "cuda", "triton" or "reference".

    Raises:
        TypeError: a wrong dtype.
        ValueError: wrong shapes, no row, or an unusable backend.
    """
    _check(x, center, nearest)
    chosen = backends.choose(x.device, backend, "update_argmax", x.dtype)
    return int(launch_update_argmax(x, center, nearest, chosen))


def launch_update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor, chosen: str) -> torch.Tensor:
    """Update on a backend without waiting for a GPU: the index of the farthest row, int64 [1] on its device."""
    if chosen == "reference":
        return torch.full((1,), reference.update_argmax(x, center, nearest), device=x.device)
    center = center.contiguous()
    indices = [
        start + backends.run(chosen, "update_argmax", x.device, part, center, nearest[start : start + len(part)])
        for start, part in chunks(x)
    ]
    return farthest(indices, nearest)


def farthest(indices: list[torch.Tensor], nearest: torch.Tensor) -> torch.Tensor:
    """The index, of ascending ones (each int64 [1]), with the largest `nearest`; the lowest on ties."""
    if len(indices) == 1:
        return indices[0]
    candidates = torch.cat(indices)
    return candidates[nearest[candidates].argmax(dim=0, keepdim=True)]


def _check(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor) -> None:
    """Raises TypeError or ValueError as update_argmax says."""
    check_rows(x)
    if len(x) == 0:
        raise ValueError("x: expected at least one row, got none")
    for name, value, dtype in (("center", center, torch.float32), ("nearest", nearest, torch.float64)):
        if value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device}, got {value.device}")
        if value.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if center.shape != x.shape[1:]:
        raise ValueError(f"center: expected shape ({x.shape[1]},), got {tuple(center.shape)}")
    if nearest.shape != x.shape[:1] or not nearest.is_contiguous():
        raise ValueError(f"nearest: expected contiguous shape ({len(x)},), got {tuple(nearest.shape)}")
