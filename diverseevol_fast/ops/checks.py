"""Checks that several ops make, and the chunks that strided rows are copied in."""

from collections.abc import Iterator

import torch

from .._common.dtypes import DTYPES, torch_dtype

CHUNK_ROWS = 4096
STORED = tuple(map(torch_dtype, DTYPES))


def chunks(x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """x [N, D] whole where its columns are contiguous, else in copied chunks; each with the index of its first row."""
    if has_contiguous_columns(x):
        yield 0, x
        return
    for start in range(0, len(x), CHUNK_ROWS):
        yield start, x[start : start + CHUNK_ROWS].contiguous()


def has_contiguous_columns(x: torch.Tensor) -> bool:
    """Whether the elements of a row lie side by side."""
    return x.stride(1) == 1 or x.shape[1] == 1


def first_not_finite(x: torch.Tensor) -> int:
    """The first row of x [N, D] that holds a NaN or an infinity, or -1."""
    for start in range(0, len(x), CHUNK_ROWS):
        bad = ~torch.isfinite(x[start : start + CHUNK_ROWS]).all(dim=1)
        if bad.any():
            return start + int(bad.nonzero()[0])
    return -1


def no_row(device: torch.device) -> torch.Tensor:
    """-1 as int64 [1] on the device: the flag of an op that found no row to be wrong."""
    return torch.full((1,), -1, dtype=torch.int64, device=device)


def check_row(bad: int) -> None:
    """Raises ValueError naming the row of x that holds a NaN or an infinity; -1 for none."""
    if bad >= 0:
        raise ValueError(f"x: row {bad} holds a value that is not finite")


def check_rows(x: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless x is [N, D] of a stored dtype, D at least 1."""
    if x.dtype not in STORED:
        raise TypeError(f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x: expected shape [N, D] with D at least 1, got {tuple(x.shape)}")
