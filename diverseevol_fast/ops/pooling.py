"""masked_mean_pool: token states to one embedding per row."""

import torch

from . import backends

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def masked_mean_pool(hidden: torch.Tensor, mask: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Mean of each row's unmasked token states, accumulated in float32 in a fixed order.

    DiverseEvol's embedding of a sample: the plain mean of its last hidden states (arXiv 2311.08182, section 2).

    Args:
        hidden: [B, T, D], float32, bfloat16 or float16; any strides. Masked positions may hold anything.
        mask: [B, T], bool or integer, non-zero where the token counts; same device as `hidden`.
        backend: "auto", "native" (C++ on the CPU), "triton" or "reference" (float64).

    Returns:
        [B, D] float32 on the same device.

    Raises:
        TypeError: a wrong dtype, or not a tensor.
        ValueError: wrong shapes or devices, a row with nothing to pool (named), an unusable backend.
    """
    for name, value in (("hidden", hidden), ("mask", mask)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if hidden.dtype not in FLOATS:
        raise TypeError(f"hidden: expected float32, bfloat16 or float16, got {hidden.dtype}")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask: expected bool or an integer dtype, got {mask.dtype}")
    if hidden.dim() != 3:
        raise ValueError(f"hidden: expected shape [B, T, D], got {tuple(hidden.shape)}")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"mask: expected shape {tuple(hidden.shape[:2])}, got {tuple(mask.shape)}")
    if mask.device != hidden.device:
        raise ValueError(f"mask: expected device {hidden.device}, got {mask.device}")
    mask = mask.detach() != 0
    hidden = hidden.detach()
    if hidden.stride(2) != 1:
        hidden = hidden.contiguous()
    chosen = backends.choose(hidden.device.type, backend)
    return backends.module_of(chosen, "masked_mean_pool").masked_mean_pool(hidden, mask)
