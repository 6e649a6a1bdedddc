"""Which rows join the pool: a function for each evol_schedule_name. Each asks the candidates for what it needs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .._common.errors import InputError
from ..selection.traversal import KCenterResult, kcenter
from ..selection.whitening import whiten
from .candidates import Candidates
from .random_rows import pick_random
from .uncertainty import HIGHEST_ENTROPY, LOWEST_LARGEST, LOWEST_MARGIN, pick_uncertain
from .vendi_sampling import pick_by_vendi


@dataclass(frozen=True)
class Picks:
    """Positions among the candidates, in pick order."""

    positions: list[int]
    metrics: dict[str, float | str]  # seconds, without those of the embedding, and what else the strategy knows
    sqdist: list[float] | None = None  # K-Center: each one's squared distance to its nearest centre when picked


Strategy = Callable[[Candidates, int], Picks]  # the number of rows wanted


def kcenter_sampling(candidates: Candidates, k: int) -> Picks:
    """The farthest from the pool, by the model of the round before (the method itself); whitened if the config says."""
    embedded = candidates.embedded()
    if _whitens(candidates):
        return _farthest(candidates, embedded.values, k)
    return _of_kcenter(embedded.select(k))


def static_kcenter_sampling(candidates: Candidates, k: int) -> Picks:
    """The farthest from the pool by the base model, in every round: the ablation of embeddings that evolve."""
    return _farthest(candidates, candidates.embedded_by_base(), k)


def random_sampling(candidates: Candidates, k: int) -> Picks:
    """A seeded draw; no model is asked."""
    began = time.perf_counter()
    positions = pick_random(len(candidates), candidates.pool, k, candidates.config.seed, candidates.r)
    return Picks(positions, {"seconds": time.perf_counter() - began})


def least_confidence(candidates: Candidates, k: int) -> Picks:
    """The lowest mean of the largest logit."""
    return _uncertain(candidates, k, LOWEST_LARGEST)


def margin_sampling(candidates: Candidates, k: int) -> Picks:
    """The lowest mean of the largest logit less the second largest."""
    return _uncertain(candidates, k, LOWEST_MARGIN)


def entropy_sampling(candidates: Candidates, k: int) -> Picks:
    """The highest mean entropy."""
    return _uncertain(candidates, k, HIGHEST_ENTROPY)


def vendi_sampling(candidates: Candidates, k: int) -> Picks:
    """Of many random draws, the one whose Vendi Score by the base model has the rank that the config says."""
    config, x = candidates.config, candidates.embedded_by_base()
    began = time.perf_counter()
    positions, score = pick_by_vendi(
        x, candidates.pool, k, times=config.max_random_times, rank=config.vendi_argmax_rank, seed=config.seed,
        r=candidates.r,
    )  # fmt: skip
    return Picks(positions, {"seconds": time.perf_counter() - began, "vendi": score})


STRATEGIES: dict[str, Strategy] = {
    "KCenterSampling": kcenter_sampling,
    "OneShotKCenterSampling": kcenter_sampling,  # asked once, for the rows of all rounds
    "StaticKCenterSampling": static_kcenter_sampling,
    "RandomSampling": random_sampling,
    "LeastConfidence": least_confidence,
    "MarginSampling": margin_sampling,
    "EntropySampling": entropy_sampling,
    "VendiSampling": vendi_sampling,
}


def rounds_at_once(schedule: str, rounds_left: int) -> int:
    """For how many rounds the strategy is asked at once. The picks of K-Center greedy are nested: any number of them
    begins a larger number."""
    return rounds_left if schedule == "OneShotKCenterSampling" else 1


def _whitens(candidates: Candidates) -> bool:
    return candidates.config.whiten_n_components > 0


def _uncertain(candidates: Candidates, k: int, criterion: tuple[int, bool]) -> Picks:
    statistics = candidates.logit_statistics()
    began = time.perf_counter()
    positions = pick_uncertain(statistics, candidates.pool, k, criterion)
    return Picks(positions, {"seconds": time.perf_counter() - began})


def _farthest(candidates: Candidates, x: torch.Tensor, k: int) -> Picks:
    began = time.perf_counter()
    try:
        x = whiten(x, candidates.config.whiten_n_components) if _whitens(candidates) else x
    except ValueError as error:
        raise InputError(f"config: {error}") from error
    picks = _of_kcenter(kcenter(x, k, candidates.pool, progress=True))
    return replace(picks, metrics=picks.metrics | {"seconds": time.perf_counter() - began})


def _of_kcenter(result: KCenterResult) -> Picks:
    metrics = {"seconds": result.seconds, "passes": result.passes, "backend": result.backend}
    return Picks(result.indices.tolist(), metrics, result.sqdist.tolist())
