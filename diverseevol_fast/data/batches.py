"""Batches of token rows: by token budget, padded on the right."""

import numpy as np
import torch

from .tokens import Tokens


def token_budget_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Positions [0, N) in batches of like length, longest first; a batch's rows x its longest row <= max_tokens.

    A row longer than max_tokens makes a batch of its own. Ties keep their order, so the batches are the same
    every time.
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
    for place, row in enumerate(rows):
        ids[place, : lengths[place]], is_response[place, : lengths[place]] = tokens.row(row)
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(is_response)
