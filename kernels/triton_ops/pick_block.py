"""pick_block in Triton: exact distances on all multiprocessors, then the whole greedy in one program."""

import torch
import triton
import triton.language as tl

from .sqdist import EXACT, LARGEST_WIDTH, rows_of, sqdist


@triton.jit
def _sqdist_kernel(members, others, out, dim, num_others, OTHERS: tl.constexpr, WIDTH: tl.constexpr):
    member = tl.program_id(1).to(tl.int64)
    other = tl.program_id(0).to(tl.int64) * OTHERS + tl.arange(0, OTHERS)  # [OTHERS]
    column = tl.arange(0, WIDTH)  # [WIDTH]
    in_others, in_dim = other < num_others, column < dim
    point = tl.load(members + member * dim + column, mask=in_dim, other=0.0)
    rows = tl.load(
        others + other[:, None] * dim + column[None, :], mask=in_others[:, None] & in_dim[None, :], other=0.0
    )
    tl.store(out + member * num_others + other, sqdist(rows, point, WIDTH), mask=in_others)


@triton.jit
def _pick_block_kernel(
    nearest, between, floor, max_picks, picks, sqdist, found, num_rows, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, BLOCK)  # [BLOCK]
    inside = place < num_rows
    left = tl.load(nearest + place, mask=inside, other=-1.0)  # [BLOCK] float64; -1: picked
    least = tl.load(floor)
    best = tl.max(left, axis=0)
    count = 0
    while (count < max_picks) & (best > least):
        winner = tl.min(tl.where(left == best, place, BLOCK), axis=0)
        tl.store(picks + count, winner.to(tl.int64))
        tl.store(sqdist + count, best)
        column = tl.load(between + winner.to(tl.int64) * num_rows + place, mask=inside, other=0.0)
        left = tl.where(left < 0, left, tl.minimum(left, column))
        left = tl.where(place == winner, -1.0, left)
        best = tl.max(left, axis=0)
        count += 1
    tl.store(nearest + place, left, mask=inside)
    tl.store(found, count)


def pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: torch.Tensor,
    stop: float,
    max_picks: int,
) -> torch.Tensor:
    """As native.pick_block; all distances are float64, so offset is not needed.

    Raises:
        ValueError: more columns than a program can hold.
    """
    device, num_rows, dim = rows.device, len(rows), rows.shape[1]
    width = triton.next_power_of_2(dim)
    if width > LARGEST_WIDTH:
        raise ValueError(f"rows: the Triton pick_block takes up to {LARGEST_WIDTH} columns, got {dim}")
    nearest = _distances(rows, centers, width).min(dim=1).values  # [B]
    between = _distances(rows, rows, width)  # [B, B]
    floor = threshold.clamp(min=max(stop, -1.0))
    picks = torch.empty(max_picks, dtype=torch.int64, device=device)
    sqdist_when_picked = torch.empty(max_picks, dtype=torch.float64, device=device)
    found = torch.empty(1, dtype=torch.int32, device=device)
    _pick_block_kernel[(1,)](
        nearest, between, floor, max_picks, picks, sqdist_when_picked, found, num_rows,
        BLOCK=triton.next_power_of_2(num_rows),
    )  # fmt: skip
    left = torch.where(nearest < 0, -float("inf"), nearest)
    rounded = left.to(torch.float32)
    above = torch.where(rounded < left, torch.nextafter(rounded, torch.full_like(rounded, float("inf"))), rounded)
    bound.copy_(torch.minimum(bound, above))
    return torch.cat([found, nearest.max()[None], picks, sqdist_when_picked])  # the integers become float64


def _distances(members: torch.Tensor, others: torch.Tensor, width: int) -> torch.Tensor:
    """Squared distances [B, O] float64, in the specification's order of additions."""
    out = torch.empty((len(members), len(others)), dtype=torch.float64, device=members.device)
    each = rows_of(width)
    grid = (triton.cdiv(len(others), each), len(members))  # of which the second may be 65,535 at most
    _sqdist_kernel[grid](members, others, out, members.shape[1], len(others), OTHERS=each, WIDTH=width, **EXACT)
    return out
