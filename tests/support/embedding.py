"""Shared by tests that embed rows: the engine run on a store."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.embedding.engine import Engine
from diverseevol_fast.embedding.store import FileStore

NONE = np.empty(0, dtype=np.int64)


def file_store(path, rows, dim=32, budget=500, **provenance):
    return FileStore(path, rows=rows, dim=dim, provenance=provenance, budget=budget)


def embed_rows(model, tokens, rows, store, first=NONE, **features):
    """Fill the store in batches of its budget; returns the metrics."""
    return Engine(encoder_of(model), tokens, rows, store, store.budget, **features).run(
        np.asarray(first), progress=False
    )


@contextlib.contextmanager
def stopped_after(batches: int, error: type[BaseException]) -> Iterator[None]:
    """Inside, a store takes so many batches, and then raises."""
    write, left = FileStore.write, list(range(batches))

    def write_until(*batch):
        if not left:
            raise error
        left.pop()
        write(*batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileStore, "write", write_until)
        yield
