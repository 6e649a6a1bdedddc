"""embed_tokens: the embeddings of token ids, in memory or in a file, ready for K-Center selection."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common import distributed
from .._common.dtypes import DTYPES, dtype_name, torch_dtype
from .._common.errors import InputError
from .._common.files import locked
from ..data.tokens import Tokens
from ..models.load import check_vocabulary
from ..models.token_budget import find_budget
from ..ops import masked_mean_pool
from ..selection.stream import KCenterStream
from ..selection.traversal import KCenterResult, kcenter
from .encoder import Encoder
from .engine import Engine, shares_prefixes
from .prefix import run_alone
from .store import FILE_DTYPES, FileStore, MemoryStore

log = logging.getLogger("diverseevol_fast")


@dataclass(frozen=True)
class Embeddings:
    """A data set's embeddings, and what select needs of them."""

    store: FileStore | MemoryStore
    metrics: dict[str, float]  # seconds, tokens/s, shares, memory; empty when the file was finished before
    first: list[int]  # the rows that were embedded first: the centers that select begins with
    stream: KCenterStream | None  # has every other row's bound; None without centers, or for a file finished before
    picked: list[int] = field(default_factory=list)  # what select picked without a stream

    def __repr__(self) -> str:
        values = self.values
        shape, where = list(values.shape), getattr(self.store, "path", values.device)
        picks = len(self.stream.picks if self.stream else self.picked)
        about = f"{len(self.first)} embedded first, {picks} picked"
        return f"Embeddings({shape} {dtype_name(values.dtype)}, {where}; {about})"

    @property
    def values(self) -> torch.Tensor:
        """[N, D] in the store's dtype and on its device; those of a file are memory-mapped."""
        return self.store.values

    def select(self, k: int | None, *, radius: float | None = None, seed: int = 0) -> KCenterResult:
        """Pick k more rows by K-Center greedy; the centers are the rows embedded first, or one drawn with `seed`.

        Embedding bounded every row's distance to the centers, so that no pass over the embeddings is needed, unless
        the file was finished before or there were no centers. A further call goes on after the last pick.

        Raises:
            TypeError, ValueError: as kcenter.
            CandidateError: the values of a center, or of a row that is compared exactly, were changed: the bounds
                hold for the values as they were embedded.
        """
        if self.stream:
            self.stream.check_centers(self.values[self.first], self.first)
            return self.stream.select(k, radius=radius)
        centers = [*self.first, *self.picked]
        result = kcenter(self.values, k, centers or None, radius=radius, seed=seed, progress=True)
        self.picked.extend(result.indices.tolist())
        return result


def embed_tokens(
    encoder: Encoder,
    tokens: Tokens,
    row_ids: np.ndarray,
    *,
    store: str | Path,
    provenance: dict[str, Any],
    store_dtype: str = "float32",
    first: list[int] | np.ndarray | None = None,
    max_tokens_per_batch: int | str = "auto",
    progress: bool = True,
    replace: bool = False,
) -> Embeddings:
    """embed for tokens [N]: embedding i is that of row row_ids[i], int64; `first` are indices of embeddings.

    provenance: what a file must be made from, beside `first` and its shape, to be continued or read. replace: a
    finished file that is damaged, or was made from something else, is begun anew instead of being refused.
    """
    first = np.asarray([] if first is None else first, dtype=np.int64)
    with opened_store(
        encoder, tokens, row_ids, store, provenance, store_dtype, first, max_tokens_per_batch, replace
    ) as (target, budget):
        if target.complete:
            return Embeddings(target, {}, first.tolist(), None)
        engine = Engine(encoder, tokens, row_ids, target, budget)
        metrics = engine.run(first, progress)
    log.info("embedded %s", describe(metrics))
    return Embeddings(target, metrics, first.tolist(), engine.stream)


@contextlib.contextmanager
def opened_store(
    encoder: Encoder,
    tokens: Tokens,
    row_ids: np.ndarray,
    store: str | Path,
    provenance: dict[str, Any],
    store_dtype: str,
    first: np.ndarray,
    max_tokens_per_batch: int | str,
    replace: bool,
) -> Iterator[tuple[FileStore | MemoryStore, int]]:
    """A store that is new, to be continued, or complete, and a batch's tokens; a file is locked while it is written.

    The arguments are those of embed_tokens.
    """
    if store_dtype not in DTYPES:
        raise InputError(f"store_dtype: expected {', '.join(DTYPES)}, got {store_dtype!r}")
    path = None if store in ("host", "device") else _npy(store, store_dtype)
    check_vocabulary(encoder.body, int(tokens.ids.max()))
    budget = _budget(encoder, int(tokens.lengths()[row_ids].max()), max_tokens_per_batch)
    budget = int(distributed.lowest(torch.tensor(budget)))  # every process plans the same batches
    shape = (len(row_ids), encoder.dim)
    with _locked_while_written(path, replace):
        if path is None:
            device = encoder.device if store == "device" else "cpu"
            target = MemoryStore(*shape, torch_dtype(store_dtype), device, budget)
        else:
            first_sha256 = hashlib.sha256(json.dumps(first.tolist()).encode()).hexdigest()
            provenance = provenance | {"first_sha256": first_sha256, "shares_prefixes": shares_prefixes(encoder)}
            target = FileStore(path, *shape, provenance, budget, torch_dtype(store_dtype), replace)
        yield target, budget


def _locked_while_written(path: Path | None, replace: bool) -> contextlib.AbstractContextManager:
    """A lock on the file while it is written; a finished file is only read, perhaps from a read-only folder."""
    if path is None or not distributed.is_first() or (path.exists() and not replace):
        return contextlib.nullcontext()
    return locked(path)


def describe(metrics: dict[str, float]) -> str:
    """The metrics of an embedding in one line for the log; metrics.json has all of them."""
    return (
        f"{metrics['tokens']:,} tokens in {metrics['seconds']:.1f} s ({metrics['tokens_per_second']:,.0f} a second); "
        f"{1 - metrics['padding']:.0%} of the work was real tokens, the rest padding; shared prefixes saved "
        f"{metrics['prefix_share']:.0%} of the tokens; at most {metrics['peak_memory'] / 1e9:.1f} GB of memory"
    )


def _budget(encoder: Encoder, longest: int, wanted: int | str) -> int:
    if wanted == "auto":

        @torch.inference_mode()
        def probe(count: int, length: int) -> None:
            ids = torch.zeros((count, length), dtype=torch.int64, device=encoder.device)
            masked_mean_pool(run_alone(encoder.body, ids, torch.ones_like(ids)), torch.ones_like(ids))

        return find_budget(longest, encoder.device, probe)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"max_tokens_per_batch: expected 'auto' or a number of at least 1, got {wanted!r}")
    return wanted


def _npy(store: str | Path, dtype: str) -> Path:
    path = Path(store) if isinstance(store, str | Path) else Path()
    if path.suffix != ".npy":
        raise InputError(f"store: expected 'host', 'device' or a name ending in .npy, got {str(store)!r}")
    if torch_dtype(dtype) not in FILE_DTYPES:
        raise InputError(f"store_dtype: a .npy file holds float32 or float16, got {dtype}")
    return path
