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
    """Of max_random_times random batches, the one whose Vendi Score with the pool stands at vendi_argmax_rank."""

    name = "VendiSampling"

    def check_settings(self, config: Settings) -> None:
        """The rank is that of one of the batches."""
        super().check_settings(config)
        times, rank = config.max_random_times, config.vendi_argmax_rank
        if times < 1:
            raise InputError(f"config: max_random_times: VendiSampling expects at least 1, got {times}")
        if not -times <= rank < times:
            raise InputError(
                f"config: vendi_argmax_rank: expected {-times} to {times - 1} of {times} batches, got {rank}"
            )

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """By the base model's embeddings."""
        config, x = candidates.config, candidates.embedded_by_base()
        began = time.perf_counter()
        positions, score = pick_by_vendi(
            x, candidates.pool, k, times=config.max_random_times, rank=config.vendi_argmax_rank, seed=config.seed,
            r=candidates.r,
        )  # fmt: skip
        return Picks(positions, {"seconds": time.perf_counter() - began, "vendi": score})


def pick_by_vendi(
    x: torch.Tensor, pool: list[int], k: int, *, times: int, rank: int, seed: int, r: int
) -> tuple[list[int], float]:
    """Of `times` random batches of k rows outside the pool, the one that stands at `rank`, and its Vendi Score.

    Batches are ordered by the Vendi Score of pool and batch together, highest first, the earlier draw on ties; -1 is
    the lowest. x: [N, D].
    """
    from .._common.vendi_score import vendi_score

    draws = [draw(len(x), pool, k, seed, r * times + number) for number in range(times)]
    scores = [vendi_score(x[pool + one]) for one in draws]
    order = sorted(range(times), key=lambda number: -scores[number])
    return draws[order[rank]], scores[order[rank]]
