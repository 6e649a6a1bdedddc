"""kcenter: block-exact farthest-first traversal over stored embeddings.

A row's distance to its nearest centre only ever falls, so a stale value is an upper bound. One pass bounds all rows;
greedy then runs exactly inside the block of rows with the largest bounds, and its winner is the global farthest row for
as long as it is above every bound outside. Only then are rows outside looked at again, and only those that matter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..ops import backends, block, screening, streaming
from ..progress import Progress
from .arguments import as_count, as_radius, as_row_numbers, as_rows
from .bounds import Bounds, spread_first

SMALLEST_BLOCK = 256
LARGEST_FIRST_BLOCK = 512
LARGEST_BLOCK = 4096  # rows; the block holds their distances to centres and to one another
FEW_PASSES = 6  # so few cost less than a screen and a block
FEW_ELEMENTS = 10_000_000  # so few are read in the time that a screen and a block take to begin
ELEMENTS_PER_CALL = 250_000  # read in the time that a call takes to begin
SMALLEST_DIM = 5  # narrower rows are streamed in less time than the largest bounds are found
LARGEST_DIM = 1 << 16  # from here on the error bound of the screen does not hold


@dataclass(frozen=True)
class KCenterResult:
    """What kcenter returns."""

    indices: np.ndarray  # [picks] int64, in pick order
    sqdist: np.ndarray  # [picks] float64, each pick's squared distance to its nearest centre when picked
    passes: float  # how many rows were read, divided by N: 1.05 is one pass and a twentieth of the rows again
    backend: str
    seconds: float


def kcenter(
    x: Any,
    k: int | None,
    centers: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    *,
    radius: float | None = None,
    seed: int = 0,
    backend: str = "auto",
    method: str = "block",
    block_size: int | None = None,
    progress: bool = False,
) -> KCenterResult:
    """K-Center greedy: k times, pick the row farthest from its nearest centre; it becomes a centre.

    Farthest-first traversal (Gonzalez 1985) as DiverseEvol uses it (arXiv 2311.08182, section 2). Distances are
    Euclidean, reported squared; ties go to the lowest row. The picks are those of float64 arithmetic on the stored
    values (ops/reference.py), whatever the dtype, backend, method or block size.

    Memory beyond x: 16 bytes for each row (its bound, how far it is up to date, and a copy of each while rows are
    looked for), the centres, the block's rows and their distances to centres and one another.

    Args:
        x: [N, D] embeddings: numpy array, memory map, torch tensor or any DLPack object; float32, bfloat16 or
            float16. Never changed, never copied whole.
        k: how many rows to pick; None with a radius: as many as it takes.
        centers: the rows already selected, as row numbers or a boolean mask [N]. None: a row drawn with `seed` is
            the first pick, with an infinite distance.
        radius: stop when no row is farther than this from its nearest centre (Euclidean, not squared).
        seed: for the first row alone.
        backend: "auto", "native" (C++ on the CPU), "triton" (a CUDA tensor) or "reference" (float64 in torch, on x's
            device).
        method: "block", or "streaming": one pass over x for every centre, the classical loop.
        block_size: rows in the block at first; None: chosen from k, and small problems are streamed. It grows when
            blocks yield few picks.
        progress: show picks, rate and the current radius.

    Raises:
        TypeError: a wrong dtype or type.
        ValueError: a wrong shape, a row that is not finite (named), k, centers, radius or block_size out of range.
    """
    began = time.perf_counter()
    if method not in ("block", "streaming"):
        raise ValueError(f"method: expected 'block' or 'streaming', got {method!r}")
    rows = as_rows(x)
    pool = [] if centers is None else as_row_numbers(centers, len(rows))
    if centers is not None and not pool:
        raise ValueError("centers: expected at least one row, got none; pass None to start from a seeded row")
    wanted = as_count(k, len(rows) - len(pool), radius)
    stop = as_radius(radius)
    if block_size is not None and (not isinstance(block_size, int) or block_size < 1):
        raise ValueError(f"block_size: expected an integer of at least 1, got {block_size!r}")
    chosen = backends.choose(rows.device.type, backend, "min_sqdist")
    pool = [pool[i] for i in spread_first(len(pool))]
    first = [] if pool or wanted == 0 else [int(np.random.default_rng(seed).integers(len(rows)))]
    traversal = Traversal(rows, rows[pool + first].to(torch.float32), chosen, stop, progress)
    traversal.bounds.exclude(pool + first)
    traversal.run(wanted - len(first), method, block_size)
    return traversal.result(first, time.perf_counter() - began)


class Traversal:
    """The state of one traversal: the centres so far, and an upper bound for every row."""

    def __init__(self, rows: torch.Tensor, centers: torch.Tensor, backend: str, stop: float, progress: bool):
        """rows [N, D]; centers [M, D] float32, the values of the first centres, which need not be among the rows."""
        self.rows, self.backend, self.stop, self.progress = rows, backend, stop, progress
        self._centers, self._count = centers, len(centers)  # [room, D] float32, of which count are in use
        self.bounds = Bounds(rows, backend)
        self.picks: list[int] = []
        self.sqdist: list[float] = []

    def result(self, first: list[int], seconds: float) -> KCenterResult:
        """The picks so far, after `first`, which was not picked by distance."""
        return KCenterResult(
            indices=np.array(first + self.picks, dtype=np.int64),
            sqdist=np.array([float("inf")] * len(first) + self.sqdist, dtype=np.float64),
            passes=self.bounds.rows_read / len(self.rows),
            backend=self.backend,
            seconds=seconds,
        )

    @property
    def centers(self) -> torch.Tensor:
        """[M + picks, D] float32."""
        return self._centers[: self._count]

    def run(self, k: int, method: str, block_size: int | None) -> None:
        """Pick k rows, or fewer when the stop is reached."""
        with Progress("select", k, "pick", shown=self.progress) as self.bar:
            if len(self.centers) == 0 or not torch.isfinite(self.centers).all():
                screening.check_finite(self.rows)
            if k == 0:
                return
            bounds_hold = self.rows.shape[1] < LARGEST_DIM
            if method == "streaming" or not bounds_hold or (block_size is None and self._is_small(k)):
                self.stream(k)
                return
            self.bounds.screen(self.centers)
            self.pick_blocks(k, block_size)

    def _is_small(self, k: int) -> bool:
        """Whether streaming takes less time than a screen and a block."""
        n, dim = self.rows.shape
        passes = len(self.centers) + k
        return passes <= FEW_PASSES or dim < SMALLEST_DIM or passes * (n * dim + ELEMENTS_PER_CALL) <= FEW_ELEMENTS

    def run_bounded(self, k: int) -> None:
        """As run, with bounds and offset that are there already."""
        with Progress("select", k, "pick", shown=self.progress) as self.bar:
            self.pick_blocks(k, None)

    def pick_blocks(self, k: int, block_size: int | None) -> None:
        """Pick k rows block by block."""
        size = block_size or min(max(SMALLEST_BLOCK, 2 * k), LARGEST_FIRST_BLOCK)
        while k > 0:
            self.bounds.refine(self.centers, size)
            members, threshold = self.bounds.largest(size)
            if float(self.bounds.bound[members].max()) > threshold:
                found, following = self._pick_in(members, threshold, k)
            else:  # more rows tie than the block holds
                found, following = 0, threshold
            k -= found
            # Members are no farther than `following` now, the others no farther than `threshold`.
            if k == 0 or max(following, threshold) <= max(self.stop, -1.0):
                return
            if found == 0:
                contenders = self._contenders(following)
                # A block in which most rows tie costs as much as streaming, and proves as little.
                if contenders > min(LARGEST_BLOCK, len(self.rows) // 2):
                    self.stream(k)
                    return
                size = max(size, contenders)
            elif found < size / 16:
                size = min(2 * size, LARGEST_BLOCK)

    def _contenders(self, following: float) -> int:
        """How many rows' bounds are not below `following`; brought up to date if they are too many for a block."""
        contenders = int((self.bounds.bound >= following).sum())
        if contenders > LARGEST_BLOCK:
            self.bounds.refine(self.centers, contenders)
            contenders = int((self.bounds.bound >= following).sum())
        return contenders

    def stream(self, k: int) -> None:
        """The classical loop: float64 distances of all rows to one centre at a time, one pass each."""
        nearest = torch.full((len(self.rows),), float("inf"), dtype=torch.float64, device=self.rows.device)
        nearest[self.bounds.bound == -float("inf")] = -1.0
        farthest = 0
        for i, center in enumerate(self.centers):
            farthest = self._update(nearest, center)
            if i == 0 and not torch.isfinite(nearest).all():
                screening.check_finite(self.rows)
        while k > 0:
            value = float(nearest[farthest])
            if value < 0 or value <= self.stop:
                return
            self._add([farthest], [value])
            nearest[farthest] = -1.0
            k -= 1
            if k > 0:
                farthest = self._update(nearest, self.centers[-1])

    def _update(self, nearest: torch.Tensor, center: torch.Tensor) -> int:
        self.bounds.rows_read += len(self.rows)
        return streaming.update_argmax(self.rows, center, nearest, self.backend)

    def _pick_in(self, members: torch.Tensor, threshold: float, k: int) -> tuple[int, float]:
        """Pick inside a block; returns how many, and the squared distance of the first that was not picked."""
        bound = self.bounds.bound[members]
        values = self.rows[members].to(torch.float32)  # exact for every stored dtype
        self.bounds.rows_read += len(members)
        picks, sqdist, following = block.pick_block(
            values, self.centers, self.bounds.offset, bound, threshold, self.stop, k, self.backend
        )
        self._add(members[picks].tolist(), sqdist.tolist())
        self.bounds.keep(members, bound, self._count)
        return len(picks), following

    def _add(self, rows: list[int], sqdist: list[float]) -> None:
        """These rows are the next picks."""
        if not rows:
            return
        self.picks += rows
        self.sqdist += sqdist
        self.bounds.exclude(rows)
        wanted = self._count + len(rows)
        if wanted > len(self._centers):  # room for twice as many: a copy for every pick would be quadratic
            self._centers = torch.cat([self.centers, self._centers.new_empty(wanted, self.rows.shape[1])])
        self._centers[self._count : wanted] = self.rows[rows].to(torch.float32)
        self._count = wanted
        self.bar.update(len(rows), radius=sqdist[-1] ** 0.5)
