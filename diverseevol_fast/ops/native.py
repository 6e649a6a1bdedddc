"""Glue to the C++ extension `_native`: addresses, sizes and strides out of tensors. Checked by the public ops."""

import os

import torch

from .. import _native  # ImportError when it was not built; ops.backends turns that into a reason

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# The automatic choice, widest first. Not amxbf16: checked on an emulation of its instructions alone (test_amx.py).
PROVEN_ISAS = ("avx512bf16", "avx512", "avx2", "scalar")


def chosen_isa() -> str:
    """The widest proven ISA that is usable here, or the one that DIVERSEEVOL_ISA names (for tests).

    Raises:
        ValueError: the named ISA is unknown, or cannot run here.
    """
    forced = os.environ.get("DIVERSEEVOL_ISA")
    if forced is None:
        return next(isa for isa in PROVEN_ISAS if _native.isa_usable(isa))
    usable = _native.usable_isas()
    if forced not in usable:
        raise ValueError(f"DIVERSEEVOL_ISA: expected one of {', '.join(usable)} on this machine, got {forced!r}")
    return forced


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> torch.Tensor:
    """As reference.masked_mean_pool, on the CPU; D contiguous.

    Raises:
        ValueError: a row has nothing to pool.
    """
    out, arguments, _kept = _pool_arguments(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    _check_pooled(_native.masked_mean_pool(arguments), mask)
    return out


def pool_min_sqdist(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
) -> tuple[torch.Tensor, int]:
    """masked_mean_pool, and min_sqdist of what it gives, in one call: the pooled rows [B, D], and what it returns.

    Raises:
        ValueError: a row has nothing to pool.
    """
    out, arguments, _kept = _pool_arguments(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    first_empty, first_bad = _native.pool_min_sqdist(
        arguments,
        centers=centers.data_ptr(),
        num_centers=len(centers),
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
    )
    _check_pooled(first_empty, mask)
    return out, first_bad


def _pool_arguments(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> tuple[torch.Tensor, "_native.PoolArguments", tuple]:
    """The result's tensor, the call's arguments, and what must live until the call is over."""
    packed = cu_seqlens is not None
    batch = len(cu_seqlens) - 1 if packed else hidden.shape[0]
    mask = None if mask is None else mask.contiguous()
    out = torch.empty((batch, hidden.shape[-1]), dtype=torch.float32)
    arguments = _native.PoolArguments(
        hidden=hidden.data_ptr(),
        dtype=DTYPE_CODES[hidden.dtype],
        mask=_address(mask),
        cu_seqlens=_address(cu_seqlens),
        prefix_sum=_address(prefix_sum),
        prefix_len=prefix_len,
        out=out.data_ptr(),
        batch=batch,
        tokens=0 if packed else hidden.shape[1],
        dim=hidden.shape[-1],
        hidden_stride_batch=0 if packed else hidden.stride(0),
        hidden_stride_token=hidden.stride(-2),
        isa=chosen_isa(),
        threads=torch.get_num_threads(),
    )
    return out, arguments, (hidden, mask, cu_seqlens, prefix_sum)


def _check_pooled(first_empty: int, mask: torch.Tensor | None) -> None:
    if first_empty >= 0:
        raise ValueError(f"{'cu_seqlens' if mask is None else 'mask'}: row {first_empty} has no token to pool")


def min_sqdist(
    x: torch.Tensor, centers: torch.Tensor, offset: torch.Tensor, bound: torch.Tensor, numbers: torch.Tensor | None
) -> int:
    """x [N, D] with D contiguous, centers [M, D] float32, offset [D] float32, bound [N] float32 in place.

    numbers: int64, the rows to bound, or None for all. All contiguous. Returns the first row that is not finite
    (bounds of later rows may be unset then), or -1.
    """
    return _native.min_sqdist(
        **_rows(x),
        numbers=_address(numbers),
        count=len(x) if numbers is None else len(numbers),
        centers=centers.data_ptr(),
        num_centers=len(centers),
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
        isa=chosen_isa(),
        threads=torch.get_num_threads(),
    )


def pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: float,
    stop: float,
    max_picks: int,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """As reference.pick_block; offset [D] float32 as in min_sqdist. All contiguous float32."""
    picks = torch.empty(min(max_picks, len(rows)), dtype=torch.int64)
    sqdist = torch.empty(len(picks), dtype=torch.float64)
    count, following = _native.pick_block(
        rows=rows.data_ptr(),
        num_rows=len(rows),
        centers=centers.data_ptr(),
        num_centers=len(centers),
        dim=rows.shape[1],
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
        threshold=threshold,
        stop_sqdist=stop,
        max_picks=len(picks),
        picks=picks.data_ptr(),
        sqdist=sqdist.data_ptr(),
        isa=chosen_isa(),
        threads=torch.get_num_threads(),
    )
    return picks[:count], sqdist[:count], following if count < len(rows) else -1.0


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor) -> int:
    """x [N, D] with D contiguous, center [D] float32, nearest [N] float64 in place; the farthest row."""
    return _native.update_argmax(
        **_rows(x),
        center=center.data_ptr(),
        nearest=nearest.data_ptr(),
        isa=chosen_isa(),
        threads=torch.get_num_threads(),
    )


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(x: torch.Tensor) -> dict[str, int]:
    return {
        "x": x.data_ptr(),
        "dtype": DTYPE_CODES[x.dtype],
        "rows": x.shape[0],
        "dim": x.shape[1],
        "stride": x.stride(0),
    }
