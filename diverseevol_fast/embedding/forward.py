"""Runs a model on rows of tokens: packed or padded, whole rows or what follows their shared prefix."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from ..data.batches import pad
from ..data.tokens import Tokens
from .packing import Packing
from .prefix import Group, Prefix, is_causal, run_alone, run_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDING_TOLERANCE = 0.02  # relative: rounding in half precision is below it, a state that sees padding far above


class Forward:
    """Runs a model on rows of tokens."""

    def __init__(self, body: "PreTrainedModel", tokens: Tokens, packing: Packing | None):
        self.body, self.tokens, self.packing = body, tokens, packing
        self.device = next(body.parameters()).device
        self.prefix_tokens = 0  # how many tokens of prefixes have run
        self._needs_mask = packing is None and not is_causal(body)
        self._cached: tuple[Group, Prefix] | None = None  # the last group's

    @torch.inference_mode()
    def prefix_of(self, group: Group) -> Prefix | None:
        """The group's prefix, run once for the group; None when the group has none."""
        if not len(group.prefix):
            return None
        if self._cached is None or self._cached[0] is not group:
            self._cached = None  # frees the keys and values of the group before
            run = self.packing.run_prefix if self.packing else None
            self._cached = group, run_prefix(self.body, group.prefix, self.device, run)
            self.prefix_tokens += len(group.prefix)
        return self._cached[1]

    def states(self, row_ids: np.ndarray, prefix: Prefix | None) -> tuple[torch.Tensor, dict[str, Any], int]:
        """Last hidden states of the rows' tokens after the prefix.

        Returns the states, packed [T, D] or padded [B, T, D]; masked_mean_pool's keywords for them: cu_seqlens or
        mask, and those of the prefix; and how many tokens were run, padding included.
        """
        skipped, pool_kwargs = 0, {}
        if prefix:
            skipped, pool_kwargs = prefix.length, {"prefix_sum": prefix.hidden_sum, "prefix_len": prefix.length}
        if self.packing:
            parts = [self.tokens.row(row)[0][skipped:] for row in row_ids]
            ids = copy_to_device(torch.from_numpy(np.concatenate(parts).astype(np.int64)), self.device)
            lengths = torch.tensor([len(part) for part in parts])
            cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            return self.packing.run(ids, lengths, prefix), {"cu_seqlens": cu_seqlens} | pool_kwargs, len(ids)
        ids, mask, _ = pad(self.tokens, row_ids)
        ids, mask = (copy_to_device(part[:, skipped:].contiguous(), self.device) for part in (ids, mask))
        if prefix:
            hidden = prefix.run(self.body, ids)
        else:
            hidden = run_alone(self.body, ids, mask if self._needs_mask else None)
        return hidden, {"mask": mask} | pool_kwargs, ids.numel()


class Batchable:
    """Which rows may share a batch without changing their states.

    Most models take all. Where padding changes a row's states (FNet), rows of one length do. Where long rows have other
    rotary frequencies (LongRoPE), and give them to the short rows of their batch, long and short rows are apart.
    """

    def __init__(self, body: "PreTrainedModel"):
        self._ignores_padding, self._longest_plain = _ignores_padding(body), _longest_plain(body)

    def parts(self, indices: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The indices of rows of these lengths, in parts whose rows may share a batch."""
        if not self._ignores_padding:
            return [indices[lengths == length] for length in np.unique(lengths)[::-1]]
        parts = [indices[lengths > self._longest_plain], indices[lengths <= self._longest_plain]]
        return [part for part in parts if len(part)]


@torch.inference_mode()
def _ignores_padding(body: "PreTrainedModel") -> bool:
    """Whether a row has the same states beside padding as alone."""
    device = next(body.parameters()).device
    row = torch.tensor([[0, 1, 0, 0, 1]], device=device)
    alone = run_alone(body, row, torch.ones_like(row))
    padded = torch.nn.functional.pad(row, (0, 3))
    beside = run_alone(body, padded, torch.arange(8, device=device)[None] < 5)[:, :5]
    return bool((beside - alone).float().norm() <= PADDING_TOLERANCE * alone.float().norm())


def _longest_plain(body: "PreTrainedModel") -> float:
    """The length of the longest row that has the rotary frequencies of short rows."""
    config = body.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}  # of all layers, or one dict for each kind of layer
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        if rope.get("rope_type") == "longrope":
            return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return float("inf")
