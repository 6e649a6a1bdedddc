"""min_sqdist: bounds of all rows' distances to their nearest center, in one pass."""

import torch

from . import backends, reference
from .checks import CHUNK_ROWS, check_row, check_rows, chunks, first_not_finite, has_contiguous_columns, no_row

LARGEST_DIM = 1 << 16  # from here on the error bound of the screen does not hold


def check_screen(
    n: int, dim: int, device: torch.device, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor
) -> None:
    """Raises TypeError or ValueError unless kernels may use these for n rows of dim columns on the device."""
    if dim >= LARGEST_DIM:
        raise ValueError(f"expected fewer than {LARGEST_DIM} columns, for which bounds are certified, got {dim}")
    for name, value, shape in (("offset", offset, (dim,)), ("bound", bound, (n,)), ("centers", centers, None)):
        if value.device != device:
            raise ValueError(f"{name}: expected device {device}, got {value.device}")
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32, got {value.dtype}")
        if shape is not None and value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    if centers.dim() != 2 or len(centers) == 0 or centers.shape[1] != dim:
        raise ValueError(f"centers: expected shape [M, {dim}] with M at least 1, got {tuple(centers.shape)}")
    if not bound.is_contiguous():
        raise ValueError("bound: expected a contiguous tensor, which is lowered in place")


def min_sqdist(
    x: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    rows: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Screen: lower `bound` to an upper bound of each row's squared distance to its nearest center.

    The bound is certified: never below the float64 squared distance, whatever precision the products had.

    Args:
        x: [N, D] float32, bfloat16 or float16; any strides.
        centers: [M, D] float32, M at least 1, finite: the centers' stored values.
        offset: [D] float32: subtracted from both before the products; near the rows' mean it makes bounds tight.
        bound: [N] float32, lowered in place; -infinity stays.
        rows: distinct int64 indices: only these rows are read and bounded; None: all.
        backend: "auto", "native", "cuda", "triton" or "reference".

    Raises:
        TypeError: a wrong dtype.
        ValueError: wrong shapes, rows out of range, a row of x that is not finite (the first is named), or an unusable
            backend.
    """
    check_rows(x)
    chosen = backends.choose(x.device, backend, "min_sqdist", x.dtype)
    check_screen(len(x), x.shape[1], x.device, centers, offset, bound)
    if rows is not None:
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise TypeError(f"rows: expected int64 numbers in one dimension, got {rows.dtype} {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
            raise ValueError(f"rows: expected numbers from 0 to {len(x) - 1}")
        rows = rows.contiguous()
    check_row(int(screen(x, centers.contiguous(), offset.contiguous(), bound, rows, chosen)))


def screen(
    x: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    indices: torch.Tensor | None,
    chosen: str,
) -> torch.Tensor:
    """min_sqdist of all rows, or of those at `indices` (int64 [R]), unchecked and without waiting for a GPU.

    Returns the first row that is not finite as int64 [1], -1 for none; bounds mean nothing when there is one.
    """
    if indices is not None and (chosen == "reference" or not has_contiguous_columns(x)):
        parts = indices.split(CHUNK_ROWS) if len(indices) else ()
        return lowest([screen_copy(x[part], part, centers, offset, bound, chosen) for part in parts], x.device)
    if chosen == "reference":
        bad = torch.full((1,), first_not_finite(x), device=x.device)
        if int(bad) < 0:
            reference.min_sqdist(x, centers, bound)
        return bad
    bad_rows = []
    for start, part in chunks(x):
        tensors = (part, centers, offset, bound[start : start + len(part)], indices)
        bad = backends.run(chosen, "min_sqdist", x.device, *tensors)
        bad_rows.append(torch.where(bad < 0, bad, bad + start))
    return lowest(bad_rows, x.device)


def screen_copy(
    copy: torch.Tensor,
    indices: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    chosen: str,
) -> torch.Tensor:
    """screen of rows that were copied out of x: copy [R, D], their indices int64 [R]; bound [N] is that of x."""
    lowered = bound[indices]
    bad = screen(copy, centers, offset, lowered, None, chosen)
    bound[indices] = lowered
    return torch.where(bad < 0, bad, indices[bad])


def lowest(indices: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The lowest of any number of indices on the device, each int64 [1] and -1 for none; -1 where all are."""
    if len(indices) == 1:
        return indices[0]
    largest = torch.iinfo(torch.int64).max
    candidates = torch.cat([*indices, no_row(device)])
    lowest = torch.where(candidates < 0, largest, candidates).min()
    return torch.where(lowest == largest, -1, lowest)[None]
