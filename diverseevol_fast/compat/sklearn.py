"""A scikit-learn estimator that selects rows, derived from scikit-learn's base class."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils.validation import validate_data

from ._adapter import check_metric, pick


class KCenterSelector(BaseEstimator):
    """Selects rows by K-Center greedy (farthest-first traversal, Gonzalez 1985).

    Parameters
    ----------
    n_samples : int or float, default=0.1
        How many rows to select, or, below 1, which share of them, at least one row.
    metric : {"euclidean", "l2", "cosine"}, default="euclidean"
        Distance between rows. For "cosine", rows are scaled to length 1.
    random_state : int, RandomState instance or None, default=None
        It draws the first row where none is selected yet.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_selected,)
        Indices of the selected rows, in pick order.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen during fit, where X has them.
    """

    def __init__(self, n_samples: float = 0.1, *, metric: str = "euclidean", random_state: Any = None):
        self.n_samples = n_samples
        self.metric = metric
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, selected: Any = None) -> "KCenterSelector":
        """Select rows of X.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            It is rounded to float32; the selection is exact for the rounded values.
        y : ignored
        selected : sequence of int or boolean mask, default=None
            Rows that are centers already; they are not among sample_indices_.
        """
        X = validate_data(self, X, dtype=np.float32)
        check_metric(self.metric)
        count = self._count(len(X))
        first = int(check_random_state(self.random_state).randint(len(X)))
        known = [] if selected is None else selected
        picks = pick(X, count, known, metric=self.metric, first=first, name="selected")
        self.sample_indices_ = np.array(picks, dtype=np.int64)
        return self

    def select(self, X: Any, y: Any = None, *, selected: Any = None) -> Any:
        """Fit, and return the selected rows of X, or with y those of both, in the type of X and y."""
        self.fit(X, selected=selected)
        X, y = indexable(X, y)
        chosen = _safe_indexing(X, self.sample_indices_)
        return chosen if y is None else (chosen, _safe_indexing(y, self.sample_indices_))

    def _count(self, rows: int) -> int:
        n = self.n_samples
        if isinstance(n, Integral) and not isinstance(n, bool) and 1 <= n <= rows:
            return int(n)
        if isinstance(n, Real) and not isinstance(n, Integral) and 0 < n < 1:
            return max(1, int(n * rows))
        raise ValueError(
            f"n_samples: expected 1 to {rows}, or a share between 0 and 1, because X has {rows} samples; got {n!r}"
        )
