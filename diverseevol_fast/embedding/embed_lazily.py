"""A round's selection that embeds only the rows that can be picked; embeddings of the round before predict the others.

The file of a lazy round has all rows: those that were embedded, and the predicted embeddings of the others. Beside it
is the file of store.rounds_of.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common import distributed
from .._common.errors import InputError, RunError
from .._common.files import read_record
from .._common.progress import Progress
from .._common.provenance import differences, sidecar_of
from ..data.tokens import Tokens
from ..selection.lazy import LazyResult, LazyTraversal
from .embed_tokens import describe, opened_store
from .encoder import Encoder
from .engine import Engine
from .store import NOT_COMPARED, FileStore, read_whole_npy, rounds_of

log = logging.getLogger("diverseevol_fast")

OF_ONE_ROUND = (*NOT_COMPARED, "lazy", "round")  # keys of a provenance in which the files of two rounds may differ


@dataclass(frozen=True)
class Earlier:
    """The embeddings of the round before, in a file: of each row by the latest model that embedded it."""

    values: torch.Tensor  # [N, D], memory-mapped
    rounds: np.ndarray  # [N] int32: the round in which each row was embedded
    was_lazy: bool = False  # whether that round began with predicted embeddings

    @property
    def was_in_vain(self) -> bool:
        """Whether the round before, lazy as it was, embedded all rows after all."""
        return self.was_lazy and bool((self.rounds == self.rounds.max()).all())


@dataclass(frozen=True)
class LazyPicks:
    """What a round picked lazily."""

    indices: np.ndarray  # [picks] int64, in pick order
    result: LazyResult | None  # None in processes other than the first
    metrics: dict[str, float]  # of embedding, as those of embed_tokens


def read_earlier(path: Path, r: int, provenance: dict[str, Any]) -> Earlier | None:
    """The embeddings that round r made, in the file at `path`; None where there is no such file.

    Raises:
        InputError: the file is damaged, or of another model, other rows, or rows that were cut differently.
    """
    if not path.exists():
        return None
    remedy = "; put the right file there, or remove it, and this round embeds all rows"
    try:
        recorded = read_record(sidecar_of(path))
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {sidecar_of(path).name} does not say what it was made from{remedy}") from error
    differing = differences(recorded, provenance, "it", ignored=(*OF_ONE_ROUND, "rows", "dim"))
    if differing:
        raise InputError(f"{path}: expected the embeddings of round {r} ({'; '.join(differing)}){remedy}")
    values = read_whole_npy(path)
    shape = recorded.get("rows"), recorded.get("dim")
    if values is None or values.shape != shape:
        raise InputError(f"{path}: damaged, expected {shape[0]} x {shape[1]} numbers{remedy}")
    rounds, was_lazy = np.full(len(values), r, dtype=np.int32), "lazy" in recorded
    if was_lazy:
        stored = read_whole_npy(rounds_of(path))
        if stored is None or stored.shape != rounds.shape or stored.dtype != rounds.dtype:
            raise InputError(f"{rounds_of(path)}: missing or damaged, expected {len(values)} numbers{remedy}")
        rounds = np.array(stored)
    return Earlier(torch.from_numpy(values), rounds, was_lazy)


def embed_lazily(
    encoder: Encoder,
    tokens: Tokens,
    row_ids: np.ndarray,
    k: int,
    *,
    r: int,
    earlier: Earlier,
    store: Path,
    provenance: dict[str, Any],
    first: list[int],
    settings: dict[str, Any],
    max_tokens_per_batch: int | str = "auto",
) -> LazyPicks:
    """The k picks of round r among tokens[row_ids], in embeddings by `encoder`, of which LazyTraversal decides which.

    All processes of the job call this; the first one decides, and all of them embed. `store` is filled as by
    embed_tokens: what a stop interrupts goes on where it was, with the same rows and the same picks.

    Args:
        first: the indices of the rows in the pool.
        settings: keywords of LazyTraversal.

    Raises:
        InputError: `earlier` is of another width or number of rows.
        RunError: as embed_tokens.
    """
    shape = (len(row_ids), encoder.dim)
    if earlier.values.shape != shape:
        raise InputError(f"{store}: expected earlier embeddings of {shape}, got {tuple(earlier.values.shape)}")
    provenance = provenance | {"lazy": settings, "round": r}
    centers = np.array(first, dtype=np.int64)
    with opened_store(
        encoder, tokens, row_ids, store, provenance, "float32", centers, max_tokens_per_batch, replace=True
    ) as (target, budget):
        assert isinstance(target, FileStore)

        def select(embed: Callable[[np.ndarray], torch.Tensor]) -> tuple[LazyTraversal, LazyResult]:
            ages = r - earlier.rounds
            lazy = LazyTraversal(earlier.values, embed, first, ages=ages, device=encoder.device, **settings)
            return lazy, lazy.select(k)

        if target.complete:  # a stop came between embedding and the record of the picks
            result = select(_reading(target, r))[1] if distributed.is_first() else None
            return LazyPicks(_of_first(result), result, {})
        engine, result = Engine(encoder, tokens, row_ids, target, budget), None
        with engine.running():
            if distributed.is_first():
                lazy, result = select(lambda indices: _embed_together(engine, indices))
                distributed.indices_of_first(None)  # no more rows
                unread = np.flatnonzero(~result.embedded)
                rounds = np.where(result.embedded, np.int32(r), earlier.rounds)
                target.fill(unread, lazy.values, rounds)
            else:
                while (indices := distributed.indices_of_first(None)) is not None:
                    _embed(engine, indices)
        target.finish()
        metrics = engine.metrics(result.seconds if result else 0.0)
    log.info("embedded %s", describe(metrics))
    return LazyPicks(_of_first(result), result, metrics)


def _of_first(result: LazyResult | None) -> np.ndarray:
    """The first process's picks, in every process."""
    indices = distributed.indices_of_first(result.indices if result else None)
    return np.empty(0, dtype=np.int64) if indices is None else indices


def _reading(store: FileStore, r: int) -> Callable[[np.ndarray], torch.Tensor]:
    """LazyTraversal's function from indices to the embeddings in a finished file of round r."""
    rounds = np.load(rounds_of(store.path))

    def read(indices: np.ndarray) -> torch.Tensor:
        if (rounds[indices] != r).any():
            raise RunError(
                f"{store.path}: was finished, and other rows are needed now than those that were embedded, which may "
                "happen on another machine; remove it, and this round embeds anew"
            )
        return store.values[torch.from_numpy(indices)]

    return read


def _embed_together(engine: Engine, indices: np.ndarray) -> torch.Tensor:
    """LazyTraversal's function in the first process, whose peers embed with it."""
    distributed.indices_of_first(indices)
    _embed(engine, indices)
    return engine.store.values[torch.from_numpy(indices)]


def _embed(engine: Engine, indices: np.ndarray) -> None:
    """Embed the rows at these indices by all processes, and make that survive a crash before more are asked for."""
    with Progress("embed", int(engine.lengths[indices].sum()), "token") as bar:
        engine.embed(indices, bar)
    engine.store.flush()
    engine.store.share(torch.from_numpy(indices))
