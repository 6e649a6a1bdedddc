"""What the adapters have in common: rows of any kind made ready for kcenter, and n picks in pick order."""

from typing import Any

import numpy as np
import torch

from ..selection.arguments import as_row_numbers, as_rows
from ..selection.traversal import kcenter

METRICS = {"euclidean": False, "l2": False, "cosine": True}  # whether the rows are brought to length 1


def check_metric(metric: Any) -> None:
    """
    Raises:
        ValueError: neither Euclidean nor cosine.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: expected 'euclidean', 'l2' or 'cosine', got {metric!r}; no other is supported")


def pick(
    x: Any, n: int, centers: Any, *, metric: str = "euclidean", first: int | None = None, name: str = "centers"
) -> list[int]:
    """n rows by K-Center greedy, in pick order.

    Args:
        x: [N, D], as kcenter takes it.
        n: how many rows to pick.
        centers: the rows that are centres already, as row numbers (repeated ones count once) or a boolean mask [N].
        metric: "euclidean" (or "l2"), or "cosine": Euclidean between rows brought to length 1, which orders pairs as
            the cosine distance does.
        first: with no centres, the row that is picked first.
        name: what messages call `centers`.

    Raises:
        TypeError, ValueError: as kcenter does; another metric; for "cosine", a row of zeros.
    """
    check_metric(metric)
    rows = as_rows(x)
    if METRICS[metric]:
        rows = _unit_rows(rows)
    given = np.asarray(centers)
    known = as_row_numbers(given if given.dtype == np.bool_ else np.unique(given), len(rows), name)
    started = [] if known or n == 0 else [first]
    return started + kcenter(rows, n - len(started), known or started or None, progress=True).indices.tolist()


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """[N, D] float32, each row of x divided by its length in float64."""
    unit = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for start in range(0, len(x), 4096):  # so that x is never held whole in float64
        part = x[start : start + 4096].to(torch.float64)
        lengths = part.norm(dim=1, keepdim=True)
        if (lengths == 0).any():
            row = start + int((lengths == 0).nonzero()[0, 0])
            raise ValueError(
                f"x: row {row} is all zeros and has no direction, which metric='cosine' needs; leave it out"
            )
        unit[start : start + 4096] = part / lengths
    return unit
