"""The float64 squared distance of the specification in Triton: squares of differences, summed by halving.

Launch kernels that call it with EXACT: a fused multiply-add rounds once where the specification rounds twice.
"""

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}
LARGEST_WIDTH = 8_192  # maximum columns, padded to a power of two, that a program can hold in registers


def rows_of(width: int) -> int:
    """Rows per program for a padded width."""
    return max(1, 4096 // width)


@triton.jit
def halving_sum(values, WIDTH: tl.constexpr):
    """Sum of values [ROWS, WIDTH] over the second dimension, adding the upper half to the lower until one remains."""
    ROWS: tl.constexpr = values.shape[0]
    if WIDTH == 1:
        total = tl.reshape(values, (ROWS,))
    else:
        halves = tl.sum(tl.reshape(values, (ROWS, 2, WIDTH // 2)), axis=1)  # a sum of two values has only one order
        total = halving_sum(halves, WIDTH // 2)
    return total


@triton.jit
def sqdist(rows, center, WIDTH: tl.constexpr):
    """Distances [ROWS] float64 of rows [ROWS, WIDTH] to center [WIDTH], both zero beyond the data's columns."""
    difference = rows.to(tl.float64) - center.to(tl.float64)[None, :]
    return halving_sum(difference * difference, WIDTH)
