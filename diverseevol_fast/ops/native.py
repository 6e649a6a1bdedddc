"""Glue to the C++ extension `_native`, CPU and CUDA kernels: addresses, sizes and strides out of tensors.

Arguments are checked by the public ops. What a kernel finds out comes back in tensors, so that a GPU need not be waited
for here.
"""

import os

import torch

from .. import _native  # ImportError when it was not built; ops.backends turns that into a reason
from .audit import BoundViolationError

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
    kept = []

    def allocate(count: int) -> int:
        kept.append(torch.empty(count, dtype=torch.uint8, device=device))  # torch reuses it in the stream's order
        return kept[-1].data_ptr()

    return _native.gpu_target(device.index, torch.cuda.current_stream(device).cuda_stream, allocate)


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.masked_mean_pool; D contiguous. The pooled rows [B, D], and the first row with nothing to pool.

    That row's number is int64 [1], -1 for none, as all of this module's.
    """
    out, empty, call, _kept = _pool_call(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
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
    """masked_mean_pool, and min_sqdist of what it gives, in one call: what the two return."""
    out, empty, call, _kept = _pool_call(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    bad = torch.full((1,), -1, dtype=torch.int64, device=hidden.device)
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
    """The results' tensors, the call, and what must live until it is made."""
    packed = cu_seqlens is not None
    batch = len(cu_seqlens) - 1 if packed else hidden.shape[0]
    mask = None if mask is None else mask.contiguous()
    out = torch.empty((batch, hidden.shape[-1]), dtype=torch.float32, device=hidden.device)
    empty = torch.full((1,), -1, dtype=torch.int64, device=hidden.device)
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
    numbers: torch.Tensor | None,
    general: bool = False,
) -> torch.Tensor:
    """x [N, D] with D contiguous, centers [M, D] float32, offset [D] float32, bound [N] float32 in place.

    numbers: int64, the rows to bound, or None for all. All contiguous. general: on a GPU, only the kernel that serves
    every GPU. Returns the first row that is not finite (bounds of later rows may be unset then).
    """
    bad = torch.full((1,), -1, dtype=torch.int64, device=x.device)
    _native.min_sqdist(
        execution_target(x.device),
        _rows(x),
        indices=_address(numbers),
        count=len(x) if numbers is None else len(numbers),
        centers=centers.data_ptr(),
        num_centers=len(centers),
        offset=offset.data_ptr(),
        bound=bound.data_ptr(),
        first_bad_row=bad.data_ptr(),
        general=general,
    )
    return bad


def takes_hopper(x: torch.Tensor, numbers: torch.Tensor | None, num_centers: int) -> bool:
    """Whether min_sqdist of x, of all rows or of these, launches the kernel that Hopper alone has."""
    return _native.suits_hopper(
        execution_target(x.device),
        _rows(x),
        indices=_address(numbers),
        count=len(x) if numbers is None else len(numbers),
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

    Returns float64 [2 + 2 max_picks]: how many picks, the distance that follows, and the picks and their distances.

    Raises:
        BoundViolationError: on the CPU, a bound is below its row's distance.
    """
    found = torch.empty(2 + 2 * max_picks, dtype=torch.float64, device=rows.device)
    numbers = torch.empty(1 + max_picks, dtype=torch.int64, device=rows.device)
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
            picks=numbers[1:].data_ptr(),
            sqdist=found[2 + max_picks :].data_ptr(),
            num_picks=numbers.data_ptr(),
            next=found[1:].data_ptr(),
        )
    except _native.BoundViolationError as error:
        raise BoundViolationError(
            f"{error}. Either values changed while they were selected from, or a kernel is wrong: keep the values as "
            "they are until the selection is through; if they were, please report this with what `diverseevol env "
            "--check` prints"
        ) from error
    found[0] = numbers[0]
    found[2 : 2 + max_picks] = numbers[1:]
    return found


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
    bad = torch.full((1,), -1, dtype=torch.int64, device=hidden.device)
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
