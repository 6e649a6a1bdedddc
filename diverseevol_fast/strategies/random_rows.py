"""Random sampling: the baseline that any other has to beat."""

import numpy as np


def pick_random(count: int, pool: list[int], k: int, seed: int, r: int) -> list[int]:
    """k of the rows 0 to count - 1 that are not in the pool, in the order drawn; the draw is seeded by `seed` and r."""
    rest = np.setdiff1d(np.arange(count), pool)
    return np.random.default_rng([seed, r]).permutation(rest)[:k].tolist()
