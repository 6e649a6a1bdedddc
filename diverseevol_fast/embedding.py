"""Embeddings: every row's mean last hidden state, batch by batch, what rows begin with alike run once."""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batches import pad
from .errors import RunError
from .models import backbone, check_vocabulary
from .ops import masked_mean_pool
from .prefix import Prefix, can_share_prefixes, group_rows, run_alone, run_prefix
from .progress import Progress
from .store import EmbeddingStore
from .templates import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def embed_rows(
    model: "PreTrainedModel",
    tokens: Tokens,
    rows: np.ndarray,
    store: EmbeddingStore,
    max_tokens_per_batch: int,
    share_prefixes: bool = True,
) -> dict[str, float]:
    """Fill `store` with the embeddings of `rows` of `tokens`: position i of the store is row rows[i].

    The plain mean of the last hidden states over all of a row's tokens (arXiv 2311.08182, section 2), pooled in
    float32. What a group of rows begins with alike is run once where the model can go on from it; share_prefixes
    False runs every row whole. Batches hold at most max_tokens_per_batch tokens, prefixes counted in every row, and
    are the same either way. Finished batches in the store are not computed again.

    Returns seconds, tokens (embedded, run or not) and tokens/s, the share of padding in what was run, and the share
    of tokens that were not run again.

    Raises:
        InputError: the tokenizer's ids do not fit the model.
        RunError: an embedding that is not finite; the row is named, finished batches are kept.
    """
    began = time.perf_counter()
    body = backbone(model).eval()
    check_vocabulary(model, int(tokens.ids.max()))
    groups = [] if store.complete else group_rows(tokens, rows, max_tokens_per_batch)
    share_prefixes = share_prefixes and any(len(group.prefix) for group in groups) and can_share_prefixes(body)
    embedded = run = padded = number = 0
    with Progress("embed", int(tokens.lengths()[rows].sum()), "token") as bar:
        for group in groups:
            prefix = None
            for batch in group.batches:
                real = int(tokens.lengths()[rows[batch]].sum())
                if number not in store.done:
                    if prefix is None and share_prefixes and len(group.prefix):
                        prefix = run_prefix(body, group.prefix, model.device)
                        run, padded = run + prefix.length, padded + prefix.length
                    pooled, positions = _embed_batch(body, tokens, rows[batch], prefix, model.device)
                    _check_finite(pooled, rows[batch])
                    store.write(number, batch, pooled.cpu().numpy())
                    embedded, padded = embedded + real, padded + positions
                    run += real - len(batch) * (prefix.length if prefix else 0)
                bar.update(real)
                number += 1
    store.finish()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens": embedded,
        "tokens_per_second": embedded / seconds,
        "padding": 1 - run / padded if padded else 0.0,
        "prefix_share": 1 - run / embedded if embedded else 0.0,
    }


def _embed_batch(
    body: torch.nn.Module, tokens: Tokens, rows: np.ndarray, prefix: Prefix | None, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Pooled rows [B, D] float32 on the device, and how many positions were run for them, padding included."""
    ids, mask, _ = pad(tokens, rows)
    skipped = prefix.length if prefix else 0
    ids, mask = ids[:, skipped:].to(device), mask[:, skipped:].to(device)
    if prefix is None:
        return masked_mean_pool(run_alone(body, ids, mask), mask), ids.numel()
    hidden = prefix.run(body, ids, mask)  # [B, T, D]
    return masked_mean_pool(hidden, mask, prefix_sum=prefix.hidden_sum, prefix_len=prefix.length), ids.numel()


def _check_finite(pooled: torch.Tensor, rows: np.ndarray) -> None:
    bad = ~torch.isfinite(pooled).all(dim=1)
    if bad.any():
        raise RunError(
            f"the model's embedding of row {int(rows[int(bad.nonzero()[0])])} is not finite: "
            "training may have diverged; a lower learning_rate or dtype float32 may help"
        )
