"""DeepAL's `KCenterGreedy`."""

from typing import Any

import numpy as np

from ._adapter import pick


class KCenterGreedy:
    """A query strategy over a DeepAL data set and net; `query` also works as a method of DeepAL's own class."""

    def __init__(self, dataset: Any, net: Any):
        self.dataset, self.net = dataset, net

    def query(self, n: int) -> np.ndarray:
        """The rows to label: [n] int64, ascending, the same set as DeepAL's; the data set's labels do not change.

        Raises:
            TypeError, ValueError: as kcenter does; no row is labelled yet; not as many embeddings as rows.
        """
        labelled, data = self.dataset.get_train_data()
        labelled = np.asarray(labelled, dtype=bool)
        if not labelled.any():
            raise ValueError("KCenterGreedy: no row is labelled yet; call dataset.initialize_labels first")
        return np.sort(np.array(pick(self.get_embeddings(data), n, labelled, name="labelled"), dtype=np.int64))

    def get_embeddings(self, data: Any) -> Any:
        """[N, D], of every row."""
        return self.net.get_embeddings(data)
