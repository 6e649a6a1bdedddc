"""pick_block: exact greedy K-Center inside a block of rows."""

import torch

from . import backends, reference


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
    """Pick the farthest row of the block, make it a centre, and so on, while it is above every row outside.

    Args:
        rows: [B, D] float32, ascending in their numbers in the data (ties go to the lowest).
        centers: [M, D] float32, all centres so far.
        offset: [D] float32, as in min_sqdist.
        bound: [B] float32, upper bounds of the rows' squared distances; tightened in place, -infinity for picks.
        threshold: no row outside the block is farther than this (squared).
        stop: no pick at or below this (squared); negative for none.
        max_picks: at most so many.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        Picks (int64 positions, in pick order), their squared distances when picked (float64), and a squared distance
        that no row left in the block exceeds (-1 when none is left; no meaning after max_picks).
    """
    chosen = backends.choose(rows.device.type, backend, "pick_block")
    if chosen == "reference":
        return reference.pick_block(rows, centers, bound, threshold, stop, max_picks)
    rows, centers, offset = rows.contiguous(), centers.contiguous(), offset.contiguous()
    return backends.module_of(chosen, "pick_block").pick_block(rows, centers, offset, bound, threshold, stop, max_picks)
