"""Upper bounds of all rows' distances to their nearest center, tightened only where they decide a pick."""

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from ..ops import audit
from ..ops.checks import check_row, no_row
from . import device_rows
from .device_rows import DeviceRows
from .host_rows import HostRows

FIRST_CENTERS = 32  # a screen of so few is bound by reading the rows, on a GPU too; a panel of the AVX-512 products
REFINED_BLOCKS = 4  # refine tightens so many blocks of rows at first, and twice as many each time that was too few
REFINED_SHARE = 8  # without waiting it tightens an eighth of all rows, which costs little beside the screen
AUDITED_ROWS = 1024  # of a screen
AUDITED_REFINED = 128  # of the rows that are tightened at once; their distances are to all centers
# On a CPU an audit takes under 1 % of the time: it covers one row in AUDIT_SHARE of a screen of at least AUDIT_WORK
# multiplications, and no tightened rows, for which converting the centers to float64 would cost more.
AUDIT_WORK = 1 << 32
AUDIT_SHARE = 4000


class Bounds:
    """bound[i] is never below row i's squared distance to its nearest center: a stale bound is still a bound.

    One screen applies the first few centers to all rows. The other centers, and the picks, are applied only to rows
    whose bound is among the largest. (The lazy evaluation of Minoux's accelerated greedy, 1978, in batches.)
    """

    def __init__(self, rows: DeviceRows | HostRows):
        self.rows, device = rows, rows.device
        self.bound = torch.full((len(rows),), float("inf"), dtype=torch.float32, device=device)  # [N]
        # [N]: how many leading centers the bound of a row already includes
        self.centers_applied = torch.zeros(len(rows), dtype=torch.int32, device=device)
        self.min_centers_applied = 0  # a lower bound of centers_applied over all rows
        self.max_centers_applied = 0  # an upper bound of it
        self.available = len(rows)  # rows that are not centers
        self.bad_row = no_row(device)  # the first row that is not finite; read only when the host waits anyway
        self.violation = no_row(device)  # a row whose bound is below its distance; read with bad_row
        self.offset = torch.zeros(rows.dim, device=device)  # [D], subtracted from rows and centers before products
        self.rows_read = 0

    def exclude(self, indices: torch.Tensor) -> None:
        """Rows at `indices`, int64 on the device, are centers from now on and never picked."""
        self.bound.index_fill_(0, indices, -float("inf"))
        self.available -= len(indices)

    def screen(self, centers: torch.Tensor) -> None:
        """One pass: every row against the first centers.

        Raises:
            ValueError: a row is not finite. On asynchronous rows nothing is raised: `bad_row` holds it.
        """
        first = centers[:FIRST_CENTERS]
        self.offset = self.rows.mean()
        self.bad_row = self.lower(first)
        if not self.rows.asynchronous:
            check_row(int(self.bad_row))
        self.centers_applied.fill_(len(first))
        self.min_centers_applied = self.max_centers_applied = len(first)
        self.rows_read += len(self.rows)
        self.audit(centers)

    def lower(self, centers: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Lower the bounds of all rows, or of those at `indices`, to what these centers make them.

        Returns the first row that is not finite, int64 [1] on the device; -1 for none.
        """
        return self.rows.screen(centers, self.offset, self.bound, indices)

    def audit(self, centers: torch.Tensor, tightened: torch.Tensor | None = None) -> None:
        """Hold the bounds of some rows, drawn at random, against float64 distances; `violation` holds a failed row.

        tightened: the rows, int64 on the device, whose bounds have just changed; None: all.
        """
        applied = centers[: self.max_centers_applied]
        count = len(self.rows) if tightened is None else len(tightened)
        size = self._audit_size(len(applied), tightened)
        if size == 0:
            return
        drawn = copy_to_device(torch.from_numpy(np.random.default_rng().integers(count, size=size)), self.rows.device)
        indices = drawn if tightened is None else tightened[drawn]
        below = audit.sqdist_from_below(self.rows.gather(indices), applied, self.offset)
        wrong = audit.first_violation(self.bound[indices], below)
        self.violation = torch.where((self.violation < 0) & (wrong >= 0), indices[wrong], self.violation)

    def _audit_size(self, num_centers: int, tightened: torch.Tensor | None) -> int:
        """How many rows are audited against so many centers: of those that were tightened, or of all."""
        if self.rows.chosen["min_sqdist"] == "reference":
            return 0
        most = min(AUDITED_ROWS, self.rows.largest_block // 2)  # they fit into the memory of a block
        if not device_rows.is_synchronous(self.rows.device):
            return min(most, len(self.rows)) if tightened is None else min(most, AUDITED_REFINED, len(tightened))
        if tightened is not None or len(self.rows) * num_centers * self.rows.dim < AUDIT_WORK:
            return 0
        return min(most, len(self.rows) // AUDIT_SHARE)

    def refine(self, centers: torch.Tensor, size: int, wait: bool = True) -> None:
        """Tighten bounds until none of the `size` largest is stale.

        wait: False tightens once, without waiting for a GPU, and may leave stale bounds among the largest.
        """
        if not wait:
            if self.min_centers_applied < len(centers):
                count = max(REFINED_BLOCKS * size, len(self.rows) // REFINED_SHARE)
                largest = self.bound.topk(min(count, self.available)).indices
                self.tighten(largest.sort().values, centers, self.min_centers_applied)
            return
        batch = REFINED_BLOCKS * size
        while len(stale := self._stale(len(centers), size)):
            if len(stale) > batch:
                stale = stale[self.bound[stale].topk(batch).indices].sort().values
            self.tighten(stale, centers, int(self.centers_applied[stale].min()))
            batch *= 2

    def tighten(self, indices: torch.Tensor, centers: torch.Tensor, applied: int) -> None:
        """Apply the centers from `applied` on to these rows, which include the ones before and were finite then."""
        bad = self.lower(centers[applied:], indices)
        self.bad_row = torch.where(self.bad_row < 0, bad, self.bad_row)
        self.centers_applied.index_fill_(0, indices, len(centers))
        self.max_centers_applied = len(centers)
        self.rows_read += len(indices)
        self.audit(centers, indices)

    def _stale(self, num_centers: int, size: int) -> torch.Tensor:
        """Rows, ascending, that lack centers and whose bound is above the `size` largest of rows that lack none."""
        current = self.centers_applied == num_centers
        up_to_date = self.bound[current]
        cut = up_to_date.topk(size).values[-1] if len(up_to_date) >= size else -float("inf")
        return ((self.bound > cut) & ~current).nonzero()[:, 0]

    def largest(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `size` rows with the largest bounds, ascending; the largest bound inside, and the largest outside.

        size: from 1 to the rows available. Both bounds are float64 [1] on the device.
        """
        top = self.bound.topk(min(size + 1, len(self.bound)))
        values = top.values.to(torch.float64)
        outside = values[size:] if len(values) > size else torch.full_like(values[:1], -float("inf"))
        return top.indices[:size].sort().values, values[:1], outside

    def record(self, indices: torch.Tensor, bound: torch.Tensor, applied: int) -> None:
        """Store the bounds of these rows, which the first `applied` centers would not lower enough to change a pick."""
        self.bound[indices] = bound
        self.centers_applied.index_fill_(0, indices, applied)
        self.max_centers_applied = max(self.max_centers_applied, applied)


def spread_first(count: int) -> list[int]:
    """The integers below count; the first FIRST_CENTERS of them are spread evenly over the range."""
    chosen = [count * i // FIRST_CENTERS for i in range(FIRST_CENTERS)] if count > FIRST_CENTERS else []
    taken = set(chosen)
    return chosen + [i for i in range(count) if i not in taken]
