"""Vendi-controlled sampling: the random batch whose diversity has a given rank among many, to set against quality."""

import torch

from .._common.vendi_score import vendi_score
from .random_rows import pick_random


def pick_by_vendi(
    x: torch.Tensor, pool: list[int], k: int, *, times: int, rank: int, seed: int, r: int
) -> tuple[list[int], float]:
    """Of `times` random batches of k rows outside the pool, the one that stands at `rank`, and its Vendi Score.

    Batches are ordered by the Vendi Score of pool and batch together, highest first, the earlier draw on ties; -1 is
    the lowest. x: [N, D]. DiverseEvol, arXiv 2311.08182, section 4 (diversity against performance).
    """
    draws = [pick_random(len(x), pool, k, seed, r * times + draw) for draw in range(times)]
    scores = [vendi_score(x[pool + draw]) for draw in draws]
    order = sorted(range(times), key=lambda draw: -scores[draw])
    return draws[order[rank]], scores[order[rank]]
