"""Least confidence, margin and entropy: the rows of whose tokens the model is least sure."""

import torch

# By the column of a row's mean logit statistics (ops.LogitStats): which end is uncertain.
LOWEST_LARGEST, LOWEST_MARGIN, HIGHEST_ENTROPY = (0, False), (1, False), (2, True)


def pick_uncertain(statistics: torch.Tensor, pool: list[int], k: int, criterion: tuple[int, bool]) -> list[int]:
    """The k rows outside the pool of which the model is least sure, that one first; the lowest row on ties.

    statistics [N, 3]: each row's mean over its tokens of the largest logit, its margin over the second largest, and
    the entropy in nats. The baselines of DiverseEvol (arXiv 2311.08182, section 3).
    """
    column, descending = criterion
    values = statistics[:, column].clone()
    values[pool] = -float("inf") if descending else float("inf")
    return torch.argsort(values, descending=descending, stable=True)[:k].tolist()
