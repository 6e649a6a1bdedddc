"""What least confidence, margin and entropy have in common: a row's mean over its tokens of a logit statistic.

They are baselines of DiverseEvol (arXiv 2311.08182, section 3).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .strategy import Candidates, Picks, Strategy

if TYPE_CHECKING:
    import torch


class UncertaintySampling(Strategy):
    """The rows of whose tokens the model of the round before is least sure."""

    ops = ("logit_stats",)
    needs_logits = True
    column = 0  # of the mean statistics: the largest logit, its margin over the second largest, the entropy in nats
    highest_first = False  # whether a high value is uncertain

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """The least sure row first."""
        statistics = candidates.logit_statistics()
        began = time.perf_counter()
        positions = self.pick_from(statistics, candidates.pool, k)
        return Picks(positions, {"seconds": time.perf_counter() - began})

    def pick_from(self, statistics: torch.Tensor, pool: list[int], k: int) -> list[int]:
        """The k rows outside the pool of statistics [N, 3] that are least sure; the lowest index on ties."""
        values = statistics[:, self.column].clone()
        values[pool] = -float("inf") if self.highest_first else float("inf")
        return values.argsort(descending=self.highest_first, stable=True)[:k].tolist()
