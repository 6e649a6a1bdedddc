"""Greedy among rows of which most are only predicted: the others are embedded when they could be picked."""

from collections.abc import Callable

import torch

from .._common.progress import Progress
from .bounds import Bounds
from .device_rows import DeviceRows
from .host_rows import SMALLEST_BLOCK, HostRows
from .traversal import LARGEST_BLOCK, Traversal

Read = Callable[[torch.Tensor, torch.Tensor], bool]  # as run_lazily takes it


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
        """Rows at `indices` have been embedded: bound them by their new values."""
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
    """One attempt at greedy, with the allowances as they are."""

    bounds: LazyBounds

    def __init__(self, rows: DeviceRows | HostRows, centers: torch.Tensor, allowance: torch.Tensor):
        """centers: [M, D] float32, embedded; allowance: as LazyBounds takes it."""
        super().__init__(rows, centers, -1.0, progress=False)
        self.bounds = LazyBounds(rows, allowance)

    def run_lazily(self, k: int, read: Read, at_once: int, most_read: int) -> bool:
        """Pick k rows.

        Args:
            read: embeds the rows at some indices, int64 on the device, into the values of `rows`; also gets the centers
                so far, and returns whether no row is farther from them than its bound says.
            at_once: how many rows `read` is asked for.
            most_read: when more rows than that are embedded, `read` is asked for all others.

        Returns:
            Whether all picks were made; False after a row that was farther than its bound: greedy has to begin again.
        """
        with Progress("select", k, "pick", shown=False) as self.bar:
            self.bounds.screen(self.centers)
            largest_block = min(LARGEST_BLOCK, self.rows.largest_block)
            size = SMALLEST_BLOCK
            while k > 0:
                size = min(size, self.bounds.available)
                self.bounds.refine(self.centers, size)
                members, _, outside = self.bounds.largest(size)
                predicted = self.bounds.is_predicted(members)
                unread, embedded = members[predicted], members[~predicted]
                if len(unread) and self._largest(unread) >= self._largest(embedded):
                    if not self._read(read, at_once, most_read):
                        return False
                    continue
                threshold = torch.maximum(outside, self._largest(unread))
                picked, following, _ = self._pick_in(embedded, threshold, k)
                k -= picked
                if picked == 0 and following == float(outside):  # a row outside the block ties
                    if size >= largest_block:
                        return self._pick_among_ties(k, read)
                    size = min(2 * size, largest_block)
            return True

    def _largest(self, indices: torch.Tensor) -> torch.Tensor:
        """The largest bound of the rows at these indices, float64 [1]; -infinity without one."""
        bound = self.bounds.bound[indices].to(torch.float64)
        return torch.cat([bound, bound.new_full((1,), -float("inf"))]).max()[None]

    def _read(self, read: Read, at_once: int, most_read: int) -> bool:
        n, unread = len(self.rows), int((self.bounds.allowance >= 0).sum())
        count = unread if n - unread > most_read else at_once
        indices = self.bounds.largest_predicted(count)
        within = read(indices, self.centers)
        self.bounds.renew(indices, self.centers)
        return within

    def _pick_among_ties(self, k: int, read: Read) -> bool:
        """More rows tie than a block holds: embed all and pick by the classical loop."""
        unread = (self.bounds.allowance >= 0).nonzero()[:, 0]
        if len(unread) and not read(unread, self.centers):
            return False
        self.stream(k)
        return True
