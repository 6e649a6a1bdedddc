"""Rows on the device that works on them: the operations of a traversal, none of which waits for a GPU."""

import torch

from ..ops import backends
from ..ops.checks import check_row, first_not_finite
from ..ops.min_sqdist import screen
from ..ops.update_argmax import launch_update_argmax

OFFSET_SAMPLE = 256


class DeviceRows:
    """Rows [N, D] that are on the device already. HostRows has the same methods."""

    def __init__(self, x: torch.Tensor, chosen: dict[str, str]):
        """x: [N, D], any dtype that kcenter takes; chosen: the result of choose_backends."""
        self.x, self.chosen, self.device = x, chosen, x.device
        self.largest_block = len(x)
        # Whether the host may run ahead of the device. The reference waits inside its ops.
        uses_reference = "reference" in (chosen["min_sqdist"], chosen["pick_block"])
        self.asynchronous = not is_synchronous(x.device) and not uses_reference

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """D."""
        return self.x.shape[1]

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows at `indices`, int64 [R] on the device, as float32 [R, D]: exact for every stored dtype."""
        return self.x[indices].to(torch.float32)

    def screen(
        self, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, indices: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As min_sqdist.screen, of all rows or of those at `indices`, int64 [R] on the device, R at least 1."""
        return screen(self.x, centers, offset, bound, indices, self.chosen["min_sqdist"])

    def update(self, centers: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """As launch_update_argmax, for one center after the other: centers [M, D], M at least 1."""
        for center in centers:
            farthest = launch_update_argmax(self.x, center, nearest, self.chosen["update_argmax"])
        return farthest

    def mean(self) -> torch.Tensor:
        """As row_mean."""
        return row_mean(self.x)

    def check_finite(self) -> None:
        """Raises ValueError naming the first row that holds a NaN or an infinity."""
        check_row(first_not_finite(self.x))


def choose_backends(device: torch.device, backend: str, dtype: torch.dtype) -> dict[str, str]:
    """The backend of each op of a traversal over rows of dtype; "auto" may choose different ones.

    Raises:
        ValueError: as backends.choose says.
    """
    dtypes = {"min_sqdist": dtype, "update_argmax": dtype, "pick_block": torch.float32}
    return {op: backends.choose(device, backend, op, dtypes[op]) for op in dtypes}


def is_synchronous(device: torch.device) -> bool:
    """Whether an op has finished when its call returns, so that reading a result costs nothing."""
    return device.type == "cpu"


def row_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean [D] of some rows: a common offset of embeddings would cost digits in products, and is subtracted."""
    mean = x[:: max(1, len(x) // OFFSET_SAMPLE)].to(torch.float32).mean(dim=0)
    return torch.where(torch.isfinite(mean), mean, 0.0)
