"""masked_mean_pool: token states to one embedding per row."""

from typing import NamedTuple

import torch

from .._common.device_copies import copy_to_device
from . import backends, reference
from .checks import STORED, no_row

LONGEST_PREFIX = 2**31 - 1


class TokenStates(NamedTuple):
    """A batch as the backends take it: columns contiguous, mask bool, cu_seqlens int64 on the device of `hidden`."""

    hidden: torch.Tensor  # [B, T, D] with a mask, or [total, D] with cu_seqlens
    mask: torch.Tensor | None  # [B, T]
    cu_seqlens: torch.Tensor | None  # [B + 1]
    prefix_sum: torch.Tensor | None  # [D] float32
    prefix_len: int


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    cu_seqlens: torch.Tensor | None = None,
    prefix_sum: torch.Tensor | None = None,
    prefix_len: int = 0,
    backend: str = "auto",
) -> torch.Tensor:
    """Mean of each row's token states, accumulated in float32 in a fixed order.

    DiverseEvol's embedding of a sample: the plain mean of its last hidden states (arXiv 2311.08182, section 2).
    Rows are either padded, with a mask, or packed one after the other, with cu_seqlens.

    Args:
        hidden: padded [B, T, D] or packed [total, D]; float32, bfloat16 or float16; any strides. Masked positions
            may hold anything.
        mask: padded rows: [B, T], bool or integer, non-zero where the token counts; same device as `hidden`.
        cu_seqlens: packed rows: [B + 1] integers, ascending from 0 to total; row b is tokens
            [cu_seqlens[b], cu_seqlens[b + 1]). In host memory they are checked without waiting for a GPU.
        prefix_sum: [D] float32, the summed states of the tokens that all rows begin with and `hidden` leaves out.
        prefix_len: how many tokens prefix_sum sums.
        backend: "auto", "native" (C++ on the CPU), "cuda", "triton" or "reference" (float64).

    Returns:
        [B, D] float32 on the same device, without gradient.

    Raises:
        TypeError: a wrong dtype, or not a tensor.
        ValueError: wrong shapes or devices, a row with nothing to pool (named), an unusable backend.
    """
    states = checked_states(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    pooled, empty = launch_masked_mean_pool(states, backend)
    check_pooled(int(empty), -1, "mask" if cu_seqlens is None else "cu_seqlens")
    return pooled


def launch_masked_mean_pool(states: TokenStates, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool without waiting for a GPU: the rows [B, D], and the first row with nothing to pool, int64 [1], or -1."""
    device = states.hidden.device
    chosen = backends.choose(device, backend, "masked_mean_pool", states.hidden.dtype)
    if chosen == "reference":
        return reference.masked_mean_pool(*states), no_row(device)
    return backends.run(chosen, "masked_mean_pool", device, *states)


def check_pooled(first_empty: int, first_bad: int, limits: str) -> None:
    """Raises ValueError when a row has nothing to pool or pools to a value that is not finite; -1 for none.

    limits: "mask" or "cu_seqlens", whichever says which tokens belong to a row.
    """
    if first_empty >= 0:
        raise ValueError(f"{limits}: row {first_empty} has no token to pool")
    if first_bad >= 0:
        raise ValueError(f"hidden: row {first_bad} pools to a value that is not finite")


def rows_in(hidden: torch.Tensor, cu_seqlens: torch.Tensor | None) -> int:
    """How many rows a batch holds.

    Raises:
        TypeError, ValueError: not tensors, or of no dimension.
    """
    tensors = {"hidden": hidden} | ({} if cu_seqlens is None else {"cu_seqlens": cu_seqlens})
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.dim() == 0:
            raise ValueError(f"{name}: expected at least one dimension, got shape ()")
    return len(hidden) if cu_seqlens is None else len(cu_seqlens) - 1


def checked_states(
    hidden: torch.Tensor,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    prefix_sum: torch.Tensor | None = None,
    prefix_len: int = 0,
) -> TokenStates:
    """The arguments of masked_mean_pool as the backends take them.

    Raises:
        TypeError, ValueError: as masked_mean_pool says.
    """
    if (mask is None) == (cu_seqlens is None):
        raise ValueError("mask: expected either mask (padded rows) or cu_seqlens (packed rows)")
    tensors = {"hidden": hidden, "mask": mask, "cu_seqlens": cu_seqlens, "prefix_sum": prefix_sum}
    for name, value in tensors.items():
        if value is None and name != "hidden":
            continue
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.layout != torch.strided or value.device.type == "meta":
            raise TypeError(f"{name}: expected a dense tensor, got {value.layout} on {value.device}")
        in_host_memory = name == "cu_seqlens" and value.device.type == "cpu"
        if value.device != hidden.device and not in_host_memory:
            raise ValueError(f"{name}: expected device {hidden.device}, got {value.device}")
    if hidden.dtype not in STORED:
        raise TypeError(f"hidden: expected float32, bfloat16 or float16, got {hidden.dtype}")
    if mask is not None:
        mask = _checked_mask(hidden, mask)
    if cu_seqlens is not None:
        cu_seqlens = _checked_limits(hidden, cu_seqlens)
    prefix_sum = _checked_prefix(hidden, prefix_sum, prefix_len)
    hidden = hidden.detach()
    if hidden.stride(-1) != 1:
        hidden = hidden.contiguous()
    return TokenStates(hidden, mask, cu_seqlens, prefix_sum, prefix_len)


def _checked_mask(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask: expected bool or an integer dtype, got {mask.dtype}")
    if hidden.dim() != 3:
        raise ValueError(f"hidden: expected shape [B, T, D], got {tuple(hidden.shape)}")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"mask: expected shape {tuple(hidden.shape[:2])}, got {tuple(mask.shape)}")
    return mask.detach() != 0


def _checked_limits(hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    if hidden.dim() != 2:
        raise ValueError(f"hidden: expected packed shape [total, D], got {tuple(hidden.shape)}")
    if cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool:
        raise TypeError(f"cu_seqlens: expected an integer dtype, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ValueError(f"cu_seqlens: expected shape [B + 1], got {tuple(cu_seqlens.shape)}")
    cu_seqlens = cu_seqlens.to(torch.int64).contiguous()
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != len(hidden) or bool((cu_seqlens[1:] < cu_seqlens[:-1]).any()):
        raise ValueError(f"cu_seqlens: expected to ascend from 0 to {len(hidden)}, got {cu_seqlens.tolist()[:8]} ...")
    return cu_seqlens if cu_seqlens.device == hidden.device else copy_to_device(cu_seqlens, hidden.device)


def _checked_prefix(hidden: torch.Tensor, prefix_sum: torch.Tensor | None, prefix_len: int) -> torch.Tensor | None:
    if type(prefix_len) is not int:
        raise TypeError(f"prefix_len: expected an integer, got {type(prefix_len).__name__}")
    if not 0 <= prefix_len <= LONGEST_PREFIX or (prefix_sum is None) != (prefix_len == 0):
        got = prefix_len if abs(prefix_len) <= LONGEST_PREFIX else "a number beyond 32 bits"
        raise ValueError(f"prefix_len: expected at least 1 with a prefix_sum and 0 without one, got {got}")
    if prefix_sum is None:
        return None
    if prefix_sum.dtype != torch.float32 or prefix_sum.shape != hidden.shape[-1:]:
        shape = tuple(prefix_sum.shape)
        raise ValueError(f"prefix_sum: expected float32 [{hidden.shape[-1]}], got {prefix_sum.dtype} {shape}")
    return prefix_sum.detach().contiguous()
