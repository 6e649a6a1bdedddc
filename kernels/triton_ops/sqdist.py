"""The float64 squared distance of the specification in Triton: squares of differences, summed by halving."""

import triton
import triton.language as tl


@triton.jit
def halving_sum(values, WIDTH: tl.constexpr):
    """Sum of values [ROWS, WIDTH] over the second dimension, the upper half added to the lower until one is left."""
    ROWS: tl.constexpr = values.shape[0]
    if WIDTH == 1:
        return tl.reshape(values, (ROWS,))
    halves = tl.sum(tl.reshape(values, (ROWS, 2, WIDTH // 2)), axis=1)  # a sum of two: no order to choose
    return halving_sum(halves, WIDTH // 2)


@triton.jit
def sqdist(rows, center, WIDTH: tl.constexpr):
    """Distances [ROWS] float64 of rows [ROWS, WIDTH] to center [WIDTH], both zero beyond the data's columns."""
    difference = rows.to(tl.float64) - center.to(tl.float64)[None, :]
    return halving_sum(difference * difference, WIDTH)
