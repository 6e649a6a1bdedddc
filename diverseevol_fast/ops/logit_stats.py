"""logit_stats: how sure each token's next-token distribution is, without the tokens x vocabulary logits."""

from typing import NamedTuple

import torch

from . import backends
from .checks import STORED


class LogitStats(NamedTuple):
    """Of each token's logits over the vocabulary; [T] float32 each, on the hidden states' device."""

    largest: torch.Tensor
    """The largest logit."""
    margin: torch.Tensor
    """The largest logit less the second largest: 0 on a tie, infinite in a vocabulary of one."""
    entropy: torch.Tensor
    """-sum(p log p) in nats, p = softmax(logits)."""


def logit_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, backend: str = "auto"
) -> LogitStats:
    """Statistics of the logits hidden @ weight.T + bias for each token; only tiles of the logits are ever held.

    What DiverseEvol's baselines (arXiv 2311.08182) average over a sample's tokens: least confidence, margin, entropy.

    Args:
        hidden: [T, D] float32, bfloat16 or float16, D at least 1; any strides. The input of the language model head.
        weight: [V, D], V at least 1, of the head; dtype and device of `hidden`; any strides, copied whole unless its
            columns are contiguous.
        bias: [V], of the head, or None; dtype and device of `hidden`.
        backend: "auto", "cuda", "triton", "torch" (float32, any device) or "reference" (float64).

    Returns:
        LogitStats without gradient, from float32 sums (float64 in the reference) whatever the dtype of `hidden`.

    Raises:
        TypeError: a wrong dtype, or not a tensor.
        ValueError: wrong shapes or devices, a token whose logits (or their differences from its largest) are not finite
            in float32 (the first is named), or an unusable backend.
    """
    _check(hidden, weight, bias)
    chosen = backends.choose(hidden.device, backend, "logit_stats", hidden.dtype)
    bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
    tensors = (_columns_contiguous(hidden), _columns_contiguous(weight), bias)
    *statistics, first_bad = backends.run(chosen, "logit_stats", hidden.device, *tensors)
    bad = int(first_bad)
    if bad >= 0:
        raise ValueError(f"hidden: token {bad} has a logit that is not finite")
    return LogitStats(*statistics)


def _columns_contiguous(matrix: torch.Tensor) -> torch.Tensor:
    matrix = matrix.detach()
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _check(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raises TypeError or ValueError as logit_stats says."""
    tensors = {"hidden": hidden, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device}, got {value.device}")
        if hidden.dtype not in STORED:
            raise TypeError(f"hidden: expected float32, bfloat16 or float16, got {hidden.dtype}")
        if value.dtype != hidden.dtype:
            raise TypeError(f"{name}: expected {hidden.dtype} as hidden has, got {value.dtype}")
    if hidden.dim() != 2 or hidden.shape[1] == 0:
        raise ValueError(f"hidden: expected shape [T, D] with D at least 1, got {tuple(hidden.shape)}")
    dim = hidden.shape[1]
    if weight.dim() != 2 or len(weight) == 0 or weight.shape[1] != dim:
        raise ValueError(f"weight: expected shape [V, {dim}] with V at least 1, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape ({len(weight)},), got {tuple(bias.shape)}")
