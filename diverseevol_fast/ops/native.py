"""Glue to the C++ extension `_native`, CPU and CUDA kernels: addresses, sizes and strides out of tensors.

The public ops check the arguments. Flags and counts come back in tensors, so that nothing here waits for a GPU.
"""

import os

import torch

from .. import _native  # ImportError when it was not built; ops.backends turns that into a reason
from .audit import BoundViolationError
from .checks import no_row

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def chosen_isa() -> str:
    """The widest ISA that is usable here, or the one that DIVERSEEVOL_ISA names (for tests).

    Raises:
        ValueError: the named ISA is unknown, or cannot run here.
    """
    forced = os.environ.get("DIVERSEEVOL_ISA")
    usable = _native.usable_isas()  # slowest first
    if forced is None:
        return usable[-1]
    if forced not in usable:
        raise ValueError(f"DIVERSEEVOL_ISA: expected one of {', '.join(usable)} on this machine, got {forced!r}")
    return forced


def execution_target(device: torch.device) -> "_native.ExecutionTarget":
    """What kernels of tensors on `device` run on: torch's threads, or torch's current stream."""
    if device.type == "cpu":
        return _native.cpu_target(isa=chosen_isa(), threads=torch.get_num_threads())
    buffers = []  # of this call, alive as long as allocate is

    def allocate(count: int) -> int:
        buffers.append(torch.empty(count, dtype=torch.uint8, device=device))  # torch reuses it in the stream's order
        return buffers[-1].data_ptr()

    return _native.gpu_target(device.index, torch.cuda.current_stream(device).cuda_stream, allocate)


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.masked_mean_pool, D contiguous: the pooled rows [B, D], and the first row with nothing to pool.

    The index of that row is int64 [1], -1 for none, as every flag of this module.
    """
    out, empty, call, _alive = _pool_call(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    _native.masked_mean_pool(execution_target(hidden.device), call)
    return out, empty


def pool_min_sqdist(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """masked_mean_pool, and min_sqdist of the pooled rows, in one call; returns the results of the two."""
    out, empty, call, _alive = _pool_call(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    bad = no_row(hidden.device)
    _native.pool_min_sqdist(
        execution_target(hidden.device),
        call,
        centers=centers.data_ptr(),
        num_centers=len(centers),
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
        first_bad_row=bad.data_ptr(),
    )
    return out, empty, bad


def _pool_call(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> tuple[torch.Tensor, torch.Tensor, "_native.MaskedMeanPool", tuple]:
    """The result and flag tensors, the arguments of the call, and the tensors that must live until it is made."""
    packed = cu_seqlens is not None
    batch = len(cu_seqlens) - 1 if packed else hidden.shape[0]
    mask = None if mask is None else mask.contiguous()
    out = torch.empty((batch, hidden.shape[-1]), dtype=torch.float32, device=hidden.device)
    empty = no_row(hidden.device)
    call = _native.MaskedMeanPool(
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
        first_empty_row=empty.data_ptr(),
    )
    return out, empty, call, (hidden, mask, cu_seqlens, prefix_sum)


def min_sqdist(
    x: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    indices: torch.Tensor | None,
    general: bool = False,
) -> torch.Tensor:
    """x [N, D] with D contiguous, centers [M, D] float32, offset [D] float32, bound [N] float32 in place.

    indices: int64, the rows to bound, or None for all. All contiguous. general: on a GPU, only the kernel that serves
    every GPU. Returns the first row that is not finite (bounds of later rows may be unset then).
    """
    bad = no_row(x.device)
    _native.min_sqdist(
        execution_target(x.device),
        _rows(x),
        indices=_address(indices),
        count=len(x) if indices is None else len(indices),
        centers=centers.data_ptr(),
        num_centers=len(centers),
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
        first_bad_row=bad.data_ptr(),
        general=general,
    )
    return bad


def suits_hopper(x: torch.Tensor, indices: torch.Tensor | None, num_centers: int) -> bool:
    """Whether min_sqdist of x, of all rows or of those at `indices`, launches the kernel for Hopper alone."""
    return _native.suits_hopper(
        execution_target(x.device),
        _rows(x),
        indices=_address(indices),
        count=len(x) if indices is None else len(indices),
        num_centers=num_centers,
    )


def pick_block(
    rows: torch.Tensor,
    centers: torch.Tensor,
    offset: torch.Tensor,
    bound: torch.Tensor,
    threshold: torch.Tensor,
    stop: float,
    max_picks: int,
) -> torch.Tensor:
    """As reference.pick_block; threshold float64 [1], offset [D] float32 as in min_sqdist. All contiguous float32.

    Returns float64 [2 + 2 max_picks]: how many picks, the distance that follows, the picks and their distances.

    Raises:
        BoundViolationError: on the CPU, a bound is below its row's distance.
    """
    result = torch.empty(2 + 2 * max_picks, dtype=torch.float64, device=rows.device)
    picks = torch.empty(1 + max_picks, dtype=torch.int64, device=rows.device)  # their count, then their indices
    try:
        _native.pick_block(
            execution_target(rows.device),
            rows=rows.data_ptr(),
            num_rows=len(rows),
            centers=centers.data_ptr(),
            num_centers=len(centers),
            dim=rows.shape[1],
            offset=offset.data_ptr(),
            bound=bound.data_ptr(),
            threshold=threshold.data_ptr(),
            stop_sqdist=stop,
            max_picks=max_picks,
            picks=picks[1:].data_ptr(),
            sqdist=result[2 + max_picks :].data_ptr(),
            num_picks=picks.data_ptr(),
            next=result[1:].data_ptr(),
        )
    except _native.BoundViolationError as error:
        raise BoundViolationError(
            f"{error}. Either values changed while they were selected from, or a kernel is wrong: keep the values as "
            "they are until the selection is through; if they were, please report it with what `diverseevol env` prints"
        ) from error
    result[0] = picks[0]
    result[2 : 2 + max_picks] = picks[1:]
    return result


def update_argmax(x: torch.Tensor, center: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """x [N, D] with D contiguous, center [D] float32, nearest [N] float64 in place; the farthest row."""
    farthest = torch.empty(1, dtype=torch.int64, device=x.device)
    _native.update_argmax(
        execution_target(x.device),
        _rows(x),
        center=center.data_ptr(),
        nearest=nearest.data_ptr(),
        farthest=farthest.data_ptr(),
    )
    return farthest


def logit_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As reference.logit_stats, on a GPU; bias float32. The three statistics, and the first bad token."""
    largest, margin, entropy = torch.empty((3, len(hidden)), dtype=torch.float32, device=hidden.device)
    bad = no_row(hidden.device)
    _native.logit_stats(
        execution_target(hidden.device),
        hidden=hidden.data_ptr(),
        weight=weight.data_ptr(),
        bias=_address(bias),
        dtype=DTYPE_CODES[hidden.dtype],
        tokens=len(hidden),
        vocabulary=len(weight),
        dim=hidden.shape[1],
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        largest=largest.data_ptr(),
        margin=margin.data_ptr(),
        entropy=entropy.data_ptr(),
        first_bad_token=bad.data_ptr(),
    )
    return largest, margin, entropy, bad


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(x: torch.Tensor) -> "_native.Rows":
    return _native.Rows(x=x.data_ptr(), dtype=DTYPE_CODES[x.dtype], rows=x.shape[0], dim=x.shape[1], stride=x.stride(0))
