"""The float64 squared distance of the specification in Triton: squares of differences, summed by halving.

Kernels that call it are launched with EXACT: a multiplication fused with an addition would round once less.
"""

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}
LARGEST_WIDTH = 8_192  # columns, padded to a power of two, that a program holds in registers


def rows_of(width: int) -> int:
    """How many rows of a padded width a program takes."""
    return max(1, 4096 // width)


@triton.jit
def halving_sum(values, WIDTH: tl.constexpr):
    """Sum of values [ROWS, WIDTH] over the second dimension, the upper half added to the lower until one is left."""
    ROWS: tl.constexpr = values.shape[0]
    if WIDTH == 1:
        total = tl.reshape(values, (ROWS,))
    else:
        halves = tl.sum(tl.reshape(values, (ROWS, 2, WIDTH // 2)), axis=1)  # a sum of two: no order to choose
        total = halving_sum(halves, WIDTH // 2)
    return total


@triton.jit
def sqdist(rows, center, WIDTH: tl.constexpr):
    """Distances [ROWS] float64 of rows [ROWS, WIDTH] to center [WIDTH], both zero beyond the data's columns."""
    difference = rows.to(tl.float64) - center.to(tl.float64)[None, :]
    return halving_sum(difference * difference, WIDTH)
