"""update_argmax in Triton: each program lowers its rows and leaves its farthest; a second launch takes the best."""

import torch
import triton
import triton.language as tl

from .sqdist import EXACT, LARGEST_WIDTH, rows_of, sqdist


@triton.jit
def _update_argmax_kernel(
    x, center, nearest, best, where, count, dim, stride_row, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.arange(0, WIDTH)  # [WIDTH]
    kept, in_dim = row < count, column < dim
    point = tl.load(center + column, mask=in_dim, other=0.0)
    rows = tl.load(x + row[:, None] * stride_row + column[None, :], mask=kept[:, None] & in_dim[None, :], other=0.0)
    distance = sqdist(rows.to(tl.float32), point, WIDTH)  # [ROWS]
    before = tl.load(nearest + row, mask=kept, other=-1.0)
    after = tl.where(before < 0, before, tl.minimum(before, distance))
    tl.store(nearest + row, after, mask=kept)
    largest = tl.max(tl.where(kept, after, -2.0), axis=0)
    tl.store(best + tl.program_id(0), largest)
    tl.store(where + tl.program_id(0), tl.min(tl.where(kept & (after == largest), row, 1 << 62), axis=0))


@triton.jit
def _farthest_kernel(best, where, farthest, programs, BLOCK: tl.constexpr):
    largest = tl.full((BLOCK,), -2.0, dtype=tl.float64)
    row = tl.full((BLOCK,), 1 << 62, dtype=tl.int64)
    for first in range(0, programs, BLOCK):
        place = first + tl.arange(0, BLOCK)  # [BLOCK]
        value = tl.load(best + place, mask=place < programs, other=-2.0)
        number = tl.load(where + place, mask=place < programs, other=1 << 62)
        better = value > largest  # rows ascend with the programs: the first of equals stays
        largest = tl.where(better, value, largest)
        row = tl.where(better, number, row)
    most = tl.max(largest, axis=0)
    tl.store(farthest, tl.min(tl.where(largest == most, row, 1 << 62), axis=0))


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """As native.update_argmax.

    Raises:
        ValueError: more columns than a program can hold.
    """
    width = triton.next_power_of_2(x.shape[1])
    if width > LARGEST_WIDTH:
        raise ValueError(f"x: the Triton update_argmax takes up to {LARGEST_WIDTH} columns, got {x.shape[1]}")
    rows = rows_of(width)
    programs = triton.cdiv(len(x), rows)
    best = torch.empty(programs, dtype=torch.float64, device=x.device)
    where = torch.empty(programs, dtype=torch.int64, device=x.device)
    farthest = torch.empty(1, dtype=torch.int64, device=x.device)
    _update_argmax_kernel[(programs,)](
        x, center, nearest, best, where, len(x), x.shape[1], x.stride(0), ROWS=rows, WIDTH=width, **EXACT
    )
    _farthest_kernel[(1,)](best, where, farthest, programs, BLOCK=1024)
    return farthest
