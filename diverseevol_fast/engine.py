"""Rows through a model, batch by batch: pooled, bounded, on their way to the store while the next batch runs."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from . import distributed, hardware
from .batches import pad, token_budget_batches
from .budget import Limit
from .encoders import Encoder
from .errors import RunError
from .models import check_vocabulary
from .ops import masked_mean_pool
from .packing import Packing, packed
from .prefix import Group, Prefix, can_share_prefixes, group_rows, is_causal, run_alone, run_prefix
from .progress import Progress
from .selection.stream import CandidateError, KCenterStream
from .store import FileStore, MemoryStore
from .templates import Tokens

NO_PREFIX = np.empty(0, dtype=np.int32)
COPIES_UNDER_WAY = 2  # batches that a GPU may be behind with

Plan = list[tuple[int, Group, np.ndarray]]  # a batch's number, its group, its positions among the rows


@dataclass
class Counts:
    """Tokens: of the rows embedded, run through the model, and run with their padding."""

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
        check_vocabulary(encoder.body, int(tokens.ids.max()))
        self.encoder, self.body, self.device = encoder, encoder.body, encoder.device
        self.tokens, self.rows, self.store = tokens, rows, store
        self.lengths = tokens.lengths()[rows]
        self.limit = Limit(min(budget, store.budget))
        self.sharing = share_prefixes and shares_prefixes(encoder)
        self.pack = pack and encoder.pool is None
        self.counts = Counts()
        self.stream: KCenterStream | None = None
        self._arrivals = _Arrivals(store, rows, self.device)
        self._mask_needed = not is_causal(self.body)

    def run(self, first: np.ndarray, progress: bool = True, backend: str = "auto") -> dict[str, float]:
        """Embed all rows, those at the positions `first` before the others, and finish the store.

        With any in `first`, they are the centres of self.stream, in which every other row has come then. What the
        store holds of an earlier start is not computed again. Under torch.distributed each process runs its share of
        the batches.

        Returns the figures that README.md explains.

        Raises:
            RunError: an embedding that is not finite, the row is named; finished batches are kept.
        """
        began = time.perf_counter()
        hardware.reset_peak_memory(self.device)
        rest = np.setdiff1d(np.arange(len(self.rows)), first)
        plan = self._plan(first, 0)
        plan_of_rest = self._plan(rest, len(plan))
        pack = packed(self.body, self.sharing) if self.pack else contextlib.nullcontext()
        with Progress("embed", int(self.lengths.sum()), "token", shown=progress) as bar, pack as packing:
            runner = _Runner(self, packing, bar)
            try:
                runner.run(plan)
                if len(first):
                    self._begin_stream(first, backend)
                runner.run(plan_of_rest)
            finally:
                self.store.flush()
        self.store.finish()
        if self.stream:
            self.stream.share()
        return self._figures(time.perf_counter() - began)

    def _plan(self, positions: np.ndarray, number: int) -> Plan:
        """The batches of these rows, counted from `number`."""
        if self.sharing:
            groups = group_rows(self.tokens, self.rows[positions], self.store.budget)
        else:
            groups = [Group(NO_PREFIX, token_budget_batches(self.lengths[positions], self.store.budget))]
        batches = [(group, positions[batch]) for group in groups for batch in group.batches]
        return [(number + i, group, batch) for i, (group, batch) in enumerate(batches)]

    def _begin_stream(self, first: np.ndarray, backend: str) -> None:
        """The rows at the positions `first` are embedded: they are the centres for the others."""
        self._arrivals.settle()
        self.store.share(torch.from_numpy(first))
        values = self.store.values
        centers = values[torch.from_numpy(first).to(values.device)].to(self.device, torch.float32)
        self.stream = KCenterStream(
            centers, len(self.rows), store=values, exclude=first, backend=backend, progress=True
        )

    def _figures(self, seconds: float) -> dict[str, float]:
        counts = torch.tensor([self.counts.embedded, self.counts.run, self.counts.padded], dtype=torch.int64)
        embedded, run, padded = distributed.total(counts).tolist()
        rate = hardware.matrix_rate(self.device, self.encoder.dtype) if run else 0.0
        flops = run * hardware.flops_per_token(self.body) / seconds if run else 0.0
        return {
            "seconds": seconds,
            "tokens": embedded,
            "tokens_per_second": embedded / seconds,
            "padding": 1 - run / padded if padded else 0.0,
            "prefix_share": 1 - run / embedded if embedded else 0.0,
            "flops_per_second": flops,
            "matrix_rate": rate * distributed.world(),
            "peak_memory": hardware.peak_memory(self.device),
            "tokens_per_batch": self.limit.tokens,
        }


class _Runner:
    """Runs the batches of a plan."""

    def __init__(self, engine: Engine, packing: Packing | None, bar: Progress):
        self.engine, self.packing, self.bar = engine, packing, bar
        self._prefix: tuple[Group, Prefix] | None = None  # of the last group that has one

    def run(self, plan: Plan) -> None:
        """Those of the plan that are not in the store, and are this process's share; the bounds of the others."""
        store = self.engine.store
        mine = slice(distributed.rank(), None, distributed.world())
        stored = [batch for batch in plan if batch[0] in store.done]
        for _, _, positions in stored[mine]:
            self._bound_stored(positions)
        for number, group, positions in [batch for batch in plan if batch[0] not in store.done][mine]:
            self._run_batch(number, group, positions)
        self.engine._arrivals.settle()

    def _bound_stored(self, positions: np.ndarray) -> None:
        engine = self.engine
        if engine.stream:
            values = engine.store.values
            engine.stream.bound_embeddings(values[torch.from_numpy(positions).to(values.device)], rows=positions)
        self.bar.update(int(engine.lengths[positions].sum()))

    def _run_batch(self, number: int, group: Group, positions: np.ndarray) -> None:
        engine = self.engine
        prefix = self._prefix_of(group)
        parts = engine.limit.run(positions, engine.lengths[positions], lambda part: self._embed(part, prefix))
        engine._arrivals.put(number, [part for part, _ in parts], [values for _, values in parts])
        real = int(engine.lengths[positions].sum())
        engine.counts.embedded += real
        engine.counts.run += real - len(positions) * (prefix.length if prefix else 0)
        self.bar.update(real, padding=1 - engine.counts.run / engine.counts.padded,
                        prefix=1 - engine.counts.run / engine.counts.embedded)  # fmt: skip

    @torch.inference_mode()
    def _prefix_of(self, group: Group) -> Prefix | None:
        if not len(group.prefix):
            return None
        if self._prefix is None or self._prefix[0] is not group:
            self._prefix = None  # its keys and values make room for these
            run = self.packing.run_prefix if self.packing else None
            prefix = run_prefix(self.engine.body, group.prefix, self.engine.device, run)
            self._prefix = group, prefix
            self.engine.counts.run += prefix.length
            self.engine.counts.padded += prefix.length
        return self._prefix[1]

    @torch.inference_mode()
    def _embed(self, positions: np.ndarray, prefix: Prefix | None) -> tuple[np.ndarray, torch.Tensor]:
        """These positions, and their embeddings [B, D] in the store's dtype, on the model's device."""
        engine, encoder = self.engine, self.engine.encoder
        hidden, limits, padded = self._states(engine.rows[positions], prefix)
        given = limits | ({"prefix_sum": prefix.hidden_sum, "prefix_len": prefix.length} if prefix else {})
        dtype = engine.store.values.dtype
        try:
            if engine.stream and encoder.pool is None and encoder.finish is None:
                values = engine.stream.bound(hidden, rows=positions, **given)
            else:
                pooled = encoder.pool(hidden, limits["mask"]) if encoder.pool else masked_mean_pool(hidden, **given)
                values = (encoder.finish(pooled) if encoder.finish else pooled).to(dtype)
                if engine.stream:
                    engine.stream.bound_embeddings(values, rows=positions)
        except CandidateError as error:
            raise not_finite(engine.rows[error.candidate], dtype) from error
        engine.counts.padded += padded
        return positions, values.to(dtype)

    def _states(self, rows: np.ndarray, prefix: Prefix | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """Token states after the prefix, what says which are whose, and how many there are, padding included."""
        engine, skipped = self.engine, prefix.length if prefix else 0
        if self.packing:
            parts = [engine.tokens.row(row)[0][skipped:] for row in rows]
            ids = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(engine.device)
            lengths = torch.tensor([len(part) for part in parts], device=engine.device)
            limits = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            return self.packing.run(ids, lengths, prefix), {"cu_seqlens": limits}, len(ids)
        ids, mask, _ = pad(engine.tokens, rows)
        ids, mask = ids[:, skipped:].to(engine.device), mask[:, skipped:].to(engine.device)
        if prefix:
            hidden = prefix.run(engine.body, ids)
        else:
            hidden = run_alone(engine.body, ids, mask if engine._mask_needed else None)
        return hidden, {"mask": mask}, ids.numel()


class _Arrivals:
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
            finite = _queue_to_host(finite)
            batch = batch if target.type == "cuda" else _queue_to_host(batch)
            copied = torch.cuda.Event()
            copied.record()
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


def _queue_to_host(values: torch.Tensor) -> torch.Tensor:
    """A copy in pinned host memory, which is there when the stream has come so far."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def not_finite(row: int, dtype: torch.dtype) -> RunError:
    """What to say of a row whose embedding is not finite in the store's dtype."""
    stored = "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}"
    return RunError(
        f"the model's embedding of row {int(row)} is not finite{stored}: "
        "training may have diverged; a lower learning_rate or dtype float32 may help"
    )
