"""min_sqdist: bounds of all rows' distances to their nearest centre, in one pass."""

from collections.abc import Iterator

import torch

from . import backends, reference

CHUNK_ROWS = 4096


def chunks(x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """x [N, D] whole where its columns are contiguous, else in copied pieces; each with its first row's number."""
    if _columns_contiguous(x):
        yield 0, x
        return
    for start in range(0, len(x), CHUNK_ROWS):
        yield start, x[start : start + CHUNK_ROWS].contiguous()


def _columns_contiguous(x: torch.Tensor) -> bool:
    return x.stride(1) == 1 or x.shape[1] == 1


def check_finite(x: torch.Tensor) -> None:
    """Raises ValueError naming the first row of x [N, D] that holds a NaN or an infinity."""
    for start in range(0, len(x), CHUNK_ROWS):
        bad = ~torch.isfinite(x[start : start + CHUNK_ROWS]).all(dim=1)
        if bad.any():
            raise ValueError(f"x: row {start + int(bad.nonzero()[0])} holds a value that is not finite")


def min_sqdist(
    x: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    rows: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Screen: lower `bound` to an upper bound of each row's squared distance to its nearest centre.

    The bound is certified: never below the float64 squared distance, whatever precision the products had.

    Args:
        x: [N, D] float32, bfloat16 or float16; any strides.
        centers: [M, D] float32, M at least 1, finite: the centres' stored values.
        offset: [D] float32: subtracted from both before the products; near the rows' mean it makes bounds tight.
        bound: [N] float32, lowered in place; -infinity stays.
        rows: int64 row numbers, distinct: only these are read and bounded; None: all.
        backend: "auto", "native", "triton" or "reference".

    Raises:
        ValueError: a row of x is not finite (the first is named), or an unusable backend.
    """
    chosen = backends.choose(x.device.type, backend, "min_sqdist")
    if rows is not None and (chosen == "reference" or not _columns_contiguous(x)):
        for part in rows.split(CHUNK_ROWS):
            lowered = bound[part]
            min_sqdist(x[part], centers, offset, lowered, backend=backend)
            bound[part] = lowered
        return
    if chosen == "reference":
        check_finite(x)
        reference.min_sqdist(x, centers, bound)
        return
    run = backends.module_of(chosen, "min_sqdist").min_sqdist
    centers, offset = centers.contiguous(), offset.contiguous()
    for start, part in chunks(x):
        bad = run(part, centers, offset, bound[start : start + len(part)], rows)
        if bad >= 0:
            raise ValueError(f"x: row {start + bad} holds a value that is not finite")
