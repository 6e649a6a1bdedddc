"""Rows in host memory or in a memory map, copied to the device tile by tile: more rows than a GPU holds."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .._common.device_copies import copy_to_device
from ..ops.checks import check_row, first_not_finite
from ..ops.min_sqdist import lowest, screen_copy
from ..ops.update_argmax import farthest, launch_update_argmax
from .device_rows import DeviceRows, row_mean

TILE_BYTES = 64 << 20  # copying so many takes far longer than starting a copy
ROW_BYTES = 40  # for each row: bound, centers applied, distance in float64; copies of them while the largest are found
SMALLEST_BLOCK = 256  # a memory limit must leave room for such a block


class HostRows:
    """Rows [N, D] in host memory; the device works on them with two tiles of rows at a time.

    The next tile is copied while the device works on the present one. A tile that is too large for the device is
    halved, with a warning, and the operation starts again: part of its work may be done twice.
    """

    asynchronous = False  # the host needs the indices of rows before it can copy them

    def __init__(
        self, x: torch.Tensor, device: torch.device, chosen: dict[str, str], tile_rows: int, largest_block: int
    ):
        """x: [N, D], any dtype that kcenter takes; chosen: the result of choose_backends for `device`."""
        self.x, self.device, self.chosen = x, device, chosen
        self.tile_rows = min(tile_rows, len(x))
        self.largest_block = largest_block

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """D."""
        return self.x.shape[1]

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """As DeviceRows.gather."""
        values = torch.empty((len(indices), self.dim), dtype=torch.float32, device=self.device)

        def copy(start: int, tile: torch.Tensor) -> None:
            values[start : start + len(tile)] = tile

        self._over_tiles(copy, indices.cpu())
        return values

    def screen(
        self, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, indices: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As DeviceRows.screen."""

        def lower(start: int, tile: torch.Tensor) -> torch.Tensor:
            stop = start + len(tile)
            part = torch.arange(start, stop, device=self.device) if indices is None else indices[start:stop]
            return screen_copy(tile, part, centers, offset, bound, self.chosen["min_sqdist"])

        return lowest(self._over_tiles(lower, None if indices is None else indices.cpu()), self.device)

    def update(self, centers: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """As DeviceRows.update; each tile is copied once for all centers."""

        def lower(start: int, tile: torch.Tensor) -> torch.Tensor:
            part = nearest[start : start + len(tile)]
            for center in centers:
                index = launch_update_argmax(tile, center, part, self.chosen["update_argmax"])
            return index.add(start)

        return farthest(self._over_tiles(lower), nearest)

    def mean(self) -> torch.Tensor:
        """As row_mean."""
        return copy_to_device(row_mean(self.x), self.device)

    def check_finite(self) -> None:
        """As DeviceRows.check_finite."""
        check_row(first_not_finite(self.x))

    def _over_tiles(self, work: Callable[[int, torch.Tensor], Any], indices: torch.Tensor | None = None) -> list[Any]:
        """The results of work(start, tile), for the tiles that `_tiles` gives; work may be repeated."""
        count = len(self) if indices is None else len(indices)
        while True:
            size = max(1, min(self.tile_rows, count))
            try:
                return [work(start, tile) for start, tile in self._tiles(count, size, indices)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the handler, whose exception keeps the tiles alive.
            self.tile_rows = size // 2
            warnings.warn(f"out of GPU memory with tiles of {size} rows: going on with {size // 2}", stacklevel=2)

    def _tiles(self, count: int, size: int, indices: torch.Tensor | None) -> Iterator[tuple[int, torch.Tensor]]:
        """All `count` rows, or those at `indices` (int64 [count], in host memory), `size` at a time on the device.

        Each tile comes with the number of rows before it.
        """
        copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        buffers = [_StagingBuffer(size, self.x, self.device, copy_stream) for _ in range(2 if count > size else 1)]
        for i, start in enumerate(range(0, count, size)):
            buffer, stop = buffers[i % 2], min(start + size, count)
            if indices is None:
                buffer.host_rows(stop - start).copy_(self.x[start:stop])
            else:
                torch.index_select(self.x, 0, indices[start:stop], out=buffer.host_rows(stop - start))
            yield start, buffer.send(stop - start)
            buffer.release()


class _StagingBuffer:
    """Host memory for some rows, and a tile on the device for as many: filled, sent, released, and filled again."""

    def __init__(self, size: int, x: torch.Tensor, device: torch.device, copy_stream: "torch.cuda.Stream | None"):
        """copy_stream: copies to a GPU; None: `device` is no GPU, and nothing has to wait."""
        self.host = torch.empty((size, x.shape[1]), dtype=x.dtype, pin_memory=copy_stream is not None)
        self.tile = torch.empty((size, x.shape[1]), dtype=x.dtype, device=device)
        self.copy_stream = copy_stream
        if copy_stream is not None:
            self.copied, self.released = torch.cuda.Event(), torch.cuda.Event()
            self.release()

    def host_rows(self, count: int) -> torch.Tensor:
        """Host memory for `count` rows, once the copy of its previous rows has finished."""
        if self.copy_stream is not None:
            self.copied.synchronize()
        return self.host[:count]

    def send(self, count: int) -> torch.Tensor:
        """Copy the first rows of the host memory; returns the tile, for work on the current stream."""
        host, tile = self.host[:count], self.tile[:count]
        if self.copy_stream is None:
            return tile.copy_(host)
        self.copy_stream.wait_event(self.released)
        with torch.cuda.stream(self.copy_stream):
            tile.copy_(host, non_blocking=True)
        self.copied.record(self.copy_stream)
        torch.cuda.current_stream(tile.device).wait_event(self.copied)
        return tile

    def release(self) -> None:
        """The caller has launched all its work on the tile, after which the next rows may overwrite it."""
        if self.copy_stream is not None:
            self.released.record(torch.cuda.current_stream(self.tile.device))


def rows_on(
    x: torch.Tensor, device: torch.device, chosen: dict[str, str], limit: int | None, centers: int, largest_block: int
) -> DeviceRows | HostRows:
    """x [N, D] as rows for work on `device`.

    limit: bytes of device memory to use beyond x, or None; centers: how many will be there; largest_block: rows.

    Raises:
        ValueError: the limit is too low (the message says what is needed), or x is on the device already.
    """
    if is_on(x, device):
        if limit is not None:
            raise ValueError(f"max_gpu_memory: for rows in host memory that a GPU works on; these stay on {device}")
        return DeviceRows(x, chosen)
    return HostRows(x, device, chosen, *split_memory(limit, x, centers, largest_block))


def is_on(x: torch.Tensor, device: torch.device) -> bool:
    """Whether x is on the device that does the work."""
    return x.device == device


def split_memory(limit: int | None, x: torch.Tensor, centers: int, largest_block: int) -> tuple[int, int]:
    """Rows of a tile, and most rows of a block, with which the use of device memory stays below `limit` bytes.

    Raises:
        ValueError: the limit is too low; the message says what is needed.
    """
    n, dim = x.shape
    tile_row = 2 * dim * x.element_size() + ROW_BYTES
    wanted = max(1, TILE_BYTES // (dim * x.element_size()))
    if limit is None:
        return wanted, largest_block

    def block_bytes(size: int) -> int:  # two copies of the rows, and their float64 distances to centers and one another
        return 8 * size * (dim + centers + size)

    # The tensor of centers, while it grows to twice its size; the centers less the offset, rounded, and squared.
    taken = ROW_BYTES * n + 6 * 4 * dim * centers
    least = taken + block_bytes(min(SMALLEST_BLOCK, n)) + tile_row
    if limit < least:
        raise ValueError(f"max_gpu_memory: these rows need at least {least:,} bytes, got {limit:,}")
    block = min(largest_block, n)
    while block > SMALLEST_BLOCK and 2 * block_bytes(block) > limit - taken:
        block = max(SMALLEST_BLOCK, block // 2)
    return min(wanted, (limit - taken - block_bytes(block)) // tile_row), block
