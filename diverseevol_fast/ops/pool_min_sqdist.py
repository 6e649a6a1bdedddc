"""pool_min_sqdist: masked_mean_pool, and the bounds of the pooled rows in the same call."""

import torch

from . import backends, reference
from .masked_mean_pool import check_pooled, checked_rows
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
    given = {"cu_seqlens": cu_seqlens, "prefix_sum": prefix_sum, "prefix_len": prefix_len}
    pooled, flags = queue_pool_min_sqdist(
        hidden, mask, **given, centers=centers, offset=offset, bound=bound, backend=backend
    )
    check_pooled(*flags.tolist(), "mask" if cu_seqlens is None else "cu_seqlens")
    return pooled


def queue_pool_min_sqdist(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """pool_min_sqdist without waiting for a GPU: the pooled rows, and int64 [2] for check_pooled."""
    given = checked_rows(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    batch = len(hidden) if cu_seqlens is None else len(cu_seqlens) - 1
    check_screen(batch, hidden.shape[-1], hidden.device, centers, offset, bound)
    chosen = backends.choose(hidden.device, backend, "pool_min_sqdist", hidden.dtype)
    centers, offset = centers.contiguous(), offset.contiguous()
    if chosen == "reference":
        pooled = reference.masked_mean_pool(*given)
        empty, bad = torch.full((1,), -1, device=hidden.device), screen(pooled, centers, offset, bound, None, chosen)
    else:
        call = (chosen, "pool_min_sqdist", hidden.device)
        pooled, empty, bad = backends.run(*call, *given, centers, offset, bound)
    return pooled, torch.cat([empty, bad])
