"""Batches of token rows, limited by a token budget and padded on the right."""

import numpy as np
import torch

from .tokens import Tokens


def token_budget_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """The indices [0, N) of rows in batches of similar length, longest first: rows x longest row <= max_tokens.

    A row longer than max_tokens is a batch by itself. Rows of equal length keep their order, so the batches are
    deterministic.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, max_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches


def pad(tokens: Tokens, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows padded on the right: token ids [B, T] int64, mask [B, T] bool, is_response [B, T] bool."""
    lengths = tokens.lengths()[rows]
    shape = (len(rows), int(lengths.max()))
    ids, is_response = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]], is_response[i, : lengths[i]] = tokens.row(row)
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(is_response)
