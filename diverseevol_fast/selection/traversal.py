"""kcenter: farthest-first traversal over stored embeddings."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..ops import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FINITE_CHECK_ROWS = 4096


@dataclass(frozen=True)
class KCenterResult:
    """What kcenter returns."""

    indices: np.ndarray  # [k] int64, in pick order
    sqdist: np.ndarray  # [k] float64, each pick's squared distance to its nearest centre when picked
    passes: float  # how many times the rows were read
    backend: str
    seconds: float


def kcenter(
    x: np.ndarray | torch.Tensor,
    k: int,
    centers: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    *,
    seed: int = 0,
) -> KCenterResult:
    """K-Center greedy: k times, pick the row farthest from its nearest centre; it becomes a centre.

    Farthest-first traversal (Gonzalez 1985) as DiverseEvol uses it (arXiv 2311.08182, section 2). Distances are
    Euclidean, reported squared; ties go to the lowest row. The picks are those of float64 arithmetic on the
    stored values, whatever their dtype.

    Args:
        x: [N, D] embeddings: numpy array, memory map or torch tensor; float32, bfloat16 or float16. Never
            changed, never copied whole.
        k: how many rows to pick.
        centers: the rows already selected, as row numbers or a boolean mask [N]. None: a row drawn with `seed`
            is the first pick, with an infinite distance.
        seed: for that row alone.

    Raises:
        TypeError: a wrong dtype or type.
        ValueError: a wrong shape, a row that is not finite (named), k or centers out of range or repeated.
    """
    began = time.perf_counter()
    rows = _as_rows(x)
    pool = [] if centers is None else _as_row_numbers(centers, len(rows))
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k: expected an integer, got {type(k).__name__}")
    if not 0 <= k <= len(rows) - len(pool):
        raise ValueError(f"k: expected 0 to {len(rows) - len(pool)}, the rows that are not centers, got {k}")
    if centers is not None and not pool:
        raise ValueError("centers: expected at least one row, got none; pass None to start from a seeded row")
    _check_finite(rows)
    first: list[int] = []
    if not pool and k > 0:
        first = [int(np.random.default_rng(seed).integers(len(rows)))]
    indices, sqdist = [], []
    if k > len(first):
        indices, sqdist = reference.kcenter(rows, k - len(first), pool + first)
    return KCenterResult(
        indices=np.array(first + indices, dtype=np.int64),
        sqdist=np.array([float("inf")] * len(first) + sqdist, dtype=np.float64),
        passes=float(len(pool) + k),
        backend="reference",
        seconds=time.perf_counter() - began,
    )


def _as_rows(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    """x as a tensor on its own memory, [N, D] with N, D >= 1."""
    if isinstance(x, np.ndarray):
        if x.dtype not in (np.float32, np.float16):
            raise TypeError(f"x: expected float32, bfloat16 or float16, got {x.dtype}; convert it first")
        with warnings.catch_warnings():  # a read-only memory map is fine: nothing here writes to x
            warnings.filterwarnings("ignore", message=".*not writable.*")
            x = torch.from_numpy(x)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a numpy array or a torch tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected float32, bfloat16 or float16, got {x.dtype}; convert it first")
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"x: expected shape [N, D] with N and D at least 1, got {tuple(x.shape)}")
    return x.detach()


def _as_row_numbers(centers: Sequence[int] | np.ndarray | torch.Tensor, n: int) -> list[int]:
    """centers as distinct row numbers in [0, n)."""
    array = np.asarray(centers.cpu() if isinstance(centers, torch.Tensor) else centers)
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise ValueError(f"centers: expected a mask of shape ({n},), got {array.shape}")
        array = np.flatnonzero(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"centers: expected row numbers or a boolean mask, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"centers: expected one dimension, got shape {array.shape}")
    numbers = [int(number) for number in array]
    for number in numbers:
        if not 0 <= number < n:
            raise ValueError(f"centers: expected row numbers from 0 to {n - 1}, got {number}")
    if len(set(numbers)) != len(numbers):
        repeated = next(number for number in numbers if numbers.count(number) > 1)
        raise ValueError(f"centers: row {repeated} is given more than once")
    return numbers


def _check_finite(rows: torch.Tensor) -> None:
    for start in range(0, len(rows), FINITE_CHECK_ROWS):
        bad = ~torch.isfinite(rows[start : start + FINITE_CHECK_ROWS]).all(dim=1)
        if bad.any():
            raise ValueError(f"x: row {start + int(bad.nonzero()[0])} holds a value that is not finite")
