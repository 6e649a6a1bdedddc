"""Rows in host memory or in a memory map, brought to the device tile by tile: more of them than a GPU holds."""

import warnings
from collections.abc import Callable, Iterator

import torch

from .._common.device_copies import copy_to_device
from ..ops.checks import check_row, first_not_finite
from ..ops.min_sqdist import lowest, screen_copy
from ..ops.update_argmax import farthest, queue_update_argmax
from .device_rows import DeviceRows, row_mean

TILE_BYTES = 64 << 20  # so many take far longer to copy than a copy takes to begin
ROW_BYTES = 40  # for each row: bound, how far it is up to date, distance in float64; copies while rows are looked for
SMALLEST_BLOCK = 256  # a limit that leaves no room for such a block is too low


class HostRows:
    """Rows [N, D] in host memory; what is asked of them is done on the device, with two tiles of rows there at a time.

    The next tile is copied while the device works on the present one. A tile that is too large for the device is
    halved, with a warning, and the work on it done again: all of it may be done twice.
    """

    queued = False  # the host fetches the rows that the device finds: it waits to be told which

    def __init__(
        self, x: torch.Tensor, device: torch.device, chosen: dict[str, str], tile_rows: int, largest_block: int
    ):
        """x [N, D], any dtype that kcenter takes; chosen: as choose_backends returns for `device`."""
        self.x, self.device, self.chosen = x, device, chosen
        self.tile_rows = min(tile_rows, len(x))
        self.largest_block = largest_block

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """D."""
        return self.x.shape[1]

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """As DeviceRows.gather."""
        values = torch.empty((len(numbers), self.dim), dtype=torch.float32, device=self.device)

        def keep(start: int, tile: torch.Tensor) -> None:
            values[start : start + len(tile)] = tile

        self._over_tiles(keep, numbers.cpu())
        return values

    def screen(
        self, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As DeviceRows.screen."""

        def lower(start: int, tile: torch.Tensor) -> torch.Tensor:
            if numbers is None:
                places = torch.arange(start, start + len(tile), device=self.device)
            else:
                places = numbers[start : start + len(tile)]
            return screen_copy(tile, places, centers, offset, bound, self.chosen["min_sqdist"])

        return lowest(self._over_tiles(lower, None if numbers is None else numbers.cpu()))

    def update(self, centers: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """As DeviceRows.update; each tile is copied once for all centres."""

        def lower(start: int, tile: torch.Tensor) -> torch.Tensor:
            part = nearest[start : start + len(tile)]
            for center in centers:
                row = queue_update_argmax(tile, center, part, self.chosen["update_argmax"])
            return start + row

        return farthest(self._over_tiles(lower), nearest)

    def mean(self) -> torch.Tensor:
        """As row_mean."""
        return copy_to_device(row_mean(self.x), self.device)

    def check_finite(self) -> None:
        """As DeviceRows.check_finite."""
        check_row(first_not_finite(self.x))

    def _over_tiles(self, work: Callable[[int, torch.Tensor], object], numbers: torch.Tensor | None = None) -> list:
        """What work(place of the first row, tile on the device) returns, for all tiles; work may be repeated."""
        count = len(self) if numbers is None else len(numbers)
        while True:
            size = max(1, min(self.tile_rows, count))
            try:
                return [work(start, tile) for start, tile in self._tiles(count, size, numbers)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Not in the handler, which keeps the tiles alive.
            self.tile_rows = size // 2
            warnings.warn(f"out of GPU memory with tiles of {size} rows: going on with {size // 2}", stacklevel=2)

    def _tiles(self, count: int, size: int, numbers: torch.Tensor | None) -> Iterator[tuple[int, torch.Tensor]]:
        """All `count` rows, or these (int64 [count], in host memory), `size` at a time on the device.

        Each tile comes with the place of its first row.
        """
        copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        lanes = [_StagingBuffer(size, self.x, self.device, copies) for _ in range(2 if count > size else 1)]
        for i, start in enumerate(range(0, count, size)):
            lane, stop = lanes[i % 2], min(start + size, count)
            if numbers is None:
                lane.room(stop - start).copy_(self.x[start:stop])
            else:
                torch.index_select(self.x, 0, numbers[start:stop], out=lane.room(stop - start))
            yield start, lane.send(stop - start)
            lane.worked_on()


class _StagingBuffer:
    """Host memory for some rows and a tile for as many on the device: filled, sent, worked on, and again."""

    def __init__(self, size: int, x: torch.Tensor, device: torch.device, copies: "torch.cuda.Stream | None"):
        """copies: the stream that copies to a GPU; None: `device` is no GPU, and there is nothing to wait for."""
        self.staged = torch.empty((size, x.shape[1]), dtype=x.dtype, pin_memory=copies is not None)
        self.tile = torch.empty((size, x.shape[1]), dtype=x.dtype, device=device)
        self.copies = copies
        if copies is not None:
            self.sent, self.free = torch.cuda.Event(), torch.cuda.Event()
            self.worked_on()

    def room(self, count: int) -> torch.Tensor:
        """Host memory for `count` rows, once what it held has been copied."""
        if self.copies is not None:
            self.sent.synchronize()
        return self.staged[:count]

    def send(self, count: int) -> torch.Tensor:
        """The first rows of the host memory on the device, where work that is queued from now on finds them."""
        staged, tile = self.staged[:count], self.tile[:count]
        if self.copies is None:
            return tile.copy_(staged)
        self.copies.wait_event(self.free)
        with torch.cuda.stream(self.copies):
            tile.copy_(staged, non_blocking=True)
        self.sent.record(self.copies)
        torch.cuda.current_stream(tile.device).wait_event(self.sent)
        return tile

    def worked_on(self) -> None:
        """All work on the tile has been queued."""
        if self.copies is not None:
            self.free.record(torch.cuda.current_stream(self.tile.device))


def rows_on(
    x: torch.Tensor, device: torch.device, chosen: dict[str, str], limit: int | None, centers: int, largest_block: int
) -> DeviceRows | HostRows:
    """x [N, D] as rows that are worked on on `device`.

    limit: bytes to take there beyond x, or None; centers: how many will be held there; largest_block: rows.

    Raises:
        ValueError: the limit is too low (says what is needed), or x is on the device already.
    """
    if is_on(x, device):
        if limit is not None:
            raise ValueError(f"max_gpu_memory: for rows in host memory that a GPU works on; these stay on {device}")
        return DeviceRows(x, chosen)
    return HostRows(x, device, chosen, *split_memory(limit, x, centers, largest_block))


def is_on(x: torch.Tensor, device: torch.device) -> bool:
    """Whether x is where the work is done."""
    return x.device == device


def split_memory(limit: int | None, x: torch.Tensor, centers: int, largest_block: int) -> tuple[int, int]:
    """How many rows a tile holds and a block may hold, so that all that is on the device stays below `limit` bytes.

    Raises:
        ValueError: the limit is too low; the message says what is needed.
    """
    n, dim = x.shape
    tile_row = 2 * dim * x.element_size() + ROW_BYTES
    wanted = max(1, TILE_BYTES // (dim * x.element_size()))
    if limit is None:
        return wanted, largest_block

    def block_bytes(size: int) -> int:  # the rows, twice, and their float64 distances to centres and one another
        return 8 * size * (dim + centers + size)

    # Growing room for centres, the old one and the new, twice as large; and less the offset, rounded, squared.
    taken = ROW_BYTES * n + 6 * 4 * dim * centers
    least = taken + block_bytes(min(SMALLEST_BLOCK, n)) + tile_row
    if limit < least:
        raise ValueError(f"max_gpu_memory: these rows need at least {least:,} bytes, got {limit:,}")
    block = min(largest_block, n)
    while block > SMALLEST_BLOCK and 2 * block_bytes(block) > limit - taken:
        block = max(SMALLEST_BLOCK, block // 2)
    return min(wanted, (limit - taken - block_bytes(block)) // tile_row), block
