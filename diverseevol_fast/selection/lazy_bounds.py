"""Greedy among rows of which most are only predicted; it says which of these have to be embedded."""

import torch

from .._common.progress import Progress
from .bounds import Bounds
from .device_rows import DeviceRows
from .host_rows import SMALLEST_BLOCK, HostRows
from .traversal import LARGEST_BLOCK, Traversal

SMALLEST_ASKED = 4  # rows that are asked for at once
ASKED_SHARE = 8  # or an eighth of those so far: so many too many cost less than greedy in smaller steps


class LazyBounds(Bounds):
    """Bounds of rows that may be farther from a center than their predicted embedding is, by their allowance."""

    def __init__(self, rows: DeviceRows | HostRows, allowance: torch.Tensor):
        """allowance: [N] float64 on the device, a distance (not squared); negative for rows that are embedded."""
        super().__init__(rows)
        self.allowance = allowance

    def lower(self, centers: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        """As Bounds.lower; bounds of predicted rows are widened by their allowance."""
        sqdist = torch.full_like(self.bound, float("inf"))
        bad = self.rows.screen(centers, self.offset, sqdist, indices)
        part = slice(None) if indices is None else indices
        widened = widen(sqdist[part], self.allowance[part])
        self.bound[part] = torch.minimum(self.bound[part], widened)
        return bad

    def is_predicted(self, indices: torch.Tensor) -> torch.Tensor:
        """Which of the rows at these indices have not been embedded: bool [R]."""
        return self.allowance[indices] >= 0

    def largest_predicted(self, count: int) -> torch.Tensor:
        """The indices, ascending, of the `count` rows with the largest bounds among those not embedded."""
        bound = self.bound.masked_fill(self.allowance < 0, -float("inf"))
        top = bound.topk(min(count, len(bound)))
        return top.indices[top.values > -float("inf")].sort().values

    def renew(self, indices: torch.Tensor, centers: torch.Tensor) -> None:
        """Rows at `indices` count as embedded from now on: bound them without an allowance."""
        self.allowance.index_fill_(0, indices, -1.0)
        self.bound.index_fill_(0, indices, float("inf"))
        self.tighten(indices, centers, 0)


def widen(sqdist: torch.Tensor, allowance: torch.Tensor) -> torch.Tensor:
    """(distance + allowance)^2, rounded up to float32: sqdist [R] float32, squared; allowance [R] float64.

    Where the allowance is negative, sqdist itself.
    """
    exact = (sqdist.to(torch.float64).sqrt() + allowance).square()
    widened = exact.to(torch.float32)
    widened = torch.nextafter(widened, torch.full_like(widened, float("inf")))
    return torch.where(allowance < 0, sqdist, torch.maximum(widened, sqdist))


class LazyGreedy(Traversal):
    """Greedy as if rows that are not embedded were as predicted, and the rows for which that has to be found out."""

    bounds: LazyBounds

    def __init__(self, rows: DeviceRows | HostRows, centers: torch.Tensor, allowance: torch.Tensor):
        """centers: [M, D] float32, embedded; allowance: as LazyBounds takes it."""
        super().__init__(rows, centers, -1.0, progress=False)
        self.bounds = LazyBounds(rows, allowance)
        self._asked: list[torch.Tensor] = []

    def run_lazily(self, k: int, most_embedded: int) -> torch.Tensor:
        """Pick k rows, only among those that are embedded or asked for.

        A row is asked for when its bound is the largest: the picks from there on assume that it is as predicted.

        Args:
            most_embedded: when more rows than that are embedded or asked for, all are.

        Returns:
            The rows asked for, int64 on the device, in the order in which they were. Without one, the picks are those
            of greedy if no row is farther than its bound says.
        """
        with Progress("select", k, "pick", shown=False) as self.bar:
            self.bounds.screen(self.centers)
            largest_block = min(LARGEST_BLOCK, self.rows.largest_block)
            size = SMALLEST_BLOCK
            while k > 0:
                size = min(size, self.bounds.available)
                self.bounds.refine(self.centers, size)
                members, _, outside = self.bounds.largest(size)
                is_predicted = self.bounds.is_predicted(members)
                predicted, embedded = members[is_predicted], members[~is_predicted]
                if len(predicted) and self._largest(predicted) >= self._largest(embedded):
                    self._ask(most_embedded)
                    continue
                picked, following, _ = self._pick_in(embedded, torch.maximum(outside, self._largest(predicted)), k)
                k -= picked
                if picked == 0 and following == float(outside):  # a row outside the block ties
                    if size >= largest_block:
                        self._pick_among_ties(k)
                        break
                    size = min(2 * size, largest_block)
        return torch.cat([*self._asked, torch.empty(0, dtype=torch.int64, device=self.rows.device)])

    def _largest(self, indices: torch.Tensor) -> torch.Tensor:
        """The largest bound of the rows at these indices, float64 [1]; -infinity without one."""
        bound = self.bounds.bound[indices].to(torch.float64)
        return torch.cat([bound, bound.new_full((1,), -float("inf"))]).max()[None]

    def _ask(self, most_embedded: int) -> None:
        """Ask for the rows with the largest bounds."""
        predicted = int((self.bounds.allowance >= 0).sum())
        count = max(SMALLEST_ASKED, sum(map(len, self._asked)) // ASKED_SHARE)
        indices = self.bounds.largest_predicted(predicted if len(self.rows) - predicted > most_embedded else count)
        self._asked.append(indices)
        self.bounds.renew(indices, self.centers)

    def _pick_among_ties(self, k: int) -> None:
        """More rows tie than a block holds: ask for all rows, or pick by the classical loop when all are embedded."""
        predicted = (self.bounds.allowance >= 0).nonzero()[:, 0]
        self._asked.append(predicted)
        if not len(predicted):
            self.stream(k)
