"""Shared prefixes: which rows begin with the same tokens, and the model's keys and values of these, computed once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.batches import token_budget_batches
from ..data.tokens import Tokens
from ..models.load import embedding_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .prefix_cache import PrefixCache

BATCHING = "grouped by prefix, 1"  # the number goes up when the same rows come in other batches

PASS_COST = 256  # a pass of the model costs about as much as 256 tokens beyond its own: small matrices, launches
MIN_ROWS = 8  # a branch of fewer rows is not tried as a group
MAX_SPLITS = 32  # bounds the recursion of prefixes within prefixes
COMPARED_AT_ONCE = 32  # tokens


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens, and have at least one token more."""

    prefix: np.ndarray  # [P] token ids; empty for the rows whose shared tokens save too little
    batches: list[np.ndarray]  # indices into the rows that were grouped, the longest rows first


def group_rows(tokens: Tokens, row_ids: np.ndarray, max_tokens: int) -> list[Group]:
    """All rows of row_ids [B] in groups by the tokens they begin with; each group in token-budget batches.

    Rows are divided where their tokens first differ, if that lowers the cost: the tokens to run, padding included,
    and PASS_COST for each pass. A batch holds whole rows of at most max_tokens, padding included.
    """
    if not len(row_ids):
        return []
    lengths = tokens.lengths()[row_ids]
    search = _Search(tokens, row_ids, lengths, max_tokens)
    parts = search.best(np.arange(len(row_ids)), 0, MAX_SPLITS)[1]
    without_prefix = [indices for prefix, indices in parts if prefix == 0]
    parts = [part for part in parts if part[0]]
    if without_prefix:
        parts.append((0, np.sort(np.concatenate(without_prefix))))
    parts.sort(key=lambda part: -lengths[part[1]].max())  # long rows run out of memory first, at the start of a run
    groups = []
    for prefix, indices in parts:
        shared_ids = tokens.row(int(row_ids[indices[0]]))[0][:prefix]
        batches = [indices[batch] for batch in token_budget_batches(lengths[indices], max_tokens)]
        groups.append(Group(shared_ids, batches))
    return groups


class _Search:
    """Searches the cheapest division into groups, from the shortest common prefix to longer ones.

    A part is (P, indices): rows that share their first P tokens.
    """

    def __init__(self, tokens: Tokens, row_ids: np.ndarray, lengths: np.ndarray, max_tokens: int):
        self.ids, self.starts = tokens.ids, tokens.offsets[row_ids]
        self.lengths, self.max_tokens = lengths, max_tokens

    def best(self, indices: np.ndarray, shared: int, splits: int) -> tuple[int, list[tuple[int, np.ndarray]]]:
        """The cost in tokens, and the parts, of rows that share at least their first `shared` tokens."""
        shared = self.common(indices, shared)
        parts, remaining = [], indices
        parts_cost, remaining_cost = 0, self.cost(indices, shared)
        for branch in self.branches(indices, shared) if splits else []:
            cost, inner = self.best(branch, shared + 1, splits - 1)
            others = np.setdiff1d(remaining, branch, assume_unique=True)
            others_cost = self.cost(others, shared)
            if cost + others_cost < remaining_cost:
                parts += inner
                parts_cost, remaining, remaining_cost = parts_cost + cost, others, others_cost
        if len(remaining):
            cost_without_prefix = self.cost(remaining, 0)
            prefix = shared if remaining_cost < cost_without_prefix else 0
            parts.append((prefix, remaining))
            remaining_cost = min(remaining_cost, cost_without_prefix)
        return parts_cost + remaining_cost, parts

    def common(self, indices: np.ndarray, shared: int) -> int:
        """How many first tokens these rows share, when they share `shared`; each row keeps a token after them."""
        starts, longest = self.starts[indices], int(self.lengths[indices].min()) - 1
        while shared < longest:
            stop = min(shared + COMPARED_AT_ONCE, longest)
            ids = self.ids[starts[:, None] + np.arange(shared, stop)]  # [rows, tokens]
            same = (ids == ids[0]).all(axis=0)
            if not same.all():
                return shared + int(same.argmin())
            shared = stop
        return max(0, min(shared, longest))

    def branches(self, indices: np.ndarray, shared: int) -> list[np.ndarray]:
        """The rows by their next token, most rows first; only rows that have a token after it."""
        indices = indices[self.lengths[indices] > shared + 1]
        next_ids = self.ids[self.starts[indices] + shared]
        _, branch, counts = np.unique(next_ids, return_inverse=True, return_counts=True)
        wanted = [i for i in np.argsort(-counts, kind="stable") if counts[i] >= MIN_ROWS]
        return [indices[branch == i] for i in wanted]

    def cost(self, indices: np.ndarray, prefix: int) -> int:
        """Tokens to run for these rows, padding and PASS_COST for each pass included; the prefix is one pass more."""
        if not len(indices):
            return 0
        lengths = self.lengths[indices]
        batches = token_budget_batches(lengths, self.max_tokens)
        own = sum(len(batch) * (int(lengths[batch[0]]) - prefix) + PASS_COST for batch in batches)
        return own + (prefix + PASS_COST if prefix else 0)


@dataclass(frozen=True)
class Prefix:
    """What the model computed of a group's prefix."""

    length: int  # P
    hidden_sum: torch.Tensor  # [D] float32, the sum of the prefix's last hidden states
    cache: "PrefixCache"  # the prefix's keys and values, frozen

    def run(self, body: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, T, D] of tokens [B, T] that follow the prefix, padded on the right."""
        return body(
            input_ids=ids,
            position_ids=torch.arange(self.length, self.length + ids.shape[1], device=ids.device)[None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state


def run_alone(body: "PreTrainedModel", ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Last hidden states [B, T, D] of whole rows [B, T], padded on the right; mask [B, T] bool.

    mask: None when all rows have one length, or when the model is causal: then no token sees the padding after it.
    """
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}
    if mask is not None:
        options["attention_mask"] = mask.long()
    return body(input_ids=ids, **options).last_hidden_state


def run_prefix(
    body: "PreTrainedModel",
    prefix: np.ndarray,
    device: torch.device,
    run: Callable[[torch.Tensor, "PrefixCache"], torch.Tensor] | None = None,
) -> Prefix:
    """Run a prefix [P] of token ids on a model for which can_share_prefixes holds.

    run: makes states [P, D] of ids [P], and puts keys and values into the cache; None calls the model.
    """
    from .prefix_cache import PrefixCache

    cache = PrefixCache(config=body.config)
    ids = torch.from_numpy(prefix.astype(np.int64)).to(device)  # [P]
    if run is None:
        hidden = body(input_ids=ids[None], past_key_values=cache, use_cache=True).last_hidden_state[0]
    else:
        hidden = run(ids, cache)
    cache.frozen = True
    return Prefix(len(prefix), hidden.sum(dim=0, dtype=torch.float64).float(), cache)


@torch.inference_mode()
def can_share_prefixes(body: "PreTrainedModel") -> bool:
    """Whether rows can continue from a prefix's keys and values: a causal model that keeps nothing else of the prefix.

    Models of full or sliding-window attention can. Encoders cannot, nor models with other states (Mamba, linear
    attention), with attention in chunks, or with rotary frequencies that depend on the length of the whole row.
    """
    taken = inspect.signature(body.forward).parameters
    if not {"use_cache", "past_key_values", "position_ids"} <= taken.keys():
        return False
    config = body.config.get_text_config()
    rotary = str(getattr(config, "rope_parameters", None))  # one dict, or one for each kind of layer
    if "dynamic" in rotary or "longrope" in rotary or getattr(config, "attention_chunk_size", None):
        return False
    return not config.is_encoder_decoder and is_causal(body) and _keeps_keys_and_values(body)


def is_causal(body: "PreTrainedModel") -> bool:
    """Whether a later token leaves the states before it the same, bit for bit; no single setting of a model says so."""
    return torch.equal(*states_before_two_tokens(body))


@torch.inference_mode()
def states_before_two_tokens(body: "PreTrainedModel") -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states [4, D] of the same four tokens, before token 0 and before token 1."""
    device = embedding_weight(body).device
    first, second = (run_alone(body, torch.tensor([[0, 1, 0, 1, last]], device=device), None) for last in (0, 1))
    return first[0, :-1], second[0, :-1]


def _keeps_keys_and_values(body: "PreTrainedModel") -> bool:
    """Whether the model keeps nothing of a prefix but the keys and values of every layer."""
    from .prefix_cache import PrefixCache

    if not PrefixCache(config=body.config).is_plain():
        return False
    cache = run_prefix(body, np.array([0, 1, 0]), embedding_weight(body).device).cache
    return cache.is_filled()
