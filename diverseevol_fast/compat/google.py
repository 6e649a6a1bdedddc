"""google/active-learning's `kCenterGreedy`."""

import logging
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._adapter import check_metric, pick

log = logging.getLogger("diverseevol_fast")


class kCenterGreedy:  # noqa: N801 (the target's name)
    """K-Center greedy over X, or over a model's transform of it.

    The picks are those of the target: sequences are equal but for candidates whose distances its floating point cannot
    tell apart. Where a later call without a model has more than one new center, the target's running minimum is
    broken (it takes the shape of the distances); here it is the minimum.
    """

    def __init__(self, X: np.ndarray, y: Any, seed: Any, metric: str = "euclidean"):
        """
        Args:
            X: [N, ...] samples; flattened to rows when no model transforms them.
            y, seed: stored, not used, as in the target.
            metric: "euclidean", "l2" or "cosine".

        Raises:
            ValueError: another metric.
        """
        check_metric(metric)
        self.X, self.y, self.seed, self.metric = X, y, seed, metric
        self.name = "kcenter"
        self.flat_X = X.reshape(len(X), -1) if X.ndim > 2 else X
        self.features = self.flat_X
        self.n_obs = len(X)
        self.already_selected: Iterable[int] = []
        self._centers: list[int] = []

    def select_batch_(self, model: Any, already_selected: Iterable[int], N: int, **kwargs: Any) -> list[int]:
        """N rows in pick order, none of them in already_selected.

        Without a center row 0 comes first, as in the target: that draws a row only where its own `already_selected` is
        None, but it is a list from the beginning, and the argmax of no distances is 0. Distances are between rows
        of model.transform(X) where that works; elsewhere between rows of X, and then earlier picks stay centers.

        Raises:
            TypeError, ValueError: as kcenter does, also when fewer than N rows remain; already_selected does not hold
                indices (for a boolean mask, pass np.flatnonzero of it).
        """
        transformed = self._transformed(model)
        known = [*(() if transformed is not None else self._centers), *_indices(already_selected)]
        self.features = self.flat_X if transformed is None else transformed
        picks = pick(self.features, N, known, metric=self.metric, first=0, name="already_selected")
        self._centers = known + picks
        self.already_selected = already_selected
        return picks

    def select_batch(self, **kwargs: Any) -> list[int]:
        """As select_batch_, the way run_experiment calls it."""
        return self.select_batch_(**kwargs)

    def to_dict(self) -> None:
        """Adds nothing to the results of an experiment, as in the target."""

    def _transformed(self, model: Any) -> np.ndarray | None:
        """The model's transform of X; None, as in the target, where it has none or that fails (which is logged)."""
        if not hasattr(model, "transform"):
            return None
        try:
            return model.transform(self.X)
        except Exception as error:  # noqa: BLE001 (the target goes on with X after any error)
            log.warning("kCenterGreedy: model.transform failed, X itself is used: %s: %s", type(error).__name__, error)
            return None


def _indices(already_selected: Any) -> list[int]:
    try:
        indices = list(already_selected)
        if any(isinstance(index, bool | np.bool_) for index in indices):
            raise TypeError("a boolean is none")
        return [operator.index(index) for index in indices]
    except TypeError as error:
        raise TypeError(f"already_selected: expected row numbers: {error}") from error
