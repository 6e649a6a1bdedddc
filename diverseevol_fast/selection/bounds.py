"""Upper bounds of all rows' distances to their nearest centre, brought up to date only where it matters."""

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from ..ops import audit
from ..ops.checks import check_row
from . import device_rows as device_rows
from .device_rows import DeviceRows
from .host_rows import HostRows

FIRST_CENTERS = 32  # a screen of so few is bound by reading the rows, on a GPU too; a panel of the AVX-512 products
REFINED_BLOCKS = 4  # how many blocks of rows are refined at first; twice as many each time that was too few
REFINED_SHARE = 8  # where it is not known how many suffice: an eighth of all rows, at small cost beside the screen
AUDITED_ROWS = 1024  # of a screen
AUDITED_REFINED = 128  # of the rows that are refined at once, which are held against all centers
# On a CPU an audit takes under 1 %: of a screen of at least so many multiplications, one row in AUDIT_SHARE; none of
# those that are refined, where taking the centers to float64 would cost more.
AUDIT_WORK = 1 << 32
AUDIT_SHARE = 4000


class Bounds:
    """bound[i] is never below row i's squared distance to its nearest centre: a stale bound is still a bound.

    All rows are screened once, against the first few centres; the other centres, and those picked since, are looked at
    for rows whose bound is among the largest. (The lazy evaluation of Minoux's accelerated greedy, 1978, in batches.)
    """

    def __init__(self, rows: DeviceRows | HostRows):
        self.rows, device = rows, rows.device
        self.bound = torch.full((len(rows),), float("inf"), dtype=torch.float32, device=device)  # [N]
        self.seen = torch.zeros(len(rows), dtype=torch.int32, device=device)  # [N], centres that need no second look
        self.all_seen = 0  # so many centres at least, whatever the row
        self.available = len(rows)  # rows that are not centres
        self.bad_row = torch.full((1,), -1, device=device)  # the first row that is not finite, perhaps not computed yet
        self.violation = torch.full((1,), -1, device=device)  # a row whose bound is below its distance, as bad_row
        self.most_seen = 0  # so many centres at most, whatever the row
        self.offset: torch.Tensor | None = None  # [D]
        self.rows_read = 0

    def exclude(self, rows: torch.Tensor) -> None:
        """These rows, int64 on the device, are centres from now on: never picked."""
        self.bound.index_fill_(0, rows, -float("inf"))
        self.available -= len(rows)

    def screen(self, centers: torch.Tensor) -> None:
        """One pass: every row against the first centres.

        Raises:
            ValueError: a row is not finite. Where that is not known without waiting, `bad_row` says so later.
        """
        first = centers[:FIRST_CENTERS]
        self.offset = self.rows.mean()
        self.bad_row = self.rows.screen(first, self.offset, self.bound)
        if not self.rows.queued:
            check_row(int(self.bad_row))
        self.seen.fill_(len(first))
        self.all_seen = self.most_seen = len(first)
        self.rows_read += len(self.rows)
        self.audit(centers)

    def audit(self, centers: torch.Tensor, refined: torch.Tensor | None = None) -> None:
        """Hold the bounds of some rows, drawn at random, against float64 distances; `violation` says what came of it.

        refined: the rows, int64 on the device, that were bounded just now; None: all.
        """
        seen = centers[: self.most_seen]
        count = len(self.rows) if refined is None else len(refined)
        size = self._audited(len(seen), refined)
        if size == 0:
            return
        drawn = copy_to_device(torch.from_numpy(np.random.default_rng().integers(count, size=size)), self.rows.device)
        rows = drawn if refined is None else refined[drawn]
        below = audit.sqdist_from_below(self.rows.gather(rows), seen, self.offset)
        place = audit.first_violation(self.bound[rows], below)
        self.violation = torch.where((self.violation < 0) & (place >= 0), rows[place], self.violation)

    def _audited(self, centers: int, refined: torch.Tensor | None) -> int:
        """How many rows are audited against so many centers: of those that were refined, or of all."""
        if self.rows.chosen["min_sqdist"] == "reference":
            return 0
        most = min(AUDITED_ROWS, self.rows.largest_block // 2)  # a block's memory is there for them
        if not device_rows.waits_are_free(self.rows.device):
            return min(most, len(self.rows)) if refined is None else min(most, AUDITED_REFINED, len(refined))
        if refined is not None or len(self.rows) * centers * self.rows.dim < AUDIT_WORK:
            return 0
        return min(most, len(self.rows) // AUDIT_SHARE)

    def refine(self, centers: torch.Tensor, size: int) -> None:
        """Go on until no out-of-date bound is among the `size` largest."""
        batch = REFINED_BLOCKS * size
        while True:
            stale = self._stale(len(centers), size)
            if len(stale) == 0:
                return
            if len(stale) > batch:
                stale = stale[self.bound[stale].topk(batch).indices].sort().values
            self._look_again(stale, centers, int(self.seen[stale].min()))
            batch *= 2

    def queue_refine(self, centers: torch.Tensor, size: int) -> None:
        """As refine, once and without waiting for a GPU: out-of-date bounds may be left among the largest."""
        if self.all_seen < len(centers):
            count = max(REFINED_BLOCKS * size, len(self.rows) // REFINED_SHARE)
            largest = self.bound.topk(min(count, self.available)).indices
            self._look_again(largest.sort().values, centers, self.all_seen)

    def _look_again(self, rows: torch.Tensor, centers: torch.Tensor, oldest: int) -> None:
        """Bring these rows up to date, which have seen the centres before `oldest`; they were finite when they had."""
        bad = self.rows.screen(centers[oldest:], self.offset, self.bound, rows)
        self.bad_row = torch.where(self.bad_row < 0, bad, self.bad_row)
        self.seen.index_fill_(0, rows, len(centers))
        self.most_seen = len(centers)
        self.rows_read += len(rows)
        self.audit(centers, rows)

    def _stale(self, count: int, size: int) -> torch.Tensor:
        """Rows, ascending, that are not up to date and above the `size` largest bounds of those that are."""
        current = self.seen == count
        up_to_date = self.bound[current]
        cut = up_to_date.topk(size).values[-1] if len(up_to_date) >= size else -float("inf")
        return ((self.bound > cut) & ~current).nonzero()[:, 0]

    def largest(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `size` rows with the largest bounds, ascending; the largest bound inside, and that left outside.

        size: from 1 to the rows available. Both bounds are float64 [1] on the device.
        """
        top = self.bound.topk(min(size + 1, len(self.bound)))
        values = top.values.to(torch.float64)
        outside = values[size:] if len(values) > size else torch.full_like(values[:1], -float("inf"))
        return top.indices[:size].sort().values, values[:1], outside

    def keep(self, rows: torch.Tensor, bound: torch.Tensor, count: int) -> None:
        """These rows' bounds; of the first `count` centres none would lower them where it matters."""
        self.bound[rows] = bound
        self.seen.index_fill_(0, rows, count)
        self.most_seen = max(self.most_seen, count)


def spread_first(count: int) -> list[int]:
    """The numbers below count, FIRST_CENTERS of them from all over the range at the beginning."""
    chosen = [count * i // FIRST_CENTERS for i in range(FIRST_CENTERS)] if count > FIRST_CENTERS else []
    taken = set(chosen)
    return chosen + [i for i in range(count) if i not in taken]
