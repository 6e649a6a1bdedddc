"""update_argmax: the classical streaming step, one centre and one pass."""

import torch

from . import backends, reference
from .screening import chunks


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor, backend: str = "auto") -> int:
    """Lower `nearest` for one more centre and find the farthest row, lowest on ties.

    Args:
        x: [N, D] float32, bfloat16 or float16; any strides; finite.
        center: [D] float32.
        nearest: [N] float64 squared distances, lowered in place; negative entries are centres and stay.
        backend: "auto", "native", "triton" or "reference".
    """
    chosen = backends.choose(x.device.type, backend, "update_argmax")
    if chosen == "reference":
        return reference.update_argmax(x, center, nearest)
    run = backends.module_of(chosen, "update_argmax").update_argmax
    center = center.contiguous()
    farthest = 0
    for start, part in chunks(x):
        found = start + int(run(part, center, nearest[start : start + len(part)]))
        if nearest[found] > nearest[farthest]:
            farthest = found
    return farthest
