"""Ops in torch's own float32 kernels, a tile at a time: for the CPU, where float64 throughout would be slow."""

import torch

TILE_LOGITS = 1 << 20  # 4 MB: several passes are made over a tile, which stays in the caches


def logit_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As reference.logit_stats, from float32 sums; bias float32. A tile is some tokens by the whole vocabulary."""
    largest, margin, entropy = torch.empty((3, len(hidden)), dtype=torch.float32, device=hidden.device)
    tokens = max(1, TILE_LOGITS // len(weight))
    for start in range(0, len(hidden), tokens):
        part = slice(start, start + tokens)
        logits = _logits(hidden[part].float(), weight, bias)  # [tokens, V]
        first, index = logits.max(dim=1, keepdim=True)
        below = logits - first
        exponential = below.exp()
        total = exponential.sum(dim=1)
        weighted = exponential.mul_(below).sum(dim=1)
        largest[part] = first[:, 0]
        margin[part] = -below.scatter_(1, index, -float("inf")).amax(dim=1)
        # Neither term is negative: nothing cancels. NaN where a logit, or a difference from the largest, is not finite.
        entropy[part] = total.log() - weighted / total
    bad = (~torch.isfinite(entropy)).nonzero()[:1, 0]
    return largest, margin, entropy, bad if len(bad) else bad.new_full((1,), -1)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[tokens, V] float32; a weight in half precision is widened a part at a time."""
    if weight.dtype == torch.float32:
        logits = hidden @ weight.T
    else:
        parts = weight.split(max(1, TILE_LOGITS // weight.shape[1]))
        logits = torch.cat([hidden @ part.float().T for part in parts], dim=1)
    return logits if bias is None else logits.add_(bias)
