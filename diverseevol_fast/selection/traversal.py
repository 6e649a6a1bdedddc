"""kcenter: block-exact farthest-first traversal over stored embeddings.

A row's distance to its nearest center only ever falls, so a stale value is an upper bound. One pass bounds all rows;
greedy then runs exactly inside the block of rows with the largest bounds, and its winner is the global farthest row for
as long as it is above every bound outside. After that, new centers are applied to the rows outside, to those alone
whose bounds are among the largest.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from .._common.progress import Progress
from ..ops import audit
from ..ops.checks import check_row
from ..ops.min_sqdist import LARGEST_DIM
from ..ops.pick_block import launch_pick_block, unpack
from .arguments import as_bytes, as_count, as_device, as_indices, as_radius, as_rows, as_seed, shown
from .bounds import Bounds, spread_first
from .device_rows import DeviceRows, choose_backends
from .host_rows import SMALLEST_BLOCK, HostRows, rows_on
from .integrity import Checksums, values_changed

LARGEST_FIRST_BLOCK = 512
LARGEST_BLOCK = 4096  # rows; the block holds their distances to centers and to one another
FEW_PASSES = 6  # so few cost less than a screen and a block
FEW_ELEMENTS = 10_000_000  # reading so many takes as long as starting a screen and a block
ELEMENTS_PER_CALL = 250_000  # reading so many takes as long as starting a call
SMALLEST_DIM = 5  # streaming narrower rows takes less time than finding the largest bounds


@dataclass(frozen=True)
class KCenterResult:
    """The result of kcenter."""

    indices: np.ndarray  # [picks] int64, in pick order
    # [picks] float64: each pick's squared distance to its nearest center when picked; infinity for a first row without
    # any center, which JSON files have as null.
    sqdist: np.ndarray
    passes: float  # rows read, divided by N: 1.05 is one pass and a twentieth of the rows again
    backend: str  # of the screen
    seconds: float

    def __repr__(self) -> str:
        first = ", ".join(str(row) for row in self.indices[:3])
        rows = f"{len(self.indices)} picks: {first}{', ...' if len(self.indices) > 3 else ''}" if first else "no picks"
        last = f"; last sqdist {self.sqdist[-1]:.4g}" if first else ""
        return f"KCenterResult({rows}{last}; {self.passes:.2f} passes, {self.backend}, {self.seconds:.3g} s)"


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
    device: str | torch.device | None = None,
    max_gpu_memory: int | str | None = None,
    on_violation: str = "raise",
    progress: bool = False,
) -> KCenterResult:
    """K-Center greedy: k times, pick the row farthest from its nearest center; it becomes a center.

    Farthest-first traversal (Gonzalez 1985) as DiverseEvol uses it (arXiv 2311.08182, section 2). Distances are
    Euclidean, reported squared; ties go to the lowest row. The picks are those of float64 arithmetic on the stored
    values (ops/reference.py), whatever the dtype, backend, method or block size.

    Memory beyond x: 16 bytes for each row (its bound, the count of centers applied to it, and a copy of each while the
    largest are found), the centers, the block's rows and their distances to centers and one another. With x in host
    memory and a GPU as device: twice 64 MB on each, through which x is copied tile by tile, the next one while the GPU
    works on the present one; tiles are halved, with a warning, when the GPU runs out of memory.

    On a GPU that holds x, with backend "cuda" or "triton", the host waits once, for the picks of the first block, when
    they suffice; several times for each further block, once for each pick when streaming (as small problems are), and
    for `centers` in a tensor on the GPU.

    Args:
        x: [N, D] embeddings: numpy array, memory map, torch tensor or any DLPack object; float32, bfloat16 or
            float16. Never changed, never copied whole. Other real numbers (float64, integers) and lists of rows are
            rounded to float32 first, in a copy: the picks are exact for the rounded values.
        k: how many rows to pick; None with a radius: as many as it takes.
        centers: the rows already selected, as indices or a boolean mask [N]. None: a row drawn with `seed` is
            the first pick, with an infinite distance.
        radius: stop when no row is farther than this from its nearest center (Euclidean, not squared).
        seed: draws the first row, and nothing else.
        backend: "auto", "native" (C++ on the CPU), "cuda" or "triton" (on a GPU) or "reference" (float64 in torch,
            anywhere).
        method: "block", or "streaming": one pass over x for every center, the classical loop.
        block_size: rows in the first block; None: chosen from k, and small problems are streamed. The block grows when
            blocks yield few picks.
        device: "cuda" or "cuda:1": that GPU works on an x in host memory, which may be too large for it. None: the
            device of x.
        max_gpu_memory: for x in host memory, the most bytes to use on that GPU, or a text such as "2GB": tiles and
            blocks are smaller where needed. With k=None there is room for 512 picks. The workspace of backend
            "reference" is not counted.
        on_violation: while the selection runs, bounds of rows drawn at random are held against their float64 distances
            (1,024 of the first screen and 128 of each later one on a GPU; on a CPU as many of the first as take under
            1 % of the time, none of small problems). A bound that is too low is a fault of a kernel, a compiler or the
            machine: "raise" raises; "reference" warns and selects anew in float64. On a GPU a fault in a share p of all
            rows is found with a probability of 1 - (1 - p)^1024.
        progress: show picks, rate and the current radius.

    Returns:
        The picks in order, each one's squared distance when it was picked, and how the selection went.

    Raises:
        BoundViolationError: a bound is below its distance (a RuntimeError); no picks are returned.
        TypeError: a wrong dtype or type; the argument is named.
        ValueError: a wrong shape, a row that is not finite (named; on a GPU after the first block), k,
            centers, radius or block_size out of range, a device that cannot work on x, a max_gpu_memory that is too low
            (the message says what is needed).
        torch.OutOfMemoryError: the GPU's memory does not suffice for a block, or for tiles of one row.
    """
    began = time.perf_counter()
    if not isinstance(method, str) or method not in ("block", "streaming"):
        raise ValueError(f"method: expected 'block' or 'streaming', got {shown(method)}")
    check_on_violation(on_violation)
    seed = as_seed(seed)
    x = as_rows(x)
    work_device = as_device(device, x.device)
    limit = as_bytes(max_gpu_memory)
    pool = [] if centers is None else as_indices(centers, len(x))
    if centers is not None and not pool:
        raise ValueError("centers: expected at least one row, got none; pass None to start from a seeded row")
    wanted = as_count(k, len(x) - len(pool), radius)
    stop = as_radius(radius)
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(f"block_size: expected an integer of at least 1, got {shown(block_size)}")
    pool = [pool[i] for i in spread_first(len(pool))]
    first = [] if pool or wanted == 0 else [int(np.random.default_rng(seed).integers(len(x)))]
    most_centers = len(pool) + (min(wanted, LARGEST_FIRST_BLOCK) if k is None else wanted)

    def select(name: str) -> Traversal:
        chosen = choose_backends(work_device, name, x.dtype)
        rows = rows_on(x, work_device, chosen, limit, most_centers, LARGEST_BLOCK)
        indices = copy_to_device(torch.tensor(pool + first, dtype=torch.int64), work_device)
        traversal = Traversal(rows, rows.gather(indices), stop, progress)
        traversal.bounds.exclude(indices)
        traversal.run(wanted - len(first), method, block_size)
        return traversal

    try:
        traversal = select(backend)
    except audit.BoundViolationError as error:
        if on_violation == "raise":
            raise
        warn_of_violation(error)
        traversal = select("reference")
    return traversal.result(first, time.perf_counter() - began)


def check_on_violation(on_violation: str) -> None:
    """Raises ValueError unless on_violation is one that kcenter takes."""
    if not isinstance(on_violation, str) or on_violation not in ("raise", "reference"):
        raise ValueError(f"on_violation: expected 'raise' or 'reference', got {shown(on_violation)}")


def warn_of_violation(error: audit.BoundViolationError) -> None:
    """Warn that the reference selects instead."""
    warnings.warn(f"{error}. Going on with the reference", stacklevel=3)


class Traversal:
    """The state of one traversal: the centers so far, and an upper bound for every row."""

    def __init__(
        self,
        rows: DeviceRows | HostRows,
        centers: torch.Tensor,
        stop: float,
        progress: bool,
        checksums: Checksums | None = None,
    ):
        """
        Args:
            centers: [M, D] float32, the values of the first centers, which need not be among the rows.
            checksums: of the rows when they were bounded, where that was before this selection.
        """
        self.rows, self.stop, self.progress, self.checksums = rows, stop, progress, checksums
        self._centers, self._count = centers, len(centers)  # [room, D] float32, of which _count are in use
        self.bounds = Bounds(rows)
        self.picks: list[int] = []
        self.sqdist: list[float] = []

    def result(self, first: list[int], seconds: float) -> KCenterResult:
        """The picks so far, after `first`, which was not picked by distance."""
        return KCenterResult(
            indices=np.array(first + self.picks, dtype=np.int64),
            sqdist=np.array([float("inf")] * len(first) + self.sqdist, dtype=np.float64),
            passes=self.bounds.rows_read / len(self.rows),
            backend=self.rows.chosen["min_sqdist"],
            seconds=seconds,
        )

    @property
    def centers(self) -> torch.Tensor:
        """[M + picks, D] float32."""
        return self._centers[: self._count]

    def run(self, k: int, method: str, block_size: int | None) -> None:
        """Pick k rows, or fewer when the stop is reached."""
        with Progress("select", k, "pick", shown=self.progress) as self.bar:
            # On asynchronous rows the screen finds centers that are not finite, as it finds other rows.
            check = k == 0 or not self.rows.asynchronous
            if check and not (len(self.centers) and torch.isfinite(self.centers).all()):
                self.rows.check_finite()
            if k == 0:
                return
            bounds_hold = self.rows.dim < LARGEST_DIM
            if method == "streaming" or not bounds_hold or (block_size is None and self._is_small(k)):
                self.stream(k)
                return
            self.bounds.screen(self.centers)
            self.pick_blocks(k, block_size)

    def _is_small(self, k: int) -> bool:
        """Whether streaming takes less time than a screen and a block."""
        n, dim = len(self.rows), self.rows.dim
        passes = len(self.centers) + k
        return passes <= FEW_PASSES or dim < SMALLEST_DIM or passes * (n * dim + ELEMENTS_PER_CALL) <= FEW_ELEMENTS

    def run_bounded(self, k: int) -> None:
        """As run, for rows that have been bounded already."""
        with Progress("select", k, "pick", shown=self.progress) as self.bar:
            self.bounds.audit(self.centers)
            self.pick_blocks(k, None)

    def pick_blocks(self, k: int, block_size: int | None) -> None:
        """Pick k rows block by block."""
        largest_block = min(LARGEST_BLOCK, self.rows.largest_block)
        size = min(block_size or min(max(SMALLEST_BLOCK, 2 * k), LARGEST_FIRST_BLOCK), self.rows.largest_block)
        wait = not self.rows.asynchronous
        while k > 0:
            size = min(size, self.bounds.available)
            self.bounds.refine(self.centers, size, wait)
            members, inside, outside = self.bounds.largest(size)
            if wait and inside <= outside:  # more rows tie than the block holds
                picked, following, threshold = 0, float(outside), float(outside)
            else:
                picked, following, threshold = self._pick_in(members, outside, k)
            wait = True  # from the second block on: its size depends on this result
            k -= picked
            # Members are no farther than `following` now, the others no farther than `threshold`.
            if k == 0 or max(following, threshold) <= max(self.stop, -1.0):
                return
            if picked == 0:
                contenders = self._contenders(following, largest_block)
                # A block in which most rows tie costs as much as streaming, and proves as little.
                if contenders > min(largest_block, len(self.rows) // 2):
                    self.stream(k)
                    return
                size = max(size, contenders)
            elif picked < size / 16:
                size = min(2 * size, largest_block)

    def _contenders(self, following: float, largest_block: int) -> int:
        """The number of rows whose bound is at least `following`; where a block is too small, bounds are tightened."""
        contenders = int((self.bounds.bound >= following).sum())
        if contenders > largest_block:
            self.bounds.refine(self.centers, contenders)
            contenders = int((self.bounds.bound >= following).sum())
        return contenders

    def stream(self, k: int) -> None:
        """The classical loop: float64 distances of all rows to one center at a time, one pass each."""
        nearest = torch.full((len(self.rows),), float("inf"), dtype=torch.float64, device=self.rows.device)
        nearest.masked_fill_(self.bounds.bound == -float("inf"), -1.0)
        if self.checksums is not None:
            self.checksums.check(self.rows.x)
        elif not torch.isfinite(self.centers).all() or self.rows.chosen["update_argmax"] == "reference":
            self.rows.check_finite()  # the reference does not check
        farthest = self._update(nearest, self.centers[:1])
        if not torch.isfinite(nearest).all():
            self.rows.check_finite()
        if len(self.centers) > 1:
            farthest = self._update(nearest, self.centers[1:])
        while k > 0:
            row, value = torch.cat([farthest.to(torch.float64), nearest[farthest]]).tolist()
            if value < 0 or value <= self.stop:
                return
            nearest.index_fill_(0, farthest, -1.0)
            self._add([int(row)], farthest, self.rows.gather(farthest), [value])
            k -= 1
            if k > 0:
                farthest = self._update(nearest, self.centers[-1:])

    def _update(self, nearest: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        self.bounds.rows_read += len(self.rows) * len(centers)
        return self.rows.update(centers, nearest)

    def _pick_in(self, members: torch.Tensor, outside: torch.Tensor, k: int) -> tuple[int, float, float]:
        """Pick among the rows of a block, its members; no other row's bound is above `outside` (float64 [1]).

        Returns the number of picks, the squared distance of the first member that was not picked, and `outside` as a
        number. The host waits for the device once.

        Raises:
            ValueError: a row is not finite, or a member changed since it was pushed.
            BoundViolationError: the audit found a row whose bound is below its distance.
        """
        bound = self.bounds.bound[members]
        values = self.rows.gather(members)
        self.bounds.rows_read += len(members)
        wrong = self._wrong(members, values)
        if not self.rows.asynchronous:  # kernels on the CPU do not accept such values
            self._refuse(members[wrong].tolist())
        most = min(k, len(members))
        result = launch_pick_block(
            values, self.centers, self.bounds.offset, bound, outside, self.stop, most, self.rows.chosen["pick_block"]
        )
        # One tensor, so that the host waits once; indices are exact in float64.
        message = torch.cat([result, self.bounds.bad_row, self.bounds.violation, outside, members, wrong])
        sizes = [len(result), 3, len(members), len(members)]
        result, (bad_row, violation, threshold), indices, wrong = read(message).split(sizes)
        self._refuse([row for row in (int(bad_row), *indices[wrong > 0].tolist()) if row >= 0])
        if violation >= 0:
            self._check_unchanged(int(violation))
            raise audit.BoundViolationError(self._violation(int(violation)))
        picks, sqdist, following = unpack(result, most)
        picked = copy_to_device(picks, self.rows.device)
        self._add(indices[picks].to(torch.int64).tolist(), members[picked], values[picked], sqdist.tolist())
        self.bounds.record(members, bound, self._count)
        return len(picks), following, float(threshold)

    def _wrong(self, members: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Which members, int64 [B] with values [B, D], are not finite or have changed: bool [B]."""
        largest = torch.linalg.vector_norm(values, ord=float("inf"), dim=1)
        wrong = ~(largest < float("inf"))
        return wrong if self.checksums is None else wrong | self.checksums.changed(members, values)

    def _refuse(self, wrong: list[int]) -> None:
        """Raises ValueError, naming the first of all wrong rows, unless `wrong` is empty."""
        if not wrong:
            return
        if self.checksums is not None:
            self.checksums.check(self.rows.x)
        self.rows.check_finite()
        check_row(int(min(wrong)))

    def _check_unchanged(self, row: int) -> None:
        """Raises CandidateError when the row changed since it was pushed."""
        index = torch.tensor([row], device=self.rows.device)
        values = self.rows.gather(index)
        if self.checksums is not None and self.checksums.changed(index, values).any():
            raise values_changed(row, values)

    def _violation(self, row: int) -> str:
        """The message about a row whose bound is below its distance."""
        device = self.rows.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        return (
            f"backend {self.rows.chosen['min_sqdist']!r} on {where}: the bound of row {row} is below its squared "
            "distance to the nearest center, so that picks would be lost. Please report this, with what `diverseevol "
            "env` prints. on_violation='reference', or DIVERSEEVOL_BACKEND=reference in the environment, "
            "selects in float64 instead"
        )

    def _add(self, picks: list[int], indices: torch.Tensor, values: torch.Tensor, sqdist: list[float]) -> None:
        """Add the next picks: their indices, on the host and on the device, values [P, D] and squared distances."""
        if not picks:
            return
        self.picks += picks
        self.sqdist += sqdist
        self.bounds.exclude(indices)
        wanted = self._count + len(picks)
        if wanted > len(self._centers):  # room for twice as many: a copy for every pick would be quadratic
            self._centers = torch.cat([self.centers, self._centers.new_empty(wanted, self.rows.dim)])
        self._centers[self._count : wanted] = values
        self._count = wanted
        self.bar.update(len(picks), radius=sqdist[-1] ** 0.5)


def read(message: torch.Tensor) -> torch.Tensor:
    """The message in host memory: here the host waits for the device."""
    return message.cpu()
