"""Upper bounds of all rows' distances to their nearest centre, brought up to date only where it matters."""

import torch

from ..ops import screening

FIRST_CENTERS = 32  # a screen of so few is bound by reading the rows; one panel of the AVX-512 products
REFINED_BLOCKS = 4  # how many blocks of rows are refined at first; twice as many each time that was too few
OFFSET_SAMPLE = 256


class Bounds:
    """bound[i] is never below row i's squared distance to its nearest centre: a stale bound is still a bound.

    All rows are screened once, against the first few centres; the other centres, and those picked since, are looked at
    for rows whose bound is among the largest. (The lazy evaluation of Minoux's accelerated greedy, 1978, in batches.)
    """

    def __init__(self, rows: torch.Tensor, backend: str):
        """rows [N, D]; backend: of min_sqdist."""
        self.rows, self.backend = rows, backend
        self.bound = torch.full((len(rows),), float("inf"), dtype=torch.float32, device=rows.device)  # [N]
        self.seen = torch.zeros(
            len(rows), dtype=torch.int32, device=rows.device
        )  # [N], centres that need no second look
        self.offset: torch.Tensor | None = None  # [D]
        self.rows_read = 0

    def exclude(self, rows: torch.Tensor | list[int]) -> None:
        """These rows are centres: never picked."""
        self.bound[rows] = -float("inf")

    def screen(self, centers: torch.Tensor) -> None:
        """One pass: every row against the first centres."""
        self.offset = row_mean(self.rows)
        screening.min_sqdist(self.rows, centers[:FIRST_CENTERS], self.offset, self.bound, backend=self.backend)
        self.seen.fill_(min(len(centers), FIRST_CENTERS))
        self.rows_read += len(self.rows)

    def refine(self, centers: torch.Tensor, size: int) -> None:
        """Go on until no out-of-date bound is among the `size` largest."""
        batch = REFINED_BLOCKS * size
        while True:
            stale = self._stale(len(centers), size)
            if len(stale) == 0:
                return
            if len(stale) > batch:
                stale = stale[self.bound[stale].topk(batch).indices].sort().values
            oldest = int(self.seen[stale].min())
            screening.min_sqdist(self.rows, centers[oldest:], self.offset, self.bound, stale, self.backend)
            self.seen[stale] = len(centers)
            self.rows_read += len(stale)
            batch *= 2

    def _stale(self, count: int, size: int) -> torch.Tensor:
        """Rows, ascending, that are not up to date and above the `size` largest bounds of those that are."""
        current = self.seen == count
        up_to_date = self.bound[current]
        cut = up_to_date.topk(size).values[-1] if len(up_to_date) >= size else -float("inf")
        return ((self.bound > cut) & ~current).nonzero()[:, 0]

    def largest(self, size: int) -> tuple[torch.Tensor, float]:
        """The `size` rows with the largest bounds, ascending, and the largest bound left outside."""
        top = self.bound.topk(min(size + 1, len(self.bound)))
        threshold = float(top.values[size]) if len(top.values) > size else -float("inf")
        members = top.indices[:size][top.values[:size] > -float("inf")]
        return members.sort().values, threshold

    def keep(self, rows: torch.Tensor, bound: torch.Tensor, count: int) -> None:
        """These rows' bounds; of the first `count` centres none would lower them where it matters."""
        self.bound[rows] = bound
        self.seen[rows] = count


def spread_first(count: int) -> list[int]:
    """The numbers below count, FIRST_CENTERS of them from all over the range at the beginning."""
    first = [count * i // FIRST_CENTERS for i in range(min(count, FIRST_CENTERS))] if count > FIRST_CENTERS else []
    taken = set(first)
    return first + [i for i in range(count) if i not in taken]


def row_mean(rows: torch.Tensor) -> torch.Tensor:
    """The mean [D] of some rows: what embeddings share is subtracted, since in products it would cost digits."""
    mean = rows[:: max(1, len(rows) // OFFSET_SAMPLE)].to(torch.float32).mean(dim=0)
    return torch.where(torch.isfinite(mean), mean, 0.0)
