"""The percentile bootstrap of a ratio of sums (Efron and Tibshirani 1993, chapter 13)."""

import numpy as np

DRAWN_AT_ONCE = 4_000_000  # indices in memory at a time


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentiles of sum(numerators) / sum(denominators) over resamples of the pairs.

    Args:
        numerators, denominators: [N] float64, N at least 1, one pair for each row or question; pairs stay together.
        resamples: number of resamples, each of N pairs drawn with replacement.
        seed: seeds the draws.

    Returns:
        The two percentiles; None where the denominators of a resample do not sum to more than 0.
    """
    n, generator = len(numerators), np.random.default_rng(seed)
    ratios = np.empty(resamples)
    step = max(1, DRAWN_AT_ONCE // n)
    for begin in range(0, resamples, step):
        drawn = generator.integers(n, size=(min(step, resamples - begin), n))
        below = denominators[drawn].sum(axis=1)
        if not (below > 0).all():
            return None
        ratios[begin : begin + step] = numerators[drawn].sum(axis=1) / below
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
