"""VendiSampling: the random batch whose diversity has a given rank among many, to set diversity against performance.

DiverseEvol, arXiv 2311.08182, section 4.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._common.errors import InputError
from .random_sampling import draw
from .strategy import Candidates, Picks, Settings, Strategy

if TYPE_CHECKING:
    import torch


class VendiSampling(Strategy):
    """One of max_random_times random batches.

    They are ordered by the Vendi Score of pool and batch together in the base model's embeddings, highest first;
    vendi_argmax_rank says which one is taken: 0 the highest, -1 the lowest.
    """

    name = "VendiSampling"
    title = "Vendi"

    def check_settings(self, config: Settings) -> None:
        """Raises InputError unless there are batches and the rank is that of one of them."""
        super().check_settings(config)
        times, rank = config.max_random_times, config.vendi_argmax_rank
        if times < 1:
            raise InputError(f"config: max_random_times: VendiSampling expects at least 1, got {times}")
        if not -times <= rank < times:
            raise InputError(
                f"config: vendi_argmax_rank: expected {-times} to {times - 1} of {times} batches, got {rank}"
            )

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """Batches are scored in the base model's embeddings."""
        config, x = candidates.config, candidates.embedded_by_base()
        times, rank, began = config.max_random_times, config.vendi_argmax_rank, time.perf_counter()
        picks, score = pick_by_vendi(x, candidates.pool, k, times=times, rank=rank, seed=config.seed, r=candidates.r)
        return Picks(picks, {"seconds": time.perf_counter() - began, "vendi": score})


def pick_by_vendi(
    x: torch.Tensor, pool: list[int], k: int, *, times: int, rank: int, seed: int, r: int
) -> tuple[list[int], float]:
    """Of `times` random batches of k rows outside the pool, the one that stands at `rank`, and its Vendi Score.

    Batches are ordered by the Vendi Score of pool and batch together, highest first, the earlier draw on ties; -1 is
    the lowest. x: [N, D].
    """
    from .._common.vendi_score import vendi_score

    batches = [draw(len(x), pool, k, seed, r * times + index) for index in range(times)]
    scores = [vendi_score(x[pool + batch]) for batch in batches]
    chosen = sorted(range(times), key=lambda index: -scores[index])[rank]
    return batches[chosen], scores[chosen]
