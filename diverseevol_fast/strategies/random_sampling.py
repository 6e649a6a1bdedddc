"""RandomSampling: the baseline that any other strategy has to beat."""

from __future__ import annotations

import time

from .strategy import Candidates, Picks, Strategy


class RandomSampling(Strategy):
    """Candidates at random, by a seeded draw; no model embeds anything."""

    name = "RandomSampling"
    title = "random"

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """The draw depends on the config's seed and the round alone."""
        began = time.perf_counter()
        positions = draw(len(candidates), candidates.pool, k, candidates.config.seed, candidates.r)
        return Picks(positions, {"seconds": time.perf_counter() - began})


def draw(count: int, pool: list[int], k: int, seed: int, stream: int) -> list[int]:
    """k of the positions 0 to count - 1 that are not in the pool, in the order drawn."""
    import numpy as np

    remaining = np.setdiff1d(np.arange(count), pool)
    return np.random.default_rng([seed, stream]).permutation(remaining)[:k].tolist()
