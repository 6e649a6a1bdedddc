"""The public DiverseEvol's `KCenterSampling`."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..selection.whitening import whiten
from ._adapter import pick


class KCenterSampling:
    """Mixin before a class that has get_embeddings_all_data, labeled_idx and n_pool: `(KCenterSampling, Schedule)`."""

    labeled_idx: torch.Tensor  # [n_pool], true for the rows of the pool
    n_pool: int
    whiten_n_components: int
    get_embeddings_all_data: Callable[..., list[torch.Tensor]]

    def query(self, rd: int, n: int, use_model_path: str) -> torch.Tensor:
        """The rows that K-Center greedy adds to the pool; neither the pool nor the embeddings are changed.

        Embeddings are whitened first where whiten_n_components is above 0.

        Args:
            rd: the round whose model embeds.
            n: how many rows to add.
            use_model_path: the path of that model.

        Returns:
            [n] int64 on the CPU, ascending: the same set as the target's.

        Raises:
            ValueError: an empty pool, a pool of another size, or as kcenter does.
        """
        if len(self.labeled_idx) != self.n_pool:
            raise ValueError(f"labeled_idx: expected n_pool = {self.n_pool} entries, got {len(self.labeled_idx)}")
        centers = self.labeled_idx.bool().nonzero()[:, 0].tolist()
        if not centers:
            raise ValueError("query: the pool is empty; call initialize_labeled_data first")
        x = torch.stack(self.get_embeddings_all_data(rd=rd, use_model_path=use_model_path))  # [N, D]
        if getattr(self, "whiten_n_components", -1) > 0:
            x = whiten(x, self.whiten_n_components)
        return torch.tensor(sorted(pick(x, n, centers)), dtype=torch.int64)


def patch(schedule: Any = None) -> None:
    """Replace the query of a running copy of DiverseEvol.

    Args:
        schedule: its KCenterSampling; None: that of `evol_schedules`, which Python finds when it runs in its folder.

    Raises:
        ImportError: no evol_schedules there.
        TypeError: not a class with get_embeddings_all_data and query.
    """
    if schedule is None:
        try:
            schedule = importlib.import_module("evol_schedules").KCenterSampling
        except ModuleNotFoundError as error:
            if error.name != "evol_schedules":
                raise
            raise ImportError(
                "evol_schedules: not found; call patch() from DiverseEvol's folder, or give its KCenterSampling"
            ) from error
    if not (isinstance(schedule, type) and hasattr(schedule, "query") and hasattr(schedule, "get_embeddings_all_data")):
        raise TypeError(f"schedule: expected a class with query and get_embeddings_all_data, got {schedule!r}")
    schedule.query = KCenterSampling.query
