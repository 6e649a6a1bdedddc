"""kcenter: block-exact farthest-first traversal over stored embeddings.

A row's distance to its nearest centre only ever falls, so a stale value is an upper bound. One pass bounds all rows;
greedy then runs exactly inside the block of rows with the largest bounds, and its winner is the global farthest row for
as long as it is above every bound outside. Only then are the rows outside looked at again.
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

SMALLEST_BLOCK = 256
LARGEST_BLOCK = 4096  # rows; the block holds their distances to one another
LARGEST_DIM = 1 << 16  # above it the error bound of the screen does not hold
OFFSET_SAMPLE = 256


@dataclass(frozen=True)
class KCenterResult:
    """What kcenter returns."""

    indices: np.ndarray  # [picks] int64, in pick order
    sqdist: np.ndarray  # [picks] float64, each pick's squared distance to its nearest centre when picked
    passes: float  # how many times all rows were read
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

    Memory beyond x: N float32 bounds, the centres, the block's rows and their distances to centres and one another.

    Args:
        x: [N, D] embeddings: numpy array, memory map, torch tensor or any DLPack object; float32, bfloat16 or
            float16. Never changed, never copied whole.
        k: how many rows to pick; None with a radius: as many as it takes.
        centers: the rows already selected, as row numbers or a boolean mask [N]. None: a row drawn with `seed` is
            the first pick, with an infinite distance.
        radius: stop when no row is farther than this from its nearest centre (Euclidean, not squared).
        seed: for the first row alone.
        backend: "auto", "native" (C++ on the CPU) or "reference" (float64 in torch, on x's device).
        method: "block", or "streaming": one pass over x for every centre, the classical loop.
        block_size: rows in the block at first; None: chosen from k. It grows when that saves passes.
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
    first = [] if pool or wanted == 0 else [int(np.random.default_rng(seed).integers(len(rows)))]
    traversal = Traversal(rows, pool + first, chosen, stop, progress)
    traversal.run(wanted - len(first), method, block_size)
    return KCenterResult(
        indices=np.array(first + traversal.picks, dtype=np.int64),
        sqdist=np.array([float("inf")] * len(first) + traversal.sqdist, dtype=np.float64),
        passes=traversal.passes,
        backend=chosen,
        seconds=time.perf_counter() - began,
    )


class Traversal:
    """The state of one traversal: centres so far, and a bound for every row that is not one."""

    def __init__(self, rows: torch.Tensor, centers: list[int], backend: str, stop: float, progress: bool):
        self.rows, self.backend, self.stop, self.progress = rows, backend, stop, progress
        self.centers = list(centers)
        self.picks: list[int] = []
        self.sqdist: list[float] = []
        self.passes = 0.0
        self.bound = torch.full((len(rows),), float("inf"), dtype=torch.float32, device=rows.device)  # [N]
        self.offset: torch.Tensor | None = None  # [D]

    def run(self, k: int, method: str, block_size: int | None) -> None:
        """Pick k rows, or fewer when the stop is reached."""
        if not self.centers:
            screening.check_finite(self.rows)
            return
        with Progress("select", k, "pick", shown=self.progress) as self.bar:
            few = len(self.centers) + k <= 4  # a screen and a block cost more than so few passes
            if method == "streaming" or few or self.rows.shape[1] >= LARGEST_DIM:
                screening.check_finite(self.rows)
                self.stream(k)
            else:
                self.screen(self.centers)
                self.pick_blocks(k, block_size)

    def screen(self, centers: list[int]) -> None:
        """Lower every row's bound for the given centres: one pass."""
        if self.offset is None:
            self.offset = self._offset()
        screening.min_sqdist(self.rows, self._values(centers), self.offset, self.bound, self.backend)
        self.bound[centers] = -float("inf")
        self.passes += 1

    def pick_blocks(self, k: int, block_size: int | None) -> None:
        """Pick k rows block by block; bounds are valid for all centres so far except `fresh` ones."""
        size = block_size or max(SMALLEST_BLOCK, min(2 * k, LARGEST_BLOCK))
        fresh: list[int] = []
        while k > 0:
            members, threshold = self._largest_bounds(min(size, len(self.rows)))
            if len(members) == 0:
                return
            found, following = self._pick_in(members, threshold, k)
            fresh += found
            k -= len(found)
            if k == 0 or (following > threshold and following <= self.stop):
                return
            # The next pick is at `following` or above: rows with lower bounds need no look yet.
            contenders = int((self.bound >= following).sum())
            if contenders <= self._affordable(len(fresh)):
                size = max(size, contenders + contenders // 4)
            elif fresh:
                self.screen(fresh)
                fresh = []
            elif 2 * size <= LARGEST_BLOCK:
                size = 2 * size
            else:
                self.stream(k)
                return

    def stream(self, k: int) -> None:
        """The classical loop: float64 distances of all rows to one centre at a time, one pass each."""
        nearest = torch.full((len(self.rows),), float("inf"), dtype=torch.float64, device=self.rows.device)
        for center in self.centers:
            farthest = self._update(nearest, center)
        while k > 0:
            value = float(nearest[farthest])
            if value < 0 or value <= self.stop:
                return
            self._pick(farthest, value)
            k -= 1
            if k > 0:
                farthest = self._update(nearest, farthest)

    def _update(self, nearest: torch.Tensor, center: int) -> int:
        nearest[center] = -1.0
        self.passes += 1
        return streaming.update_argmax(self.rows, self._values([center])[0], nearest, self.backend)

    def _pick_in(self, members: torch.Tensor, threshold: float, k: int) -> tuple[list[int], float]:
        """Pick inside a block; returns the rows picked, and the squared distance of the first that was not."""
        bound = self.bound[members]
        picks, sqdist, following = block.pick_block(
            self._values(members), self._values(self.centers), self.offset, bound, threshold, self.stop, k, self.backend
        )
        self.bound[members] = bound
        found = members[picks].tolist()
        for row, value in zip(found, sqdist.tolist(), strict=True):
            self._pick(row, value)
        return found, following

    def _pick(self, row: int, value: float) -> None:
        self.picks.append(row)
        self.sqdist.append(value)
        self.centers.append(row)
        self.bar.update(1, radius=value**0.5)

    def _largest_bounds(self, size: int) -> tuple[torch.Tensor, float]:
        """The `size` rows with the largest bounds, ascending, and the largest bound left outside."""
        top = torch.topk(self.bound, min(size + 1, len(self.bound)))
        threshold = float(top.values[size]) if len(top.values) > size else -float("inf")
        members = top.indices[:size][top.values[:size] > -float("inf")]
        return members.sort().values, threshold

    def _affordable(self, fresh: int) -> int:
        """Up to how many rows a larger block costs less than a pass with the fresh centres."""
        return min(LARGEST_BLOCK, max(2 * SMALLEST_BLOCK, len(self.rows) // 16))

    def _offset(self) -> torch.Tensor:
        """The mean of some rows: what embeddings share is subtracted, since in the products it would cost digits."""
        step = max(1, len(self.rows) // OFFSET_SAMPLE)
        mean = self.rows[::step].to(torch.float32).mean(dim=0)
        return torch.where(torch.isfinite(mean), mean, 0.0)

    def _values(self, rows: list[int] | torch.Tensor) -> torch.Tensor:
        """Rows as float32, which is exact for every stored dtype."""
        return self.rows[rows].to(torch.float32)
