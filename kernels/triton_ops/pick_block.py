"""pick_block in Triton: all distances in float64 on all multiprocessors, then the whole greedy in one program."""

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
def _pick_block_kernel(nearest, between, floor, max_picks, picks, sqdist, num_picks, num_rows, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)  # [BLOCK]
    in_rows = row < num_rows
    distance = tl.load(nearest + row, mask=in_rows, other=-1.0)  # [BLOCK] float64; -1 marks a pick
    least = tl.load(floor)
    best = tl.max(distance, axis=0)
    count = 0
    while (count < max_picks) & (best > least):
        winner = tl.min(tl.where(distance == best, row, BLOCK), axis=0)
        tl.store(picks + count, winner.to(tl.int64))
        tl.store(sqdist + count, best)
        column = tl.load(between + winner.to(tl.int64) * num_rows + row, mask=in_rows, other=0.0)
        distance = tl.where(distance < 0, distance, tl.minimum(distance, column))
        distance = tl.where(row == winner, -1.0, distance)
        best = tl.max(distance, axis=0)
        count += 1
    tl.store(nearest + row, distance, mask=in_rows)
    tl.store(num_picks, count)


def pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: torch.Tensor,
    stop: float,
    max_picks: int,
) -> torch.Tensor:
    """As native.pick_block; offset is unused, because all distances are float64.

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
    num_picks = torch.empty(1, dtype=torch.int32, device=device)
    _pick_block_kernel[(1,)](
        nearest,
        between,
        floor,
        max_picks,
        picks,
        sqdist_when_picked,
        num_picks,
        num_rows,
        BLOCK=triton.next_power_of_2(num_rows),
    )
    unpicked = torch.where(nearest < 0, -float("inf"), nearest)
    rounded = unpicked.to(torch.float32)
    upper = torch.where(rounded < unpicked, torch.nextafter(rounded, torch.full_like(rounded, float("inf"))), rounded)
    bound.copy_(torch.minimum(bound, upper))
    return torch.cat([num_picks, nearest.max()[None], picks, sqdist_when_picked])  # converts integers to float64


def _distances(members: torch.Tensor, others: torch.Tensor, width: int) -> torch.Tensor:
    """Squared distances [B, O] float64, in the specification's order of additions."""
    out = torch.empty((len(members), len(others)), dtype=torch.float64, device=members.device)
    each = rows_of(width)
    grid = (triton.cdiv(len(others), each), len(members))  # CUDA limits the second dimension to 65,535
    _sqdist_kernel[grid](members, others, out, members.shape[1], len(others), OTHERS=each, WIDTH=width, **EXACT)
    return out
