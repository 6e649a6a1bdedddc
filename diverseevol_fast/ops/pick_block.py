"""pick_block: exact greedy K-Center inside a block of rows."""

import torch

from . import backends, reference
from .min_sqdist import check_screen


def pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: float,
    stop: float,
    max_picks: int,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Pick the farthest row of the block, make it a center, and so on, while it is above every row outside.

    Args:
        rows: [B, D] float32, in the order of the data (ties go to the lowest).
        centers: [M, D] float32, all centers so far.
        offset: [D] float32, as in min_sqdist.
        bound: [B] float32, upper bounds of the rows' squared distances; tightened in place, -infinity for picks.
        threshold: no row outside the block is farther than this (squared).
        stop: no pick at or below this (squared); negative for none.
        max_picks: how many rows to pick at most.
        backend: "auto", "native", "cuda", "triton" or "reference".

    Returns:
        Picks (int64 indices of `rows`, in pick order), their squared distances when picked (float64), and a squared
        distance that no remaining row of the block exceeds (-1 when none remains; no meaning after max_picks).

    Raises:
        TypeError: not float32.
        ValueError: wrong shapes, no row or no center, or an unusable backend.
    """
    _check(rows, centers, offset, bound)
    chosen = backends.choose(rows.device, backend, "pick_block", torch.float32)
    if max_picks < 0:
        raise ValueError(f"max_picks: expected at least 0, got {max_picks}")
    count = min(max_picks, len(rows))
    above = torch.tensor([threshold], dtype=torch.float64, device=rows.device)
    return unpack(launch_pick_block(rows, centers, offset, bound, above, stop, count, chosen), count)


def launch_pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: torch.Tensor,
    stop: float,
    max_picks: int,
    chosen: str,
) -> torch.Tensor:
    """Pick on a backend without waiting for a GPU; threshold: float64 [1] on its device, max_picks at most B.

    Returns float64 [2 + 2 max_picks] for `unpack`: how many picks, the distance that follows, picks, their distances.
    """
    if chosen == "reference":
        picks, sqdist, following = reference.pick_block(rows, centers, bound, float(threshold), stop, max_picks)
        result = torch.zeros(2 + 2 * max_picks, dtype=torch.float64)
        result[0], result[1] = len(picks), following if len(picks) < len(rows) else -1.0
        result[2 : 2 + len(picks)], result[2 + max_picks : 2 + max_picks + len(picks)] = picks, sqdist
        return result.to(rows.device)
    tensors = (rows.contiguous(), centers.contiguous(), offset.contiguous(), bound, threshold)
    return backends.run(chosen, "pick_block", rows.device, *tensors, stop, max_picks)


def unpack(result: torch.Tensor, max_picks: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What pick_block returns, in host memory, out of the result of launch_pick_block."""
    result = result.cpu()
    count = int(result[0])
    picks, sqdist = result[2 : 2 + count].to(torch.int64), result[2 + max_picks : 2 + max_picks + count]
    return picks, sqdist, float(result[1])


def _check(rows: torch.Tensor, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor) -> None:
    """Raises TypeError or ValueError as pick_block says."""
    if rows.dtype != torch.float32:
        raise TypeError(f"rows: expected float32, got {rows.dtype}")
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(f"rows: expected shape [B, D] with B and D at least 1, got {tuple(rows.shape)}")
    check_screen(len(rows), rows.shape[1], rows.device, centers, offset, bound)
