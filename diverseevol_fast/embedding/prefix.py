"""Shared prefixes: which rows begin with the same tokens, and what the model makes of these, computed once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.batches import token_budget_batches
from ..data.templates import Tokens

if TYPE_CHECKING:
    from .prefix_cache import PrefixCache

BATCHING = "grouped by prefix, 1"  # raise the number when the batches for the same rows change

PASS_COST = 256  # tokens: about what a pass of the model costs beyond its tokens, small matrices and launches
MIN_ROWS = 8  # fewer rows with the same next token are not looked at
MAX_SPLITS = 32  # prefixes within prefixes: bounds the recursion
COMPARED_AT_ONCE = 32  # tokens


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens, and have at least one more."""

    prefix: np.ndarray  # [P] token ids; empty for the rows that share nothing worth it
    batches: list[np.ndarray]  # positions among the rows, longest first


def group_rows(tokens: Tokens, rows: np.ndarray, max_tokens: int) -> list[Group]:
    """All of `rows` in groups by what they begin with, each in token-budget batches of whole rows.

    Rows part into groups where their tokens first differ, if that costs less: tokens and padding to run, and
    PASS_COST for each pass.
    """
    lengths = tokens.lengths()[rows]
    search = _Search(tokens, rows, lengths, max_tokens)
    parts = search.best(np.arange(len(rows)), 0, MAX_SPLITS)[1] if len(rows) else []
    without = [positions for prefix, positions in parts if prefix == 0]
    parts = [part for part in parts if part[0]]
    if without:
        parts.append((0, np.sort(np.concatenate(without))))
    parts.sort(key=lambda part: -lengths[part[1]].max())  # where memory is short, it shows at once
    return [
        Group(
            tokens.row(rows[positions[0]])[0][:prefix],
            [positions[batch] for batch in token_budget_batches(lengths[positions], max_tokens)],
        )
        for prefix, positions in parts
    ]


class _Search:
    """The cheapest division into groups, from the shortest common prefix to longer ones.

    A part is (P, positions): rows that share their first P tokens.
    """

    def __init__(self, tokens: Tokens, rows: np.ndarray, lengths: np.ndarray, max_tokens: int):
        self.ids, self.starts = tokens.ids, tokens.offsets[rows]
        self.lengths, self.max_tokens = lengths, max_tokens

    def best(self, positions: np.ndarray, shared: int, splits: int) -> tuple[int, list[tuple[int, np.ndarray]]]:
        """The cost in tokens and the parts of rows that share at least their first `shared` tokens."""
        shared = self.common(positions, shared)
        parts, rest = [], positions
        spent, rest_cost = 0, self.cost(positions, shared)
        for branch in self.branches(positions, shared) if splits else []:
            cost, inner = self.best(branch, shared + 1, splits - 1)
            others = np.setdiff1d(rest, branch, assume_unique=True)
            others_cost = self.cost(others, shared)
            if cost + others_cost < rest_cost:
                parts += inner
                spent, rest, rest_cost = spent + cost, others, others_cost
        if len(rest):
            whole = self.cost(rest, 0)
            parts.append((shared, rest) if rest_cost < whole else (0, rest))
            rest_cost = min(rest_cost, whole)
        return spent + rest_cost, parts

    def common(self, positions: np.ndarray, shared: int) -> int:
        """How many first tokens these rows share, at least one left to each; they share `shared`."""
        starts, limit = self.starts[positions], int(self.lengths[positions].min()) - 1
        while shared < limit:
            places = np.arange(shared, min(shared + COMPARED_AT_ONCE, limit))
            found = self.ids[starts[:, None] + places]  # [rows, places]
            same = (found == found[0]).all(axis=0)
            if not same.all():
                return shared + int(same.argmin())
            shared += len(places)
        return max(0, min(shared, limit))

    def branches(self, positions: np.ndarray, shared: int) -> list[np.ndarray]:
        """The rows by their next token, most rows first: those of which a token is left after it."""
        positions = positions[self.lengths[positions] > shared + 1]
        _, of, counts = np.unique(self.ids[self.starts[positions] + shared], return_inverse=True, return_counts=True)
        wanted = [token for token in np.argsort(-counts, kind="stable") if counts[token] >= MIN_ROWS]
        return [positions[of == token] for token in wanted]

    def cost(self, positions: np.ndarray, prefix: int) -> int:
        """Tokens to run for these rows, padding included and PASS_COST a pass, their prefix in a pass of its own."""
        if not len(positions):
            return 0
        lengths = self.lengths[positions]
        batches = token_budget_batches(lengths, self.max_tokens)
        own = sum(len(batch) * (int(lengths[batch[0]]) - prefix) + PASS_COST for batch in batches)
        return own + (prefix + PASS_COST if prefix else 0)


@dataclass(frozen=True)
class Prefix:
    """What the model makes of a group's prefix."""

    length: int  # P
    hidden_sum: torch.Tensor  # [D] float32, its last hidden states summed
    cache: "PrefixCache"  # its keys and values, frozen

    def run(self, body: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, T, D] of tokens [B, T] that come after the prefix, padded on the right."""
        return body(
            input_ids=ids,
            position_ids=torch.arange(self.length, self.length + ids.shape[1], device=ids.device)[None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state


def run_alone(body: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Last hidden states [B, T, D] of whole rows [B, T], padded on the right; mask [B, T] bool.

    mask: None where the rows are of one length, or the model is causal: no token sees the padding after it.
    """
    options = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}
    if mask is not None:
        options["attention_mask"] = mask.long()
    return body(input_ids=ids, **options).last_hidden_state


def run_prefix(
    body: torch.nn.Module,
    prefix: np.ndarray,
    device: torch.device,
    run: Callable[[torch.Tensor, "PrefixCache"], torch.Tensor] | None = None,
) -> Prefix:
    """Run a prefix [P] of token ids on a model that can_share_prefixes.

    run: states [P, D] of ids [P], keys and values into the cache; None: the model's ordinary way.
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
def can_share_prefixes(body: torch.nn.Module) -> bool:
    """Whether rows may go on from a prefix's keys and values: a causal model that keeps nothing else of it.

    Full and sliding-window attention do. Not so: encoders, states that are not keys and values (Mamba, linear
    attention), attention in chunks, and rotary frequencies that depend on the length of the whole row.
    """
    taken = inspect.signature(body.forward).parameters
    if not {"use_cache", "past_key_values", "position_ids"} <= taken.keys():
        return False
    config = body.config.get_text_config()
    rotary = str(getattr(config, "rope_parameters", None))  # one dict, or one for each kind of layer
    if "dynamic" in rotary or "longrope" in rotary or getattr(config, "attention_chunk_size", None):
        return False
    return not config.is_encoder_decoder and is_causal(body) and _keeps_keys_and_values(body)


@torch.inference_mode()
def is_causal(body: torch.nn.Module) -> bool:
    """Whether another last token leaves the states before it the same to the bit; no one setting tells it."""
    device = body.get_input_embeddings().weight.device
    first, second = (run_alone(body, torch.tensor([[0, 1, 0, 1, last]], device=device), None) for last in (0, 1))
    return torch.equal(first[:, :-1], second[:, :-1])


def _keeps_keys_and_values(body: torch.nn.Module) -> bool:
    """Whether nothing but keys and values of every layer is kept of a prefix."""
    from .prefix_cache import PrefixCache

    if not PrefixCache(config=body.config).is_plain():
        return False
    filled = run_prefix(body, np.array([0, 1, 0]), body.get_input_embeddings().weight.device).cache
    return filled.is_filled()
