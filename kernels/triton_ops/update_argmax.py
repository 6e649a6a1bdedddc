"""update_argmax in Triton: each program updates its rows and writes its farthest; a second kernel reduces those."""

import torch
import triton
import triton.language as tl

from .sqdist import EXACT, LARGEST_WIDTH, rows_of, sqdist


@triton.jit
def _update_argmax_kernel(
    x, center, nearest, largest, farthest, count, dim, stride_row, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.arange(0, WIDTH)  # [WIDTH]
    in_rows, in_dim = row < count, column < dim
    point = tl.load(center + column, mask=in_dim, other=0.0)
    rows = tl.load(x + row[:, None] * stride_row + column[None, :], mask=in_rows[:, None] & in_dim[None, :], other=0.0)
    distance = sqdist(rows.to(tl.float32), point, WIDTH)  # [ROWS]
    before = tl.load(nearest + row, mask=in_rows, other=-1.0)
    after = tl.where(before < 0, before, tl.minimum(before, distance))
    tl.store(nearest + row, after, mask=in_rows)
    maximum = tl.max(tl.where(in_rows, after, -2.0), axis=0)
    tl.store(largest + tl.program_id(0), maximum)
    tl.store(farthest + tl.program_id(0), tl.min(tl.where(in_rows & (after == maximum), row, 1 << 62), axis=0))


@triton.jit
def _farthest_kernel(largest, farthest, result, programs, BLOCK: tl.constexpr):
    maximum = tl.full((BLOCK,), -2.0, dtype=tl.float64)
    row = tl.full((BLOCK,), 1 << 62, dtype=tl.int64)
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)  # [BLOCK]
        value = tl.load(largest + program, mask=program < programs, other=-2.0)
        candidate = tl.load(farthest + program, mask=program < programs, other=1 << 62)
        better = value > maximum  # rows ascend with the programs, so the lowest of equals stays
        maximum = tl.where(better, value, maximum)
        row = tl.where(better, candidate, row)
    tl.store(result, tl.min(tl.where(maximum == tl.max(maximum, axis=0), row, 1 << 62), axis=0))


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
    largest = torch.empty(programs, dtype=torch.float64, device=x.device)
    farthest = torch.empty(programs, dtype=torch.int64, device=x.device)
    result = torch.empty(1, dtype=torch.int64, device=x.device)
    _update_argmax_kernel[(programs,)](
        x, center, nearest, largest, farthest, len(x), x.shape[1], x.stride(0), ROWS=rows, WIDTH=width, **EXACT
    )
    _farthest_kernel[(1,)](largest, farthest, result, programs, BLOCK=1024)
    return result
