"""pool_min_sqdist in Triton: in one launch, a program pools a block of a row's columns and multiplies them with the
first centers; the row's last program to finish adds the parts in order and bounds the row."""

import torch
import triton
import triton.language as tl

from .masked_mean_pool import BLOCK_DIM, PoolArguments, mean_of_tokens
from .min_sqdist import NO_BAD_ROW, centered_centers, certified_error, min_sqdist, norm_above

CENTERS = 32  # centers in the launch; min_sqdist screens the others afterwards
ROUNDOFF = tl.constexpr(2.0**-24)  # of a float32 addition


@triton.jit
def _pool_min_sqdist_kernel(
    hidden,
    mask,
    starts,
    lengths,
    prefix_sum,
    prefix_len,
    out,
    dim,
    stride_token,
    centers,
    center_sqnorm,
    center_norms,
    offset,
    bound,
    parts,
    arrived,
    first_bad,
    num_centers,
    HAS_MASK: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CENTERS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)  # [BLOCK_DIM]
    in_dim = column < dim
    mean = mean_of_tokens(
        hidden,
        mask,
        starts,
        lengths,
        prefix_sum,
        prefix_len,
        row,
        column,
        in_dim,
        stride_token,
        HAS_MASK,
        HAS_PREFIX,
        BLOCK_TOKENS,
        BLOCK_DIM,
    )
    tl.store(out + row * dim + column, mean, mask=in_dim)
    nonfinite = tl.max(((mean - mean != 0.0) & in_dim).to(tl.int32), axis=0)
    tl.atomic_min(first_bad, row, mask=nonfinite != 0)
    value = tl.where(in_dim, mean - tl.load(offset + column, mask=in_dim, other=0.0), 0.0)
    center = tl.arange(0, CENTERS)  # [CENTERS]
    points = tl.load(
        centers + center[:, None].to(tl.int64) * dim + column[None, :],
        mask=(center < num_centers)[:, None] & in_dim[None, :],
        other=0.0,
    )  # [CENTERS, BLOCK_DIM]
    # A row's parts are [programs][CENTERS + 1]: its products with the centers and its squared norm.
    programs = tl.num_programs(1)
    part = parts + (row * programs + tl.program_id(1)) * (CENTERS + 1)
    tl.store(part + center, tl.sum(points * value[None, :], axis=1))
    tl.store(part + CENTERS, tl.sum(value * value, axis=0))
    tl.debug_barrier()  # all threads write their part before the row's count increases
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == programs - 1:
        products = tl.zeros((CENTERS,), dtype=tl.float32)
        sqnorm = tl.zeros((1,), dtype=tl.float32)
        for program in range(programs):
            other = parts + (row * programs + program) * (CENTERS + 1)
            products += tl.load(other + center, cache_modifier=".cg")
            sqnorm += tl.load(other + CENTERS + tl.arange(0, 1), cache_modifier=".cg")
        own = tl.load(center_sqnorm + center, mask=center < num_centers, other=float("inf"))
        nearest = tl.min(own - 2.0 * products, axis=0)
        width = tl.full((1,), 1.0, dtype=tl.float64) * dim
        error = certified_error(norm_above(sqnorm, width), 0.0, tl.load(center_norms), 0.0, width, 1, ROUNDOFF)
        upper = (sqnorm.to(tl.float64) + nearest.to(tl.float64) + error).to(tl.float32)
        bound_at = bound + row + tl.arange(0, 1)
        tl.store(bound_at, upper, mask=upper < tl.load(bound_at))  # false for NaN


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
    """As native.pool_min_sqdist."""
    arguments = PoolArguments(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    pooled = arguments.out
    if pooled.numel() == 0:
        return pooled, arguments.first_empty, torch.full((1,), -1, device=hidden.device)
    device, programs = hidden.device, triton.cdiv(arguments.dim, BLOCK_DIM)
    points, sqnorm, norms = centered_centers(centers[:CENTERS], offset, torch.float32)
    parts = torch.empty((arguments.batch, programs, CENTERS + 1), dtype=torch.float32, device=device)
    arrived = torch.zeros(arguments.batch, dtype=torch.int32, device=device)
    first_bad = torch.full((1,), NO_BAD_ROW, dtype=torch.int64, device=device)
    _pool_min_sqdist_kernel[(arguments.batch, programs)](
        *arguments.values,
        points,
        sqnorm,
        norms,
        offset,
        bound,
        parts,
        arrived,
        first_bad,
        len(points),
        **arguments.constants,
        CENTERS=CENTERS,
    )
    bad = torch.where(first_bad == NO_BAD_ROW, -1, first_bad)
    if len(centers) > CENTERS:
        others = min_sqdist(pooled, centers[CENTERS:].contiguous(), offset, bound, None)
        bad = torch.where(bad < 0, others, bad)
    return pooled, arguments.first_empty, bad
