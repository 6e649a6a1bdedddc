"""masked_mean_pool in Triton: one program per row and block of columns; it adds tokens in ascending order."""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = 8
BLOCK_DIM = 128


@triton.jit
def mean_of_tokens(
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
    HAS_MASK: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The mean of one row's unmasked tokens at the given columns [BLOCK_DIM], float32."""
    base = hidden + tl.load(starts + row)
    length = tl.load(lengths + row)
    total = tl.zeros((BLOCK_DIM,), dtype=tl.float32)
    if HAS_PREFIX:
        total = tl.load(prefix_sum + column, mask=in_dim, other=0.0)
    count = tl.zeros((BLOCK_TOKENS,), dtype=tl.int32)
    for start in range(0, length, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)  # [BLOCK_TOKENS]
        unmasked = token < length
        if HAS_MASK:
            unmasked = unmasked & (tl.load(mask + row * length + token, mask=unmasked, other=0) != 0)
        # A masked token is never read, so its values cannot reach the sum.
        tile = tl.load(
            base + token[:, None].to(tl.int64) * stride_token + column[None, :],
            mask=unmasked[:, None] & in_dim[None, :],
            other=0.0,
        )  # [BLOCK_TOKENS, BLOCK_DIM]
        total += tl.sum(tile.to(tl.float32), axis=0)
        count += unmasked.to(tl.int32)
    return total / (tl.sum(count, axis=0) + prefix_len).to(tl.float32)


@triton.jit
def _masked_mean_pool_kernel(
    hidden,
    mask,
    starts,
    lengths,
    prefix_sum,
    prefix_len,
    out,
    dim,
    stride_token,
    HAS_MASK: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
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


class PoolArguments:
    """The arguments of the pooling kernels, made from tensors that the public op has checked."""

    def __init__(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        prefix_sum: torch.Tensor | None,
        prefix_len: int,
    ):
        device = hidden.device
        if cu_seqlens is None:
            self.batch, tokens, self.dim = hidden.shape
            starts = torch.arange(self.batch, device=device) * hidden.stride(0)  # [B] elements
            lengths = torch.full((self.batch,), tokens, device=device)
            counts = mask.sum(dim=1)
        else:
            self.batch, self.dim = len(cu_seqlens) - 1, hidden.shape[1]
            starts = cu_seqlens[:-1] * hidden.stride(0)
            counts = lengths = cu_seqlens.diff()
        self.first_empty = first_of(counts + prefix_len == 0)
        unused = hidden  # a pointer that the kernel does not dereference
        self.out = torch.empty((self.batch, self.dim), dtype=torch.float32, device=device)
        self.values = (
            hidden,
            unused if mask is None else mask.to(torch.uint8).contiguous(),
            starts,
            lengths,
            unused if prefix_sum is None else prefix_sum,
            prefix_len,
            self.out,
            self.dim,
            hidden.stride(-2),
        )
        self.constants = {
            "HAS_MASK": mask is not None,
            "HAS_PREFIX": prefix_sum is not None,
            "BLOCK_TOKENS": BLOCK_TOKENS,
            "BLOCK_DIM": BLOCK_DIM,
        }


def masked_mean_pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    prefix_sum: torch.Tensor | None,
    prefix_len: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As native.masked_mean_pool."""
    arguments = PoolArguments(hidden, mask, cu_seqlens, prefix_sum, prefix_len)
    if arguments.out.numel():
        grid = (arguments.batch, triton.cdiv(arguments.dim, BLOCK_DIM))
        _masked_mean_pool_kernel[grid](*arguments.values, **arguments.constants)
    return arguments.out, arguments.first_empty


def first_of(flags: torch.Tensor) -> torch.Tensor:
    """The lowest index at which flags [B] are true, int64 [1], -1 for none."""
    if len(flags) == 0:
        return torch.full((1,), -1, device=flags.device)
    return torch.where(flags.any(), flags.to(torch.int8).argmax(), -1)[None]
