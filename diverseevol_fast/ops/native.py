"""Glue to the C++ extension `_native`: addresses, sizes and strides out of tensors. Checked by the public ops."""

import os

import torch

from .. import _native  # ImportError when it was not built; ops.backends turns that into a reason

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def chosen_isa() -> str:
    """The widest usable ISA, or the one that DIVERSEEVOL_ISA names (for tests).

    Raises:
        ValueError: the named ISA is unknown, or cannot run here.
    """
    usable = _native.usable_isas()
    forced = os.environ.get("DIVERSEEVOL_ISA")
    if forced is None:
        return usable[-1]
    if forced not in usable:
        raise ValueError(f"DIVERSEEVOL_ISA: expected one of {', '.join(usable)} on this machine, got {forced!r}")
    return forced


def masked_mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [B, T, D] on the CPU with D contiguous, mask [B, T] bool -> [B, D] float32.

    Raises:
        ValueError: a row has nothing to pool.
    """
    batch, tokens, dim = hidden.shape
    mask = mask.contiguous()
    out = torch.empty((batch, dim), dtype=torch.float32)
    first_empty = _native.masked_mean_pool(
        hidden=hidden.data_ptr(),
        dtype=DTYPE_CODES[hidden.dtype],
        mask=mask.data_ptr(),
        out=out.data_ptr(),
        batch=batch,
        tokens=tokens,
        dim=dim,
        hidden_stride_batch=hidden.stride(0),
        hidden_stride_token=hidden.stride(1),
        isa=chosen_isa(),
        threads=torch.get_num_threads(),
    )
    if first_empty >= 0:
        raise ValueError(f"mask: row {first_empty} has no token to pool")
    return out
