"""logit_stats in Triton: a program per tile of tokens and span of the vocabulary; a second kernel merges the spans."""

import torch
import triton
import triton.language as tl

VOCAB_SPAN = 1024  # words; fixed, so that a token's result does not depend on how many tokens come with it
# Keyed by the bytes of an element. Registers spill with larger tiles or fewer warps.
BLOCKS = {
    2: {"BLOCK_TOKENS": 128, "BLOCK_VOCAB": 128, "BLOCK_DIM": 32},
    4: {"BLOCK_TOKENS": 128, "BLOCK_VOCAB": 64, "BLOCK_DIM": 16},
}
LAUNCH = {2: {"num_warps": 8, "num_stages": 4}, 4: {"num_warps": 8, "num_stages": 3}}
BLOCK_MERGED = 128
NO_BAD_TOKEN = 1 << 62


@triton.jit
def rescaled(total, weighted, lower):
    """Sums of exp(z - a) and of exp(z - a) * (z - a), made relative to a - lower, lower <= 0; sums of 0 stay 0."""
    lower = tl.where(total == 0.0, 0.0, lower)  # lower is -infinity where there are no logits yet
    factor = tl.exp(lower)
    return total * factor, weighted * factor + total * factor * lower


@triton.jit
def merged(first, second, total, weighted, other_first, other_second, other_total, other_weighted):
    """Merge the statistics of two parts of the vocabulary, [TOKENS] float32 each.

    They are the two largest logits z, the sum of exp(z - first), and the sum of exp(z - first) * (z - first).
    """
    largest = tl.maximum(first, other_first)
    second = tl.maximum(tl.minimum(first, other_first), tl.maximum(second, other_second))
    total, weighted = rescaled(total, weighted, first - largest)
    other_total, other_weighted = rescaled(other_total, other_weighted, other_first - largest)
    return largest, second, total + other_total, weighted + other_weighted


@triton.jit
def statistics(logits, in_vocab):
    """The statistics that `merged` takes, for logits [TOKENS, VOCAB] in the columns in_vocab [VOCAB].

    A sum is NaN if a logit, or its difference from the largest, is not finite: 0 * -infinity, or infinity - infinity.
    """
    logits = tl.where(in_vocab[None, :], logits, float("-inf"))
    first = tl.max(logits, axis=1)
    # Columns beyond the vocabulary add nothing: exp(-1e4) is zero, and so is its product with -1e4.
    below = tl.where(in_vocab[None, :], logits - first[:, None], -1e4)
    exponential = tl.exp(below)
    total = tl.sum(exponential, axis=1)
    weighted = tl.sum(exponential * below, axis=1)
    ties = tl.sum((below == 0.0).to(tl.int32), axis=1)
    second = tl.max(tl.where(below == 0.0, float("-inf"), logits), axis=1)
    return first, tl.where(ties > 1, first, second), total, weighted


@triton.jit
def _logit_stats_kernel(
    hidden,
    weight,
    bias,
    parts,
    count,
    vocab,
    dim,
    stride_hidden,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    VOCAB_SPAN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)  # [BLOCK_TOKENS]
    # Indices beyond the last row of either matrix read that row again: a two-dimensional mask would cost registers.
    states_at = hidden + tl.minimum(token, count - 1)[:, None] * stride_hidden
    span = tl.program_id(1)
    first = tl.full((BLOCK_TOKENS,), float("-inf"), dtype=tl.float32)
    second = first
    total = tl.zeros((BLOCK_TOKENS,), dtype=tl.float32)
    weighted = total
    for start in range(span * VOCAB_SPAN, tl.minimum((span + 1) * VOCAB_SPAN, vocab), BLOCK_VOCAB):
        entry = start + tl.arange(0, BLOCK_VOCAB)  # [BLOCK_VOCAB]
        in_vocab = entry < vocab
        weights_at = weight + tl.minimum(entry, vocab - 1)[None, :].to(tl.int64) * stride_weight
        logits = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), dtype=tl.float32)
        for begin in range(0, dim, BLOCK_DIM):
            column = begin + tl.arange(0, BLOCK_DIM)  # [BLOCK_DIM]
            in_dim = column < dim
            states = tl.load(states_at + column[None, :], mask=in_dim[None, :], other=0.0)  # [BLOCK_TOKENS, BLOCK_DIM]
            weights = tl.load(weights_at + column[:, None], mask=in_dim[:, None], other=0.0)  # [BLOCK_DIM, BLOCK_VOCAB]
            if WIDEN:
                states, weights = states.to(tl.float32), weights.to(tl.float32)
            # Not "tf32x3" for float32: it omits the product of the remainders, 2**-22, and is less accurate than torch.
            logits = tl.dot(states, weights, logits, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + entry, mask=in_vocab, other=0.0)[None, :]
        first, second, total, weighted = merged(first, second, total, weighted, *statistics(logits, in_vocab))
    in_tokens = token < count
    part = parts + span.to(tl.int64) * 4 * count + token
    tl.store(part, first, mask=in_tokens)
    tl.store(part + count, second, mask=in_tokens)
    tl.store(part + 2 * count, total, mask=in_tokens)
    tl.store(part + 3 * count, weighted, mask=in_tokens)


@triton.jit
def _merge_spans_kernel(parts, largest, margin, entropy, first_bad, count, spans, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    in_tokens = token < count
    first = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    second = first
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    weighted = total
    part = parts + token
    for _ in range(spans):
        first, second, total, weighted = merged(
            first,
            second,
            total,
            weighted,
            tl.load(part, mask=in_tokens, other=1.0),
            tl.load(part + count, mask=in_tokens, other=1.0),
            tl.load(part + 2 * count, mask=in_tokens, other=1.0),
            tl.load(part + 3 * count, mask=in_tokens, other=1.0),
        )
        part += 4 * count
    tl.store(largest + token, first, mask=in_tokens)
    tl.store(margin + token, first - second, mask=in_tokens)
    nats = tl.log(total) - weighted / total  # both terms are >= 0, so nothing cancels
    tl.store(entropy + token, nats, mask=in_tokens)
    tl.atomic_min(first_bad, tl.min(tl.where(in_tokens & (nats - nats != 0.0), token, 1 << 62), axis=0))


def logit_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As reference.logit_stats; D contiguous, bias float32. Allocates 16 bytes per token and span of the vocabulary.

    Deterministic: spans are merged in ascending order.
    """
    (count, dim), vocab, device = hidden.shape, len(weight), hidden.device
    largest, margin, entropy = torch.empty((3, count), dtype=torch.float32, device=device)
    first_bad = torch.full((1,), NO_BAD_TOKEN, dtype=torch.int64, device=device)
    if count > 0:
        blocks, launch = BLOCKS[hidden.element_size()], LAUNCH[hidden.element_size()]
        spans = triton.cdiv(vocab, VOCAB_SPAN)
        parts = torch.empty((spans, 4, count), dtype=torch.float32, device=device)
        _logit_stats_kernel[(triton.cdiv(count, blocks["BLOCK_TOKENS"]), spans)](
            hidden,
            weight,
            hidden if bias is None else bias,
            parts,
            count,
            vocab,
            dim,
            hidden.stride(0),
            weight.stride(0),
            HAS_BIAS=bias is not None,
            WIDEN=triton.knobs.runtime.interpret,  # Triton's interpreter would multiply bfloat16 as integers
            VOCAB_SPAN=VOCAB_SPAN,
            **blocks,
            **launch,
        )
        _merge_spans_kernel[(triton.cdiv(count, BLOCK_MERGED),)](
            parts, largest, margin, entropy, first_bad, count, spans, BLOCK=BLOCK_MERGED
        )
    return largest, margin, entropy, torch.where(first_bad == NO_BAD_TOKEN, -1, first_bad)
