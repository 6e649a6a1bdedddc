"""Rows through a model, batch by batch: pooled, bounded, on their way to the store while the next batch runs."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .._common import distributed
from .._common.device_copies import copy_to_host
from .._common.errors import RunError
from .._common.progress import Progress
from ..data.batches import token_budget_batches
from ..data.templates import Tokens
from ..models import throughput
from ..models.token_budget import TokenBudget
from ..ops.masked_mean_pool import checked_states, launch_masked_mean_pool
from ..selection.stream import CandidateError, KCenterStream
from .encoder import Encoder
from .forward import Forward, together
from .packing import packed
from .prefix import Group, Prefix, can_share_prefixes, group_rows
from .store import FileStore, MemoryStore

NO_PREFIX = np.empty(0, dtype=np.int32)
COPIES_UNDER_WAY = 2  # batches that a GPU may be behind with

Plan = list[tuple[int, Group, np.ndarray]]  # a batch's number, its group, its positions among the rows


@dataclass
class Counts:
    """Tokens: of the rows embedded, run for them, and run with their padding; without those of prefixes."""

    embedded: int = 0
    run: int = 0
    padded: int = 0


def shares_prefixes(encoder: Encoder) -> bool:
    """Whether rows are grouped by what they begin with, which then runs once: the batches depend on it."""
    return encoder.pool is None and can_share_prefixes(encoder.body)


class Engine:
    """Embeds rows of `tokens`: position i of the store is row rows[i]."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tokens,
        rows: np.ndarray,
        store: FileStore | MemoryStore,
        budget: int,
        share_prefixes: bool = True,
        pack: bool = True,
    ):
        """budget: tokens that a batch may hold, padding included; those of the store's plan may be larger."""
        self.encoder, self.body, self.device = encoder, encoder.body, encoder.device
        self.tokens, self.rows, self.store = tokens, rows, store
        self.lengths = tokens.lengths()[rows]
        self.limit = TokenBudget(min(budget, store.budget))
        self.sharing = share_prefixes and shares_prefixes(encoder)
        self.pack = pack and encoder.pool is None
        self.counts = Counts()
        self.stream: KCenterStream | None = None
        self._arrivals = _AsyncWriter(store, rows, self.device)

    def run(self, first: np.ndarray, progress: bool = True, backend: str = "auto") -> dict[str, float]:
        """Embed all rows, those at the positions `first` before the others, and finish the store.

        With any in `first`, they are the centres of self.stream, in which every other row has come then. What the
        store holds of an earlier start is not computed again. Under torch.distributed each process runs its share of
        the batches.

        Returns the metrics that README.md explains.

        Raises:
            RunError: an embedding that is not finite, the row is named; finished batches are kept.
        """
        self._rate = throughput.matrix_rate(self.device, self.encoder.dtype)
        self._flops = throughput.flops_per_token(self.body)
        began = time.perf_counter()
        throughput.reset_peak_memory(self.device)
        rest = np.setdiff1d(np.arange(len(self.rows)), first)
        plan = self._plan(first, 0)
        plan_of_rest = self._plan(rest, len(plan))
        self._stored = {number for number, _, positions in plan + plan_of_rest if self.store.has(number, positions)}
        distributed.barrier()  # no process writes before all have looked
        pack = packed(self.body, self.sharing) if self.pack else contextlib.nullcontext()
        with Progress("embed", int(self.lengths.sum()), "token", shown=progress) as self.bar, pack as packing:
            self.forward = Forward(self.body, self.tokens, packing)
            try:
                self._run(plan)
                if len(first):
                    self._begin_stream(first, backend)
                self._run(plan_of_rest)
            finally:
                self.store.flush()
        self.store.finish()
        if self.stream:
            self.stream.share()
        return self._figures(time.perf_counter() - began)

    def _plan(self, positions: np.ndarray, number: int) -> Plan:
        """The batches of these rows, counted from `number`."""
        batches = []
        for part in together(self.body, positions, self.lengths[positions]):
            if self.sharing:
                groups = group_rows(self.tokens, self.rows[part], self.store.budget)
            else:
                groups = [Group(NO_PREFIX, token_budget_batches(self.lengths[part], self.store.budget))]
            batches += [(group, part[batch]) for group in groups for batch in group.batches]
        return [(number + i, group, batch) for i, (group, batch) in enumerate(batches)]

    def _begin_stream(self, first: np.ndarray, backend: str) -> None:
        """The rows at the positions `first` are embedded: they are the centres for the others."""
        self.store.share(torch.from_numpy(first))
        values = self.store.values
        centers = values[torch.from_numpy(first).to(values.device)].to(self.device, torch.float32)
        self.stream = KCenterStream(
            centers, len(self.rows), store=values, exclude=first, backend=backend, progress=True
        )

    def _run(self, plan: Plan) -> None:
        """Those of the plan that are not in the store, and are this process's share; the bounds of the others."""
        mine = slice(distributed.rank(), None, distributed.world())
        stored = [batch for batch in plan if batch[0] in self._stored]
        for _, _, positions in stored[mine]:
            self._bound_stored(positions)
        for number, group, positions in [batch for batch in plan if batch[0] not in self._stored][mine]:
            self._run_batch(number, group, positions)
        self._arrivals.settle()

    def _bound_stored(self, positions: np.ndarray) -> None:
        if self.stream:
            values = self.store.values
            self.stream.bound_embeddings(values[torch.from_numpy(positions).to(values.device)], rows=positions)
        self.bar.update(int(self.lengths[positions].sum()))

    def _run_batch(self, number: int, group: Group, positions: np.ndarray) -> None:
        counts, prefix = self.counts, self.forward.prefix_of(group)
        parts = self.limit.run(positions, self.lengths[positions], lambda part: self._embed(part, prefix))
        self._arrivals.put(number, [part for part, _ in parts], [values for _, values in parts])
        real = int(self.lengths[positions].sum())
        counts.embedded += real
        counts.run += real - len(positions) * (prefix.length if prefix else 0)
        self.bar.update(real)

    @torch.inference_mode()
    def _embed(self, positions: np.ndarray, prefix: Prefix | None) -> tuple[np.ndarray, torch.Tensor]:
        """These positions, and their embeddings [B, D] in the store's dtype, on the model's device."""
        encoder, dtype = self.encoder, self.store.values.dtype
        hidden, limits, padded = self.forward.states(self.rows[positions], prefix)
        given = limits | ({"prefix_sum": prefix.hidden_sum, "prefix_len": prefix.length} if prefix else {})
        try:
            if self.stream and encoder.pool is None and encoder.finish is None:
                values = self.stream.bound(hidden, rows=positions, **given)
            else:
                if encoder.pool:
                    pooled = encoder.pool(hidden, limits["mask"])
                else:
                    pooled, _ = launch_masked_mean_pool(checked_states(hidden, **given), "auto")
                values = (encoder.finish(pooled) if encoder.finish else pooled).to(dtype)
                if self.stream:
                    self.stream.bound_embeddings(values, rows=positions)
        except CandidateError as error:
            raise not_finite(self.rows[error.candidate], dtype) from error
        self.counts.padded += padded
        return positions, values.to(dtype)

    def _figures(self, seconds: float) -> dict[str, float]:
        prefixes = self.forward.prefix_tokens
        counts = [self.counts.embedded, self.counts.run + prefixes, self.counts.padded + prefixes]
        counts = torch.tensor(counts, dtype=torch.int64)
        embedded, run, padded = distributed.total(counts).tolist()
        return {
            "seconds": seconds,
            "tokens": embedded,
            "tokens_per_second": embedded / seconds,
            "padding": 1 - run / padded if padded else 0.0,
            "prefix_share": 1 - run / embedded if embedded else 0.0,
            "flops_per_second": run * self._flops / seconds,
            "matrix_rate": self._rate * distributed.world(),
            "peak_memory": throughput.peak_memory(self.device),
            "tokens_per_batch": self.limit.tokens,
        }


class _AsyncWriter:
    """Batches on their way from the model to the store, which a GPU need not be waited for."""

    def __init__(self, store: FileStore | MemoryStore, rows: np.ndarray, device: torch.device):
        self.store, self.rows, self.device = store, rows, device
        self._coming: deque[Callable[[], None]] = deque()

    def put(self, number: int, parts: list[np.ndarray], values: list[torch.Tensor]) -> None:
        """Batch `number`, embedded in parts: positions [B] and values [B, D] of each."""
        positions, batch = torch.from_numpy(np.concatenate(parts)), torch.cat(values)
        finite = torch.isfinite(batch).all(dim=1)
        target = self.store.values.device
        if self.device.type == "cuda":
            finite = copy_to_host(finite)
            batch = batch if target.type == "cuda" else copy_to_host(batch)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        else:
            copied = None

        def arrive() -> None:
            if copied:
                copied.synchronize()
            if not bool(finite.all()):
                raise not_finite(self.rows[int(positions[int((~finite).nonzero()[0])])], batch.dtype)
            self.store.write(number, positions.to(target), batch)

        self._coming.append(arrive)
        self.settle(COPIES_UNDER_WAY if copied else 0)

    def settle(self, left: int = 0) -> None:
        """Wait until no more than this many batches are under way."""
        while len(self._coming) > left:
            self._coming.popleft()()


def not_finite(row: int, dtype: torch.dtype) -> RunError:
    """What to say of a row whose embedding is not finite in the store's dtype."""
    stored = "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}"
    return RunError(
        f"the model's embedding of row {int(row)} is not finite{stored}: "
        "training may have diverged; a lower learning_rate or dtype float32 may help"
    )
