"""pool_min_sqdist: masked_mean_pool, and the bounds of the pooled rows in the same call."""

import torch

from . import backends, reference
from .checks import no_row
from .masked_mean_pool import TokenStates, check_pooled, checked_states, rows_in
from .min_sqdist import check_screen, screen


def pool_min_sqdist(
    hidden: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    prefix_sum: torch.Tensor | None = None,
    prefix_len: int = 0,
    backend: str = "auto",
) -> torch.Tensor:
    """masked_mean_pool, and min_sqdist of the pooled rows, in one call while they are in the cache.

    Arguments, returns and errors are those of the two.
    """
    states = checked_states(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    check_screen(rows_in(hidden, cu_seqlens), hidden.shape[-1], hidden.device, centers, offset, bound)
    pooled, flags = launch_pool_min_sqdist(states, centers, offset, bound, backend)
    empty, bad = flags.tolist()
    check_pooled(empty, bad, "mask" if cu_seqlens is None else "cu_seqlens")
    return pooled


def launch_pool_min_sqdist(
    states: TokenStates, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool and bound without waiting for a GPU.

    Returns the pooled rows [B, D], and int64 [2]: the first row with nothing to pool and the first that pools to a
    value that is not finite, -1 for none.
    """
    device = states.hidden.device
    chosen = backends.choose(device, backend, "pool_min_sqdist", states.hidden.dtype)
    centers, offset = centers.contiguous(), offset.contiguous()
    if chosen == "reference":
        pooled, empty = reference.masked_mean_pool(*states), no_row(device)
        bad = screen(pooled, centers, offset, bound, None, chosen)
    else:
        pooled, empty, bad = backends.run(chosen, "pool_min_sqdist", device, *states, centers, offset, bound)
    return pooled, torch.cat([empty, bad])
