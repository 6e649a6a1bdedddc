"""masked_mean_pool in Triton: one program per row and block of columns, tokens added in ascending order."""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = 8
BLOCK_DIM = 128


@triton.jit
def _masked_mean_pool_kernel(
    hidden, mask, out, tokens, dim,
    hidden_stride_batch, hidden_stride_token,
    BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)  # [BLOCK_DIM]
    in_dim = column < dim
    total = tl.zeros((BLOCK_DIM,), dtype=tl.float32)
    count = tl.zeros((BLOCK_TOKENS,), dtype=tl.int32)
    for start in range(0, tokens, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)  # [BLOCK_TOKENS]
        kept = tl.load(mask + row * tokens + token, mask=token < tokens, other=0) != 0
        # A masked position is never read, so whatever it holds cannot reach the sum.
        tile = tl.load(
            hidden + row * hidden_stride_batch + token[:, None].to(tl.int64) * hidden_stride_token + column[None, :],
            mask=kept[:, None] & in_dim[None, :],
            other=0.0,
        )  # [BLOCK_TOKENS, BLOCK_DIM]
        total += tl.sum(tile.to(tl.float32), axis=0)
        count += kept.to(tl.int32)
    mean = total / tl.sum(count, axis=0).to(tl.float32)
    tl.store(out + row * dim + column, mean, mask=in_dim)


def masked_mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [B, T, D] with D contiguous, mask [B, T] bool -> [B, D] float32. Checked by ops.pooling.

    Raises:
        ValueError: a row has nothing to pool.
    """
    batch, tokens, dim = hidden.shape
    empty = (~mask.any(dim=1)).nonzero()
    if empty.numel():
        raise ValueError(f"mask: row {int(empty[0])} has no token to pool")
    out = torch.empty((batch, dim), dtype=torch.float32, device=hidden.device)
    if out.numel() == 0:
        return out
    grid = (batch, triton.cdiv(dim, BLOCK_DIM))
    _masked_mean_pool_kernel[grid](
        hidden, mask.to(torch.uint8).contiguous(), out, tokens, dim,
        hidden.stride(0), hidden.stride(1),
        BLOCK_TOKENS=BLOCK_TOKENS, BLOCK_DIM=BLOCK_DIM,
    )  # fmt: skip
    return out
