"""StaticKCenterSampling: K-Center by the base model in every round, the ablation of embeddings that evolve."""

from __future__ import annotations

from .kcenter import KCenterSampling, farthest
from .strategy import Candidates, Picks


class StaticKCenterSampling(KCenterSampling):
    """The candidates farthest from the pool in the base model's embeddings, which a run computes once.

    An ablation: embeddings do not evolve.
    """

    name = "StaticKCenterSampling"
    title = "static K-Center"
    has_lazy_rounds = False

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """As KCenterSampling, in the base model's embeddings."""
        return farthest(candidates, candidates.embedded_by_base(), k)
