"""Rows on the device that works on them: what a traversal asks of its rows, and never waits for."""

import torch

from ..ops import backends
from ..ops.checks import check_row, first_not_finite
from ..ops.min_sqdist import screen
from ..ops.update_argmax import queue_update_argmax

OFFSET_SAMPLE = 256


class DeviceRows:
    """Rows [N, D] that are on the device already. HostRows has the same methods."""

    def __init__(self, x: torch.Tensor, chosen: dict[str, str]):
        """x [N, D], any dtype that kcenter takes; chosen: as choose_backends returns."""
        self.x, self.chosen, self.device = x, chosen, x.device
        self.largest_block = len(x)
        # The reference waits inside its ops.
        self.queued = not waits_are_free(x.device) and "reference" not in (chosen["min_sqdist"], chosen["pick_block"])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """D."""
        return self.x.shape[1]

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """These rows, int64 [R] on the device, as float32 [R, D]: exact for every stored dtype."""
        return self.x[numbers].to(torch.float32)

    def screen(
        self, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As min_sqdist.screen of all rows or of these, int64 [R] on the device, at least one."""
        return screen(self.x, centers, offset, bound, numbers, self.chosen["min_sqdist"])

    def update(self, centers: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """As update_argmax.queue_update_argmax, for one centre after the other: centers [M, D], at least one."""
        for center in centers:
            farthest = queue_update_argmax(self.x, center, nearest, self.chosen["update_argmax"])
        return farthest

    def mean(self) -> torch.Tensor:
        """As row_mean."""
        return row_mean(self.x)

    def check_finite(self) -> None:
        """Raises ValueError naming the first row that holds a NaN or an infinity."""
        check_row(first_not_finite(self.x))


def choose_backends(device: torch.device, backend: str, dtype: torch.dtype) -> dict[str, str]:
    """The backend of each op of a traversal over rows of dtype; for "auto" not necessarily one for all.

    Raises:
        ValueError: as backends.choose says.
    """
    dtypes = {"min_sqdist": dtype, "update_argmax": dtype, "pick_block": torch.float32}
    return {op: backends.choose(device, backend, op, dtypes[op]) for op in dtypes}


def waits_are_free(device: torch.device) -> bool:
    """Whether reading a result costs nothing: a GPU runs dry while the host waits for it."""
    return device.type == "cpu"


def row_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean [D] of some rows: what embeddings share is subtracted, since in products it would cost digits."""
    mean = x[:: max(1, len(x) // OFFSET_SAMPLE)].to(torch.float32).mean(dim=0)
    return torch.where(torch.isfinite(mean), mean, 0.0)
