"""Rows to token states: packed or padded, whole or after what they begin with alike."""

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from ..data.batches import pad
from ..data.templates import Tokens
from .packing import Packing
from .prefix import Group, Prefix, is_causal, run_alone, run_prefix

PADDING_TOLERANCE = 0.02  # relative: half precision is below it, a state that sees padding far above


class Forward:
    """A model that is run on rows of tokens."""

    def __init__(self, body: torch.nn.Module, tokens: Tokens, packing: Packing | None):
        self.body, self.tokens, self.packing = body, tokens, packing
        self.device = next(body.parameters()).device
        self.prefix_tokens = 0  # run so far
        self._needs_mask = packing is None and not is_causal(body)
        self._last: tuple[Group, Prefix] | None = None

    @torch.inference_mode()
    def prefix_of(self, group: Group) -> Prefix | None:
        """What the model makes of the group's prefix, if it has one; the last group's is at hand."""
        if not len(group.prefix):
            return None
        if self._last is None or self._last[0] is not group:
            self._last = None  # its keys and values make room for these
            run = self.packing.run_prefix if self.packing else None
            self._last = group, run_prefix(self.body, group.prefix, self.device, run)
            self.prefix_tokens += len(group.prefix)
        return self._last[1]

    def states(self, rows: np.ndarray, prefix: Prefix | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """Last hidden states of rows of the tokens, after the prefix.

        Returns them, packed [T, D] or padded [B, T, D]; cu_seqlens or mask, which says whose they are, by name; and
        how many positions were run, padding included.
        """
        skipped = prefix.length if prefix else 0
        if self.packing:
            parts = [self.tokens.row(row)[0][skipped:] for row in rows]
            ids = copy_to_device(torch.from_numpy(np.concatenate(parts).astype(np.int64)), self.device)
            lengths = torch.tensor([len(part) for part in parts])
            limits = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            return self.packing.run(ids, lengths, prefix), {"cu_seqlens": limits}, len(ids)
        ids, mask, _ = pad(self.tokens, rows)
        ids, mask = (copy_to_device(part[:, skipped:].contiguous(), self.device) for part in (ids, mask))
        if prefix:
            hidden = prefix.run(self.body, ids)
        else:
            hidden = run_alone(self.body, ids, mask if self._needs_mask else None)
        return hidden, {"mask": mask}, ids.numel()


def together(body: torch.nn.Module, positions: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """These positions, of rows of these lengths, in parts whose rows may share a batch without a trace of it.

    One part, unless padding changes a row's states (FNet): rows of one length each; or rotary frequencies are others
    for long rows (LongRoPE), in a batch with one of which short ones have them, too.
    """
    if not _padding_leaves_no_trace(body):
        return [positions[lengths == length] for length in np.unique(lengths)[::-1]]
    longest_plain = _longest_plain(body)
    parts = [positions[lengths > longest_plain], positions[lengths <= longest_plain]]
    return [part for part in parts if len(part)]


@torch.inference_mode()
def _padding_leaves_no_trace(body: torch.nn.Module) -> bool:
    device = next(body.parameters()).device
    row = torch.tensor([[0, 1, 0, 0, 1]], device=device)
    alone = run_alone(body, row, torch.ones_like(row))
    padded = torch.nn.functional.pad(row, (0, 3))
    beside = run_alone(body, padded, torch.arange(8, device=device)[None] < 5)[:, :5]
    return bool((beside - alone).float().norm() <= PADDING_TOLERANCE * alone.float().norm())


def _longest_plain(body: torch.nn.Module) -> float:
    """The longest row that has the frequencies of short rows."""
    config = body.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    for rope in (given, *(value for value in given.values() if isinstance(value, dict))):
        if rope.get("rope_type") == "longrope":
            return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return float("inf")
