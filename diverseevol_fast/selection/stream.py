"""KCenterStream: candidates are bounded while they are produced, so that selection needs no pass over them."""

import time
from typing import Any

import numpy as np
import torch

from ..ops import backends, min_sqdist, pool_min_sqdist
from ..ops.pooling import masked_mean_pool
from .arguments import as_count, as_radius, as_rows
from .bounds import FIRST_CENTERS, row_mean, spread_first
from .traversal import LARGEST_DIM, KCenterResult, Traversal


class KCenterStream:
    """K-Center selection among candidates that arrive in batches, in any order.

        stream = KCenterStream(labelled_embeddings, n=number_of_candidates)
        for rows, batch in batches:
            stream.push(model(batch).last_hidden_state, batch["attention_mask"], rows=rows)
        result = stream.select(100)

    The picks are those of kcenter on the stored embeddings, with the labelled ones as centres.
    """

    def __init__(self, centers: Any, n: int, *, store: Any = None, backend: str = "auto", progress: bool = False):
        """Make room for n candidates.

        Args:
            centers: [M, D] embeddings of the rows already selected (not their numbers), M at least 1.
            n: how many candidates will come.
            store: where their embeddings are kept: a writable [n, D] numpy array, memory map or tensor; float32,
                bfloat16 or float16. Its values are what the picks are made from. None: float32 in memory.
            backend: "auto", "native" or "reference".
            progress: show picks while selecting.

        Raises:
            TypeError, ValueError: as kcenter says of x.
        """
        values = as_rows(centers, "centers").to(torch.float32).contiguous()
        if not torch.isfinite(values).all():
            raise ValueError("centers: expected finite values")
        if values.shape[1] >= LARGEST_DIM:
            raise ValueError(f"centers: expected fewer than {LARGEST_DIM} columns, for which bounds hold; use kcenter")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n: expected an integer of at least 1, got {n!r}")
        if store is None:
            store = torch.empty((n, values.shape[1]), dtype=torch.float32, device=values.device)
        elif isinstance(store, np.ndarray) and not store.flags.writeable:
            raise ValueError("store: expected a writable array")
        self.store = as_rows(store, "store")  # [n, D]
        if self.store.shape != (n, values.shape[1]):
            raise ValueError(f"store: expected shape {(n, values.shape[1])}, got {tuple(self.store.shape)}")
        self.pushed = torch.zeros(n, dtype=torch.bool)
        chosen = backends.choose(values.device.type, backend, "pool_min_sqdist")
        self._traversal = Traversal(self.store, values[spread_first(len(values))], chosen, -1.0, progress)
        self._bounds = self._traversal.bounds
        self._bounds.offset = row_mean(values)
        self._first_centers = self._traversal.centers[:FIRST_CENTERS]

    def push(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        rows: Any = None,
        cu_seqlens: torch.Tensor | None = None,
        prefix_sum: torch.Tensor | None = None,
        prefix_len: int = 0,
    ) -> torch.Tensor:
        """Pool a batch's token states (as masked_mean_pool does) and bound it, in one call; returns what is stored.

        rows: which candidates these are, numbers in [0, n); None: the next ones in order.

        Raises:
            TypeError, ValueError: as masked_mean_pool says; a candidate that came before, or is not finite.
        """
        given = {"cu_seqlens": cu_seqlens, "prefix_sum": prefix_sum, "prefix_len": prefix_len}
        backend = self._bounds.backend
        if self.store.dtype != torch.float32:
            return self.push_embeddings(masked_mean_pool(hidden, mask, **given, backend=backend), rows=rows)
        if hidden.shape[-1] != self.store.shape[1]:
            raise ValueError(f"hidden: expected {self.store.shape[1]} columns, got {hidden.shape[-1]}")
        count = len(hidden) if cu_seqlens is None else len(cu_seqlens) - 1
        places = self._places(rows, count)
        bound = torch.full((count,), float("inf"), device=self.store.device)
        pooled = pool_min_sqdist(
            hidden, mask, **given, backend=backend,
            centers=self._first_centers, offset=self._bounds.offset, bound=bound,
        )  # fmt: skip
        return self._keep(places, pooled, bound)

    def push_embeddings(self, x: Any, *, rows: Any = None) -> torch.Tensor:
        """Bound a batch of embeddings [B, D]; returns what is stored. rows and errors as in push."""
        x = as_rows(x)
        if x.shape[1] != self.store.shape[1]:
            raise ValueError(f"x: expected {self.store.shape[1]} columns, got {x.shape[1]}")
        places = self._places(rows, len(x))
        values = x.to(self.store.dtype)
        bound = torch.full((len(x),), float("inf"), device=self.store.device)
        min_sqdist(values, self._first_centers, self._bounds.offset, bound, backend=self._bounds.backend)
        return self._keep(places, values, bound)

    def select(self, k: int | None, *, radius: float | None = None) -> KCenterResult:
        """Pick k candidates; indices are their numbers. A second call goes on: its picks follow the first one's.

        Raises:
            TypeError, ValueError: as kcenter says of k and radius; candidates that have not come.
        """
        began = time.perf_counter()
        missing = int((~self.pushed).sum())
        if missing:
            raise ValueError(f"select: {missing} of {len(self.pushed)} candidates have not been pushed")
        traversal = self._traversal
        before = len(traversal.picks)
        self._bounds.rows_read = 0
        traversal.stop = as_radius(radius)
        traversal.run_bounded(as_count(k, len(self.pushed) - before, radius))
        result = traversal.result([], time.perf_counter() - began)
        return KCenterResult(
            result.indices[before:], result.sqdist[before:], result.passes, result.backend, result.seconds
        )

    def _places(self, rows: Any, count: int) -> torch.Tensor:
        """The candidates that a batch holds, as int64 [B]."""
        if rows is None:
            first = int(self.pushed.sum())
            if first + count > len(self.pushed):
                raise ValueError(f"n: {len(self.pushed)} candidates were announced, and {first + count} have come")
            rows = range(first, first + count)
        places = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        if places.shape != (count,):
            raise ValueError(f"rows: expected {count} numbers, got shape {tuple(places.shape)}")
        for place in places.tolist():
            if not 0 <= place < len(self.pushed):
                raise ValueError(f"rows: expected numbers from 0 to {len(self.pushed) - 1}, got {place}")
        numbers, times = places.unique(return_counts=True)
        again = numbers[(times > 1) | self.pushed[numbers]]
        if len(again):
            raise ValueError(f"rows: candidate {int(again[0])} was pushed twice")
        return places

    def _keep(self, places: torch.Tensor, values: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        self.store[places] = values
        self._bounds.keep(places, bound, len(self._first_centers))
        self.pushed[places] = True
        return values
