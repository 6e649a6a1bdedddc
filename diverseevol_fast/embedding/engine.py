"""Runs rows through a model batch by batch: pools and bounds them, and stores a batch while the next one runs."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .._common import distributed
from .._common.device_copies import copy_to_host
from .._common.dtypes import dtype_name
from .._common.errors import RunError
from .._common.progress import Progress
from ..data.batches import token_budget_batches
from ..data.tokens import Tokens
from ..models import throughput
from ..models.token_budget import TokenBudget
from ..ops.masked_mean_pool import checked_states, launch_masked_mean_pool
from ..selection.stream import CandidateError, KCenterStream
from .encoder import Encoder
from .forward import Batchable, Forward
from .packing import packed
from .prefix import Group, Prefix, can_share_prefixes, group_rows
from .store import FileStore, MemoryStore

NO_PREFIX = np.empty(0, dtype=np.int32)
COPIES_IN_FLIGHT = 2  # the most batches whose copies from a GPU to the store are not finished


class Batch(NamedTuple):
    """Rows that are embedded and stored together."""

    number: int  # the same in every start of a run
    group: Group
    indices: np.ndarray  # [B] int64, into the store


@dataclass
class Counts:
    """Tokens of the rows embedded, tokens run for them, and tokens run with padding; the last two without prefixes."""

    embedded: int = 0
    run: int = 0
    padded: int = 0


def shares_prefixes(encoder: Encoder) -> bool:
    """Whether rows are grouped by a shared prefix, which then runs once; the batches depend on it."""
    return encoder.pool is None and can_share_prefixes(encoder.body)


class Engine:
    """Embeds rows of `tokens`: index i of the store is row row_ids[i]."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tokens,
        row_ids: np.ndarray,
        store: FileStore | MemoryStore,
        budget: int,
        share_prefixes: bool = True,
        pack: bool = True,
    ):
        """budget: tokens of a batch, padding included; a batch that the store planned with more runs in parts."""
        self.encoder, self.body, self.device = encoder, encoder.body, encoder.device
        self.tokens, self.row_ids, self.store = tokens, row_ids, store
        self.lengths = tokens.lengths()[row_ids]
        self.budget = TokenBudget(min(budget, store.budget))
        self.sharing = share_prefixes and shares_prefixes(encoder)
        self.pack = pack and encoder.pool is None
        self.counts = Counts()
        self._planned = 0  # batches so far
        self.stream: KCenterStream | None = None
        self._writer = _AsyncWriter(store, row_ids, self.device)

    def run(self, first: np.ndarray, progress: bool = True, backend: str = "auto") -> dict[str, float]:
        """Embed all rows, those at the indices `first` before the others, and finish the store.

        Unless `first` is empty, its rows are the centers of self.stream, which has every other row's bound at the end.
        Batches that the store has from an earlier start are not computed again. Under torch.distributed each process
        runs its share of the batches.

        Returns the metrics.

        Raises:
            RunError: an embedding is not finite; the message names the row, and finished batches stay stored.
        """
        others = np.setdiff1d(np.arange(len(self.row_ids)), first)
        with self.running(), Progress("embed", int(self.lengths.sum()), "token", shown=progress) as bar:
            self.embed(first, bar)
            if len(first):
                self._begin_stream(first, backend)
            self.embed(others, bar)
        self.store.finish()
        if self.stream:
            self.stream.share()
        return self.metrics()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Prepare the model; inside, rows can be embedded. Batches that are finished at the end stay stored."""
        self._matrix_rate = throughput.matrix_rate(self.device, self.encoder.dtype) * distributed.world()
        self._began = time.perf_counter()
        throughput.reset_peak_memory(self.device)
        self._batchable = Batchable(self.body)
        with packed(self.body, self.sharing) if self.pack else contextlib.nullcontext() as packing:
            self.forward = Forward(self.body, self.tokens, packing)
            try:
                yield
            finally:
                self.store.flush()

    def embed(self, indices: np.ndarray, bar: Progress) -> None:
        """Embed the rows at these indices, int64, which were not embedded before; each process runs its share.

        Batches that the store has from an earlier start, which embedded the same rows in the same order, are only
        bounded.
        """
        plan = self._plan(indices)
        stored = {batch.number for batch in plan if self.store.has(batch.number, batch.indices)}
        distributed.barrier()  # no process may write before all have read what is stored
        share = slice(distributed.rank(), None, distributed.world())
        for batch in [batch for batch in plan if batch.number in stored][share]:
            self._bound_stored(batch.indices)
            bar.update(int(self.lengths[batch.indices].sum()))
        for batch in [batch for batch in plan if batch.number not in stored][share]:
            self._run_batch(batch)
            bar.update(int(self.lengths[batch.indices].sum()))
        self._writer.settle()

    def _plan(self, indices: np.ndarray) -> list[Batch]:
        """The batches of the rows at these indices; their numbers go on from those before."""
        plan = []
        for part in self._batchable.parts(indices, self.lengths[indices]):
            if self.sharing:
                groups = group_rows(self.tokens, self.row_ids[part], self.store.budget)
            else:
                groups = [Group(NO_PREFIX, token_budget_batches(self.lengths[part], self.store.budget))]
            for group in groups:
                for batch in group.batches:
                    plan.append(Batch(self._planned + len(plan), group, part[batch]))
        self._planned += len(plan)
        return plan

    def _begin_stream(self, first: np.ndarray, backend: str) -> None:
        """Make the rows at the indices `first`, which are embedded, the centers that bound the others."""
        self.store.share(torch.from_numpy(first))
        values = self.store.values
        centers = values[torch.from_numpy(first).to(values.device)].to(self.device, torch.float32)
        self.stream = KCenterStream(
            centers, len(self.row_ids), store=values, exclude=first, backend=backend, progress=True
        )

    def _bound_stored(self, indices: np.ndarray) -> None:
        if self.stream:
            values = self.store.values
            self.stream.bound_embeddings(values[torch.from_numpy(indices).to(values.device)], rows=indices)

    def _run_batch(self, batch: Batch) -> None:
        indices, prefix = batch.indices, self.forward.prefix_of(batch.group)
        parts = self.budget.run(indices, self.lengths[indices], lambda part: (part, self._embed(part, prefix)))
        self._writer.put(batch.number, [part for part, _ in parts], [values for _, values in parts])
        tokens = int(self.lengths[indices].sum())
        self.counts.embedded += tokens
        self.counts.run += tokens - len(indices) * (prefix.length if prefix else 0)

    @torch.inference_mode()
    def _embed(self, indices: np.ndarray, prefix: Prefix | None) -> torch.Tensor:
        """The embeddings [B, D] of the rows at these indices, in the store's dtype, on the model's device."""
        encoder, dtype = self.encoder, self.store.values.dtype
        hidden, pool_kwargs, padded = self.forward.states(self.row_ids[indices], prefix)
        try:
            if self.stream and encoder.pool is None and encoder.finish is None:
                values = self.stream.bound(hidden, rows=indices, **pool_kwargs)
            else:
                if encoder.pool:
                    values = encoder.pool(hidden, pool_kwargs["mask"])
                else:
                    values, _ = launch_masked_mean_pool(checked_states(hidden, **pool_kwargs), "auto")
                values = (encoder.finish(values) if encoder.finish else values).to(dtype)
                if self.stream:
                    self.stream.bound_embeddings(values, rows=indices)
        except CandidateError as error:
            raise not_finite(self.row_ids[error.candidate], dtype) from error
        self.counts.padded += padded
        return values.to(dtype)

    def metrics(self, seconds_elsewhere: float = 0.0) -> dict[str, float]:
        """Of what this start embedded, by all processes: docs/reference/files.md explains them.

        seconds_elsewhere: since `running` began, not spent on embedding.
        """
        seconds = time.perf_counter() - self._began - seconds_elsewhere
        prefixes = self.forward.prefix_tokens
        counts = [self.counts.embedded, self.counts.run + prefixes, self.counts.padded + prefixes]
        embedded, run, padded = distributed.total(torch.tensor(counts, dtype=torch.int64)).tolist()
        return {
            "seconds": seconds,
            "tokens": embedded,
            "tokens_per_second": embedded / seconds,
            "padding": 1 - run / padded if padded else 0.0,
            "prefix_share": 1 - run / embedded if embedded else 0.0,
            "flops_per_second": run * throughput.flops_per_token(self.body) / seconds,
            "matrix_rate": self._matrix_rate,
            "peak_memory": throughput.peak_memory(self.device),
            "tokens_per_batch": self.budget.tokens,
        }


class _AsyncWriter:
    """Writes batches to the store; a GPU runs the next batches while the copies of the last ones are in flight."""

    def __init__(self, store: FileStore | MemoryStore, row_ids: np.ndarray, device: torch.device):
        self.store, self.row_ids, self.device = store, row_ids, device
        self._writes: deque[Callable[[], None]] = deque()

    def put(self, number: int, parts: list[np.ndarray], values: list[torch.Tensor]) -> None:
        """Batch `number`, embedded in parts: each part's indices [B] into the store, and its values [B, D]."""
        indices, batch = torch.from_numpy(np.concatenate(parts)), torch.cat(values)
        finite = torch.isfinite(batch).all(dim=1)
        target = self.store.values.device
        copied = None
        if self.device.type == "cuda":
            finite = copy_to_host(finite)
            batch = batch if target.type == "cuda" else copy_to_host(batch)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))

        def write() -> None:
            if copied:
                copied.synchronize()
            if not bool(finite.all()):
                first_bad = indices[int((~finite).nonzero()[0])]
                raise not_finite(self.row_ids[int(first_bad)], batch.dtype)
            self.store.write(number, indices.to(target), batch)

        self._writes.append(write)
        self.settle(COPIES_IN_FLIGHT if copied else 0)

    def settle(self, in_flight: int = 0) -> None:
        """Write the oldest batches until no more than `in_flight` are unwritten."""
        while len(self._writes) > in_flight:
            self._writes.popleft()()


def not_finite(row_id: int, dtype: torch.dtype) -> RunError:
    """The error for a row whose embedding is not finite in the store's dtype."""
    stored = "" if dtype == torch.float32 else f" in {dtype_name(dtype)}"
    return RunError(
        f"the model's embedding of row {int(row_id)} is not finite{stored}: "
        "training may have diverged; a lower learning_rate or dtype float32 may help"
    )
