"""Whole selections on a GPU: rows there or in host memory, ours and the loops of others, each held against float64."""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from device_timing import DEVICE, once, synchronize

from diverseevol_fast import kcenter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # peers.py, which tests share
import peers

DIM, POOL, PICKS = 4096, 1000, 100  # of the scale table
CHUNK_ROWS = 16_384  # of the check
LOOPS = {
    "matrix-vector loop": peers.matrix_vector_loop,
    "reference formula (N x N)": peers.reference_formula,
}
CASES = {  # by name: rows, columns, centers, picks, dtype, whether in host memory, contenders
    "52,002 float32": (52_002, DIM, 100, PICKS, torch.float32, False, ("cuda", "triton", *LOOPS)),
    "100,000 bfloat16": (100_000, DIM, POOL, PICKS, torch.bfloat16, False, ("cuda", "triton")),
    "1,000,000 bfloat16": (
        1_000_000,
        DIM,
        POOL,
        PICKS,
        torch.bfloat16,
        False,
        ("cuda", "triton", "matrix-vector loop"),
    ),
    "1,000,000 bfloat16, host": (1_000_000, DIM, POOL, PICKS, torch.bfloat16, True, ("cuda",)),
    "50,000 x 1,536 float32, 5,000 picks": (50_000, 1_536, 1, 5_000, torch.float32, False, ("cuda", "triton")),
    "52,002 x 384 float32": (52_002, 384, 100, PICKS, torch.float32, False, ("cuda", "triton", *LOOPS)),
}
TINY = {"300 float32": (300, 16, 10, 5, torch.float32, False, ("triton", *LOOPS))}


class Selection:
    """One case: its rows, and what it takes to select."""

    def __init__(self, n: int, dim: int, pool: int, picks: int, dtype: torch.dtype, host: bool, _contenders: tuple):
        self.x = torch.empty(n, dim, dtype=dtype, device=DEVICE)
        for part in self.x.split(100_000):
            part.normal_()
        self.centers, self.picks = list(range(pool)), picks
        self.rows = self.x.cpu() if host else self.x
        self.given = {"device": DEVICE, "max_gpu_memory": "2GB"} if host and DEVICE == "cuda" else {}
        self.about = {
            "shape": [n, dim, pool, picks],
            "dtype": str(dtype).removeprefix("torch."),
            "host": host,
            "bytes": self.x.nbytes,
            "flops": 2 * n * dim * pool,
        }

    def measure(self, contender: str) -> dict:
        """Seconds, passes, memory beyond x, and whether the picks are those of float64 greedy."""
        if contender in LOOPS:
            seconds, picks = once(lambda: LOOPS[contender](self.x, self.centers, self.picks))
            return self.about | {"p50": seconds, "passed": self.is_greedy(picks)}
        select: Callable = lambda: kcenter(self.rows, self.picks, self.centers, backend=contender, **self.given)  # noqa: E731
        picks = select().indices.tolist()
        synchronize()
        before = _memory(reset=True)
        results = [select() for _ in range(3)]
        return self.about | {
            "p50": statistics.median(result.seconds for result in results),
            "passes": results[0].passes,
            "extra_bytes": _memory() - before,
            "passed": self.is_greedy(picks),
        }

    def is_greedy(self, picks: list[int]) -> bool:
        """Whether each pick was the farthest row when it was picked, by float64 products, rounding allowed for.

        One pass: a tile's distances to the centers, then to one pick after the other, and the largest at each step.
        """
        origin = self.x[:1024].double().mean(dim=0)
        chosen = self.x[picks].double() - origin  # [k, D]
        points = self.x[self.centers].double() - origin
        largest = torch.full((len(picks),), -1.0, dtype=torch.float64, device=self.x.device)
        own = largest.clone()
        for start in range(0, len(self.x), CHUNK_ROWS):
            rows = self.x[start : start + CHUNK_ROWS].double() - origin
            nearest = _sqdist(rows, points).amin(dim=1, keepdim=True)
            to_picks = _sqdist(rows, chosen)
            steps = torch.cat([nearest, to_picks[:, :-1]], dim=1).cummin(dim=1).values  # before each pick
            largest = torch.maximum(largest, steps.amax(dim=0))
            for step, pick in enumerate(picks):
                if start <= pick < start + len(rows):
                    own[step] = steps[pick - start, step]
        reach = float(largest.max()) + float(chosen.square().sum(dim=1).max())
        return len(set(picks)) == len(picks) and bool((own >= largest - 1e-9 * reach).all())


def _sqdist(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    squares = rows.square().sum(dim=1, keepdim=True) + points.square().sum(dim=1)
    return squares - 2.0 * (rows @ points.T)


def _memory(reset: bool = False) -> int:
    """Bytes in use (reset: and the peak is counted from here), or the peak."""
    if DEVICE == "cpu":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return torch.cuda.max_memory_allocated()
