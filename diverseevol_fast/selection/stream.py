"""KCenterStream: candidates are bounded while they are produced, so that selection needs no pass over them."""

import time
from typing import Any

import numpy as np
import torch

from .._common import distributed
from .._common.device_copies import copy_to_device
from .._common.dtypes import dtype_name
from ..ops.audit import BoundViolationError
from ..ops.masked_mean_pool import rows_in
from ..ops.min_sqdist import LARGEST_DIM, screen
from ..ops.pool_min_sqdist import queue_pool_min_sqdist
from . import bounds
from . import device_rows as device_rows
from .arguments import as_count, as_integers, as_radius, as_row_numbers, as_rows, as_store, physical_memory, shown
from .device_rows import choose_backends, row_mean
from .host_rows import rows_on
from .integrity import Arrived, CandidateError, values_changed
from .traversal import LARGEST_BLOCK, KCenterResult, Traversal, check_on_violation, read, warn_of_violation

Batch = tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]  # its flags, its candidates, what each flag says of one


class KCenterStream:
    """K-Center selection among candidates that arrive in batches, in any order.

        stream = KCenterStream(labelled_embeddings, n=number_of_candidates)
        for rows, batch in batches:
            stream.push(model(batch).last_hidden_state, batch["attention_mask"], rows=rows)
        result = stream.select(100)

    The picks are those of kcenter on the stored embeddings, with the labelled ones as centres. The work is done on the
    centres' device. On a GPU that holds the store, too, push does not wait for it, unless for cu_seqlens, which are
    checked: what is wrong with a candidate's values is said by select. The constructor waits, and select as kcenter.
    """

    def __init__(
        self,
        centers: Any,
        n: int,
        *,
        store: Any = None,
        exclude: Any = None,
        backend: str = "auto",
        on_violation: str = "raise",
        progress: bool = False,
    ):
        """Make room for n candidates.

        Args:
            centers: [M, D] embeddings of the rows already selected (not their numbers), M at least 1.
            n: how many candidates will come.
            store: where their embeddings are kept: a writable [n, D] numpy array, memory map or tensor; float32,
                bfloat16 or float16. Its values are what the picks are made from. In host memory, or on the centres'
                device. None: float32 on that device.
            exclude: which of the n are not candidates (numbers or a mask), such as the centres where the store holds
                them, too; they do not come and are never picked.
            backend: "auto", "native", "cuda", "triton" or "reference".
            on_violation: as kcenter.
            progress: show picks while selecting.

        Raises:
            TypeError, ValueError: as kcenter says of x.
        """
        check_on_violation(on_violation)
        self._on_violation = on_violation
        values = as_rows(centers, "centers").to(torch.float32).contiguous()
        if not torch.isfinite(values).all():
            raise ValueError("centers: expected finite values")
        if values.shape[1] >= LARGEST_DIM:
            raise ValueError(f"centers: expected fewer than {LARGEST_DIM} columns, for which bounds hold; use kcenter")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n: expected an integer of at least 1, got {shown(n)}")
        self.store = _new_store(n, values) if store is None else as_store(store)  # [n, D]
        if self.store.shape != (n, values.shape[1]):
            wanted = f"({shown(n)}, {values.shape[1]})"
            raise ValueError(f"store: expected shape {wanted}, got {tuple(self.store.shape)}")
        device = values.device
        if self.store.device.type != "cpu" and self.store.device != device:
            raise ValueError(f"store: expected host memory or {device}, as the centers are, got {self.store.device}")
        self.pushed = torch.zeros(n, dtype=torch.bool)
        self._unread: list[Batch] = []
        chosen = choose_backends(device, backend, self.store.dtype)
        rows = rows_on(self.store, device, chosen, None, len(values), LARGEST_BLOCK)
        self._backend = backend
        self._arrived = Arrived(n, self.store.dtype, device)
        self._changed: CandidateError | None = None  # bounds of changed values may have been kept: none can be trusted
        self._traversal = Traversal(
            rows, values[bounds.spread_first(len(values))], -1.0, progress, arrived=self._arrived
        )
        self._bounds = self._traversal.bounds
        self._bounds.offset = row_mean(values)
        self._first_centers = self._traversal.centers[: bounds.FIRST_CENTERS]
        self._bounds.all_seen = self._bounds.most_seen = len(self._first_centers)
        self._excluded = [] if exclude is None else as_row_numbers(exclude, n, "exclude")
        if self._excluded:
            numbers = copy_to_device(torch.tensor(self._excluded, dtype=torch.int64), device)
            self.pushed[self._excluded] = True
            self._bounds.exclude(numbers)
            self._bounds.seen.index_fill_(0, numbers, len(self._first_centers))
        self._candidates = n - len(self._excluded)

    def __repr__(self) -> str:
        came = int(self.pushed.sum()) - len(self._excluded)
        columns = f"{self.store.shape[1]} columns of {dtype_name(self.store.dtype)}"
        return f"KCenterStream({came} of {self._candidates} candidates, {columns}, {len(self.picks)} picked)"

    @property
    def picks(self) -> list[int]:
        """The candidates that were picked, in pick order."""
        return self._traversal.picks

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
            TypeError, ValueError: as masked_mean_pool says; a candidate that came before, or is not finite
                (CandidateError, which has its number).
        """
        places = self._places(rows, rows_in(hidden, cu_seqlens))
        given = {"cu_seqlens": cu_seqlens, "prefix_sum": prefix_sum, "prefix_len": prefix_len}
        return self._store(places, self.bound(hidden, mask, rows=places, **given))

    def push_embeddings(self, x: Any, *, rows: Any = None) -> torch.Tensor:
        """Bound a batch of embeddings [B, D]; returns what is stored. rows and errors as in push."""
        x = as_rows(x)
        places = self._places(rows, len(x))
        return self._store(places, self.bound_embeddings(x, rows=places))

    def bound(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        rows: Any,
        cu_seqlens: torch.Tensor | None = None,
        prefix_sum: torch.Tensor | None = None,
        prefix_len: int = 0,
    ) -> torch.Tensor:
        """As push, but the caller puts what is returned into the store, at any time before select."""
        count = rows_in(hidden, cu_seqlens)
        if hidden.shape[-1] != self.store.shape[1]:
            raise ValueError(f"hidden: expected {self.store.shape[1]} columns, got {hidden.shape[-1]}")
        places = self._places(rows, count)
        exact = self.store.dtype == torch.float32
        bound = self._no_bounds(count)
        pooled, flags = queue_pool_min_sqdist(
            hidden, mask, cu_seqlens=cu_seqlens, prefix_sum=prefix_sum, prefix_len=prefix_len,
            centers=self._first_centers if exact else self._first_centers[:1],  # bounds before rounding are of no use
            offset=self._bounds.offset, bound=bound, backend=self._backend,
        )  # fmt: skip
        limits = "mask" if cu_seqlens is None else "cu_seqlens"
        self._check(
            flags, places, f"{limits}: {{}} has no token to pool", "hidden: {} pools to a value that is not finite"
        )
        return self._keep(places, pooled, bound) if exact else self._bound_values(places, pooled)

    def bound_embeddings(self, x: Any, *, rows: Any) -> torch.Tensor:
        """As push_embeddings, but the caller puts what is returned into the store, unless it is there already."""
        x = as_rows(x)
        if x.shape[1] != self.store.shape[1]:
            raise ValueError(f"x: expected {self.store.shape[1]} columns, got {x.shape[1]}")
        return self._bound_values(self._places(rows, len(x)), x)

    def _bound_values(self, places: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        values = x.to(self._bounds.rows.device, self.store.dtype)
        bound, chosen = self._no_bounds(len(x)), self._bounds.rows.chosen["min_sqdist"]
        flag = screen(values, self._first_centers, self._bounds.offset, bound, None, chosen)
        self._check(flag, places, "x: {} holds a value that is not finite")
        return self._keep(places, values, bound)

    def share(self) -> None:
        """Every process of torch.distributed makes the same picks from now on, whichever candidates came to it.

        Called by all of them, when all candidates have come and stand in every process's store. This exchange of
        bounds and checksums is the only one: select needs none.

        Raises:
            ValueError: as select says of candidates.
        """
        raise_wrong(self._unread)
        self._unread.clear()
        came = distributed.total(self.pushed.to(torch.int32))
        self.pushed = came > 0
        distributed.lowest(self._bounds.bound)
        self._arrived.share()
        self._bounds.seen.fill_(len(self._first_centers))

    def select(self, k: int | None, *, radius: float | None = None) -> KCenterResult:
        """Pick k candidates; indices are their numbers. A second call goes on: its picks follow the first one's.

        Raises:
            TypeError, ValueError: as kcenter says of k and radius; candidates that have not come, or whose values are
                wrong and push has not said so: no picks can be had then. CandidateError: values in the store that are
                not those that were pushed, of a candidate that is compared exactly; others are not looked at.
            BoundViolationError: as kcenter says.
        """
        began = time.perf_counter()
        missing = int((~self.pushed).sum())
        if missing:
            raise ValueError(f"select: {missing} of {len(self.pushed)} candidates have not been pushed")
        raise_wrong(self._unread)
        self._unread.clear()
        if self._changed is not None:
            raise self._changed
        traversal = self._traversal
        before = len(traversal.picks)
        self._bounds.rows_read = 0
        traversal.stop = as_radius(radius)
        wanted = as_count(k, self._candidates - before, radius)
        try:
            traversal.run_bounded(wanted)
        except CandidateError as error:
            self._changed = error
            raise
        except BoundViolationError as error:
            if self._on_violation == "raise":
                raise
            warn_of_violation(error)
            traversal = self._start_anew(before)
            traversal.run_bounded(wanted)
        result = traversal.result([], time.perf_counter() - began)
        return KCenterResult(
            result.indices[before:], result.sqdist[before:], result.passes, result.backend, result.seconds
        )

    def check_centers(self, values: torch.Tensor, rows: list[int]) -> None:
        """Hold the centres that this was made with against the same rows of a store: values [M, D], of these rows.

        Raises:
            CandidateError: for the first that is not what it was.
        """
        order = bounds.spread_first(len(rows))
        given = self._traversal.centers[: len(rows)]
        changed = (values[order].to(given.device, torch.float32) != given).any(dim=1)
        if changed.any():
            place = min(order[i] for i in changed.nonzero()[:, 0].tolist())
            raise values_changed(rows[place], values[place])

    def _start_anew(self, count: int) -> Traversal:
        """The traversal after its first `count` picks, with bounds of the reference."""
        old = self._traversal
        chosen = choose_backends(old.rows.device, "reference", self.store.dtype)
        rows = rows_on(self.store, old.rows.device, chosen, None, len(old.centers), LARGEST_BLOCK)
        centers = old.centers[: len(old.centers) - len(old.picks) + count]
        self._traversal = Traversal(rows, centers, old.stop, old.progress, arrived=self._arrived)
        self._traversal.picks, self._traversal.sqdist = old.picks[:count], old.sqdist[:count]
        self._bounds = self._traversal.bounds
        left_out = torch.tensor(self._excluded + old.picks[:count], dtype=torch.int64)
        self._bounds.exclude(copy_to_device(left_out, rows.device))
        self._bounds.screen(centers)
        return self._traversal

    def _places(self, rows: Any, count: int) -> torch.Tensor:
        """The candidates that a batch holds, as int64 [B]."""
        if rows is None:
            first = int(self.pushed.sum())
            if first + count > len(self.pushed):
                raise ValueError(f"n: {len(self.pushed)} candidates were announced, and {first + count} have come")
            rows = range(first, first + count)
        rows = as_integers(rows, "rows")
        if rows.dtype == np.bool_:
            raise TypeError("rows: expected integers, got a mask")
        places = torch.as_tensor(rows.astype(np.int64))
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

    def _no_bounds(self, count: int) -> torch.Tensor:
        return torch.full((count,), float("inf"), device=self._bounds.rows.device)

    def _check(self, flags: torch.Tensor, places: torch.Tensor, *words: str) -> None:
        """Say what is wrong with a batch, now or, where that would be a wait, in select.

        flags: int64, for each of `words` the first row of the batch that it is true of, or -1.
        """
        batch = (flags, places, words)
        if not device_rows.waits_are_free(self._bounds.rows.device):
            self._unread.append(batch)
        else:
            raise_wrong([batch])

    def _keep(self, places: torch.Tensor, values: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        numbers = copy_to_device(places, self._bounds.rows.device)
        self._bounds.keep(numbers, bound, len(self._first_centers))
        self._arrived.keep(numbers, values)
        self.pushed[places] = True
        return values

    def _store(self, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        places = places if self.store.device.type == "cpu" else copy_to_device(places, self.store.device)
        self.store[places] = values.to(self.store.device)
        return values


def _new_store(n: int, centers: torch.Tensor) -> torch.Tensor:
    """[n, D] float32 where the centers [M, D] are.

    Raises:
        ValueError: it is larger than the memory.
    """
    size = 4 * n * centers.shape[1]
    memory = physical_memory()
    if centers.device.type == "cpu" and size > memory:
        raise ValueError(f"n: {shown(n)} candidates need more than the {memory / 1e9:.0f} GB of memory; give a store")
    return torch.empty((n, centers.shape[1]), dtype=torch.float32, device=centers.device)


def raise_wrong(batches: list[Batch]) -> None:
    """Raises CandidateError for the first candidate that a flag is about; flags are rows of the batch, -1 for none."""
    if not batches:
        return
    found = iter(read(torch.cat([flags for flags, _, _ in batches])).tolist())
    for _, places, words in batches:
        for sentence in words:
            row = next(found)
            if row >= 0:
                place = int(places[row])
                raise CandidateError(sentence.format(f"candidate {place}"), place)
