"""What least confidence, margin and entropy share: they rank rows by a logit statistic, averaged over a row's tokens.

They are baselines of DiverseEvol (arXiv 2311.08182, section 3).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .strategy import Candidates, Picks, Strategy

if TYPE_CHECKING:
    import torch


class UncertaintySampling(Strategy):
    """The rows whose tokens the previous round's model is least sure of."""

    ops = ("logit_stats",)
    needs_logits = True
    column = 0  # of a row's means: largest logit, its margin over the second largest, entropy in nats
    highest_first = False  # whether a high value means uncertain

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """The rows that the model is least sure of, the least sure one first."""
        statistics = candidates.logit_statistics()
        began = time.perf_counter()
        positions = self.pick_from(statistics, candidates.pool, k)
        return Picks(positions, {"seconds": time.perf_counter() - began})

    def pick_from(self, statistics: torch.Tensor, pool: list[int], k: int) -> list[int]:
        """The positions of the k least sure rows of statistics [N, 3] outside the pool; ties go to the lowest."""
        values = statistics[:, self.column].clone()
        values[pool] = -float("inf") if self.highest_first else float("inf")
        return values.argsort(descending=self.highest_first, stable=True)[:k].tolist()
