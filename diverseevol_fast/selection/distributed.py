"""kcenter by several processes: each bounds its share of the rows, and all make the same picks."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._common import distributed
from .arguments import as_count, as_indices, as_rows, as_seed
from .stream import CandidateError, KCenterStream
from .traversal import KCenterResult, kcenter

ROWS_AT_ONCE = 65_536


def kcenter_distributed(x: Any, k: int, centers: Sequence[int] | None, seed: int = 0) -> KCenterResult:
    """As kcenter, for rows that every process can read, such as a memory map; all processes call this.

    A single process calls kcenter. The picks are the same for any number of processes.

    Raises:
        TypeError, ValueError: as kcenter.
    """
    if distributed.world() == 1:
        return kcenter(x, k, centers, seed=seed, progress=True)
    began = time.perf_counter()
    seed = as_seed(seed)
    x = as_rows(x)
    pool = [] if centers is None else as_indices(centers, len(x))
    wanted = as_count(k, len(x) - len(pool), None)
    first = [] if pool or wanted == 0 else [int(np.random.default_rng(seed).integers(len(x)))]
    stream = KCenterStream(x[pool + first], len(x), store=x, exclude=pool + first, progress=True)
    candidates = np.setdiff1d(np.arange(len(x)), pool + first)
    mine = np.array_split(candidates, distributed.world())[distributed.rank()]
    try:
        for start in range(0, len(mine), ROWS_AT_ONCE):
            rows = mine[start : start + ROWS_AT_ONCE]
            stream.bound_embeddings(x[rows[0] : rows[-1] + 1][rows - rows[0]], rows=rows)
    except CandidateError as error:
        raise ValueError(f"x: row {error.candidate} holds a value that is not finite") from error
    stream.share()
    result = stream.select(wanted - len(first))
    return KCenterResult(
        indices=np.array(first + result.indices.tolist(), dtype=np.int64),
        sqdist=np.array([np.inf] * len(first) + result.sqdist.tolist()),
        passes=result.passes + len(mine) / len(x),
        backend=result.backend,
        seconds=time.perf_counter() - began,
    )
