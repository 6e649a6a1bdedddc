"""The common part of the adapters: it prepares rows of any kind for kcenter, and returns n picks in pick order."""

from typing import Any

import numpy as np
import torch

from ..selection.arguments import as_indices, as_rows
from ..selection.traversal import kcenter

METRICS = {"euclidean": False, "l2": False, "cosine": True}  # whether rows are scaled to length 1


def check_metric(metric: Any) -> None:
    """
    Raises:
        ValueError: a metric that is not in METRICS.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: expected 'euclidean', 'l2' or 'cosine', got {metric!r}; no other is supported")


def pick(
    x: Any, n: int, centers: Any, *, metric: str = "euclidean", first: int = 0, name: str = "centers"
) -> list[int]:
    """n rows by K-Center greedy, in pick order.

    Args:
        x: [N, D], as kcenter takes it.
        n: how many rows to pick.
        centers: the rows that are centers already, as indices (repeated ones count once) or a boolean mask [N].
        metric: "euclidean" (or "l2"), or "cosine": Euclidean between rows scaled to length 1, which orders pairs as the
            cosine distance does.
        first: the row that is picked first where there is no center.
        name: the name of `centers` in messages.

    Raises:
        TypeError, ValueError: as kcenter does; another metric; for "cosine", a row of zeros.
    """
    check_metric(metric)
    rows = as_rows(x)
    if METRICS[metric]:
        rows = _unit_rows(rows)
    array = np.asarray(centers)
    known = as_indices(array if array.dtype == np.bool_ else np.unique(array), len(rows), name)
    started = [] if known or n == 0 else [first]
    return started + kcenter(rows, n - len(started), known or started or None, progress=True).indices.tolist()


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """[N, D] float32, each row of x divided by its length in float64."""
    unit = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for start in range(0, len(x), 4096):  # x is never whole in float64
        part = x[start : start + 4096].to(torch.float64)
        lengths = part.norm(dim=1, keepdim=True)
        if (lengths == 0).any():
            row = start + int((lengths == 0).nonzero()[0, 0])
            raise ValueError(
                f"x: row {row} is all zeros and has no direction, which metric='cosine' needs; leave it out"
            )
        unit[start : start + 4096] = part / lengths
    return unit
