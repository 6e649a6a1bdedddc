"""KCenterStream: each batch of candidates is bounded as it comes, so that selection needs no pass over the store."""

import time
from typing import Any

import numpy as np
import torch

from .._common import distributed
from .._common.device_copies import copy_to_device
from .._common.dtypes import dtype_name
from ..ops.audit import BoundViolationError
from ..ops.masked_mean_pool import checked_states, rows_in
from ..ops.min_sqdist import LARGEST_DIM, check_screen, screen
from ..ops.pool_min_sqdist import launch_pool_min_sqdist
from . import bounds, device_rows
from .arguments import as_count, as_indices, as_integers, as_radius, as_rows, as_store, physical_memory, shown
from .device_rows import choose_backends, row_mean
from .host_rows import rows_on
from .integrity import CandidateError, Checksums, values_changed
from .traversal import LARGEST_BLOCK, KCenterResult, Traversal, check_on_violation, read, warn_of_violation

Batch = tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]  # flags, candidates, and a message for each flag


class KCenterStream:
    """K-Center selection among candidates that arrive in batches, in any order.

        stream = KCenterStream(labelled_embeddings, n=number_of_candidates)
        for rows, batch in batches:
            stream.push(model(batch).last_hidden_state, batch["attention_mask"], rows=rows)
        result = stream.select(100)

    The picks are those of kcenter on the stored embeddings, with the labelled ones as centers. The centers' device does
    the work. Where that is a GPU, and holds the store, push waits for it only to check cu_seqlens; select then raises
    the errors about candidates' values. The constructor waits, and so does select, as kcenter does.
    """

    @torch.inference_mode(False)  # tensors made here are changed by calls inside and outside of inference mode
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
            centers: [M, D] embeddings of the rows already selected (not their indices), M at least 1.
            n: how many candidates will come.
            store: a writable [n, D] numpy array, memory map or tensor for their embeddings; float32, bfloat16 or
                float16; in host memory, or on the centers' device. Selection uses its values. None: float32 on that
                device.
            exclude: which of the n are not candidates (indices or a mask), such as centers that the store holds too;
                they are not pushed and never picked.
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
        self._unread: list[Batch] = []  # batches whose flags the host has not read
        chosen = choose_backends(device, backend, self.store.dtype)
        rows = rows_on(self.store, device, chosen, None, len(values), LARGEST_BLOCK)
        self._backend = backend
        self._checksums = Checksums(n, self.store.dtype, device)
        self._changed: CandidateError | None = None  # after changed values no bound can be trusted
        self._traversal = Traversal(
            rows, values[bounds.spread_first(len(values))], -1.0, progress, checksums=self._checksums
        )
        self._bounds = self._traversal.bounds
        self._bounds.offset = row_mean(values)
        self._first_centers = self._traversal.centers[: bounds.FIRST_CENTERS]
        self._bounds.min_centers_applied = self._bounds.max_centers_applied = len(self._first_centers)
        self._excluded = [] if exclude is None else as_indices(exclude, n, "exclude")
        if self._excluded:
            excluded = copy_to_device(torch.tensor(self._excluded, dtype=torch.int64), device)
            self.pushed[self._excluded] = True
            self._bounds.exclude(excluded)
            self._bounds.centers_applied.index_fill_(0, excluded, len(self._first_centers))
        self._candidates = n - len(self._excluded)

    def __repr__(self) -> str:
        pushed = int(self.pushed.sum()) - len(self._excluded)
        columns = f"{self.store.shape[1]} columns of {dtype_name(self.store.dtype)}"
        return f"KCenterStream({pushed} of {self._candidates} candidates, {columns}, {len(self.picks)} picked)"

    @property
    def picks(self) -> list[int]:
        """The indices of the picked candidates, in pick order."""
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
        """Pool a batch's token states as masked_mean_pool does, bound and store the result; returns the stored values.

        rows: the candidates' indices in [0, n); None: the next ones in order.

        Raises:
            TypeError, ValueError: as masked_mean_pool says; a candidate that was pushed before; a candidate
                that is not finite (CandidateError, which has its index).
        """
        indices = self._indices(rows, rows_in(hidden, cu_seqlens))
        values = self.bound(
            hidden, mask, rows=indices, cu_seqlens=cu_seqlens, prefix_sum=prefix_sum, prefix_len=prefix_len
        )
        return self._store(indices, values)

    def push_embeddings(self, x: Any, *, rows: Any = None) -> torch.Tensor:
        """Bound and store a batch of embeddings [B, D]; returns the stored values. rows and errors as in push."""
        x = as_rows(x)
        indices = self._indices(rows, len(x))
        return self._store(indices, self.bound_embeddings(x, rows=indices))

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
        """As push, but the caller puts the returned values into the store, at any time before select."""
        count = rows_in(hidden, cu_seqlens)
        if hidden.shape[-1] != self.store.shape[1]:
            raise ValueError(f"hidden: expected {self.store.shape[1]} columns, got {hidden.shape[-1]}")
        indices = self._indices(rows, count)
        exact = self.store.dtype == torch.float32
        bound = self._new_bounds(count)
        states = checked_states(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
        # The values are bounded again once they are rounded: for that, one center does as well here.
        centers, offset = self._first_centers if exact else self._first_centers[:1], self._bounds.offset
        check_screen(count, hidden.shape[-1], hidden.device, centers, offset, bound)
        pooled, flags = launch_pool_min_sqdist(states, centers, offset, bound, self._backend)
        limits = "mask" if cu_seqlens is None else "cu_seqlens"
        messages = f"{limits}: {{}} has no token to pool", "hidden: {} pools to a value that is not finite"
        self._check(flags, indices, *messages)
        return self._record(indices, pooled, bound) if exact else self._bound_values(indices, pooled)

    def bound_embeddings(self, x: Any, *, rows: Any) -> torch.Tensor:
        """As push_embeddings, but the caller puts the returned values into the store, unless it has them already."""
        x = as_rows(x)
        if x.shape[1] != self.store.shape[1]:
            raise ValueError(f"x: expected {self.store.shape[1]} columns, got {x.shape[1]}")
        return self._bound_values(self._indices(rows, len(x)), x)

    def _bound_values(self, indices: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        values = x.to(self._bounds.rows.device, self.store.dtype)
        bound, chosen = self._new_bounds(len(x)), self._bounds.rows.chosen["min_sqdist"]
        flag = screen(values, self._first_centers, self._bounds.offset, bound, None, chosen)
        self._check(flag, indices, "x: {} holds a value that is not finite")
        return self._record(indices, values, bound)

    def share(self) -> None:
        """Exchange bounds and checksums, so that every process of torch.distributed makes the same picks from now on.

        All processes call this, when all candidates have been pushed, each to one of them, and every process's store
        holds all values. select needs no further exchange.

        Raises:
            ValueError: as select says of candidates.
        """
        raise_wrong(self._unread)
        self._unread.clear()
        self.pushed = distributed.total(self.pushed.to(torch.int32)) > 0
        distributed.lowest(self._bounds.bound)
        self._checksums.share()
        self._bounds.centers_applied.fill_(len(self._first_centers))

    def select(self, k: int | None, *, radius: float | None = None) -> KCenterResult:
        """Pick k candidates. A second call goes on: its picks follow those of the first.

        Raises:
            TypeError, ValueError: as kcenter says of k and radius; candidates that have not been pushed, or whose
                values are wrong where push has not raised that. CandidateError: the store's values of a candidate that
                is compared exactly are not those that were pushed; other candidates are not checked.
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
        """Compare the constructor's centers with `values` [M, D], which a store holds at `rows` now.

        Raises:
            CandidateError: for the first row whose values have changed.
        """
        order = bounds.spread_first(len(rows))
        centers = self._traversal.centers[: len(rows)]
        changed = (values[order].to(centers.device, torch.float32) != centers).any(dim=1)
        if changed.any():
            first = min(order[i] for i in changed.nonzero()[:, 0].tolist())
            raise values_changed(rows[first], values[first])

    def _start_anew(self, count: int) -> Traversal:
        """The traversal after its first `count` picks, with bounds from the reference."""
        old = self._traversal
        chosen = choose_backends(old.rows.device, "reference", self.store.dtype)
        rows = rows_on(self.store, old.rows.device, chosen, None, len(old.centers), LARGEST_BLOCK)
        centers = old.centers[: len(old.centers) - len(old.picks) + count]
        self._traversal = Traversal(rows, centers, old.stop, old.progress, checksums=self._checksums)
        self._traversal.picks, self._traversal.sqdist = old.picks[:count], old.sqdist[:count]
        self._bounds = self._traversal.bounds
        excluded = torch.tensor(self._excluded + old.picks[:count], dtype=torch.int64)
        self._bounds.exclude(copy_to_device(excluded, rows.device))
        self._bounds.screen(centers)
        return self._traversal

    def _indices(self, rows: Any, count: int) -> torch.Tensor:
        """The indices of a batch's candidates, int64 [B] in host memory."""
        if rows is None:
            first = int(self.pushed.sum())
            if first + count > len(self.pushed):
                raise ValueError(f"n: {len(self.pushed)} candidates were announced, and {first + count} have come")
            rows = range(first, first + count)
        rows = as_integers(rows, "rows")
        if rows.dtype == np.bool_:
            raise TypeError("rows: expected integers, got a mask")
        indices = torch.as_tensor(rows.astype(np.int64))
        if indices.shape != (count,):
            raise ValueError(f"rows: expected {count} numbers, got shape {tuple(indices.shape)}")
        for index in indices.tolist():
            if not 0 <= index < len(self.pushed):
                raise ValueError(f"rows: expected numbers from 0 to {len(self.pushed) - 1}, got {index}")
        distinct, counts = indices.unique(return_counts=True)
        repeated = distinct[(counts > 1) | self.pushed[distinct]]
        if len(repeated):
            raise ValueError(f"rows: candidate {int(repeated[0])} was pushed twice")
        return indices

    def _new_bounds(self, count: int) -> torch.Tensor:
        return torch.full((count,), float("inf"), device=self._bounds.rows.device)

    def _check(self, flags: torch.Tensor, indices: torch.Tensor, *messages: str) -> None:
        """Raise what is wrong with a batch: now, or in select where reading the flags would be a wait.

        flags: int64, for each message the first row of the batch that it is about, or -1.
        """
        batch = (flags, indices, messages)
        if device_rows.is_synchronous(self._bounds.rows.device):
            raise_wrong([batch])
        else:
            self._unread.append(batch)

    def _record(self, indices: torch.Tensor, values: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        on_device = copy_to_device(indices, self._bounds.rows.device)
        self._bounds.record(on_device, bound, len(self._first_centers))
        self._checksums.record(on_device, values)
        self.pushed[indices] = True
        return values

    def _store(self, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        indices = indices if self.store.device.type == "cpu" else copy_to_device(indices, self.store.device)
        self.store[indices] = values.to(self.store.device)
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
    """Raises CandidateError for the first candidate that a flag names; flags are rows of the batch, -1 for none."""
    if not batches:
        return
    flags = iter(read(torch.cat([flags for flags, _, _ in batches])).tolist())
    for _, indices, messages in batches:
        for message in messages:
            row = next(flags)
            if row >= 0:
                index = int(indices[row])
                raise CandidateError(message.format(f"candidate {index}"), index)
