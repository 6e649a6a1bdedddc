"""Rows one after the other instead of padded, where there is an attention kernel that keeps them apart."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .._common.device_copies import copy_to_device
from .prefix import Prefix, run_alone, run_prefix

if TYPE_CHECKING:
    from .prefix_cache import PrefixCache

log = logging.getLogger("diverseevol_fast")

NAME = "diverseevol_packed"
TOLERANCE = 0.02  # relative, in half precision: rows that see each other, or not all of themselves, are far above it

# queries [T, H, d], keys and values [K, H', d], where each row's begin and end in both, the longest of each, the
# scale, the window (left, right; -1: open): attention of each row by itself, aligned at its end.
Kernel = Callable[..., torch.Tensor]


@dataclass
class Layout:
    """Where the rows of a packed batch lie."""

    lengths: torch.Tensor  # [B] int64, in host memory
    longest: int
    kernel: Kernel
    device: torch.device  # where queries and keys are
    _keys: dict[int, tuple[torch.Tensor | None, torch.Tensor]] = field(default_factory=dict)

    @property
    def starts(self) -> torch.Tensor:
        """[B] int64, in host memory: where each row begins."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def queries(self) -> torch.Tensor:
        """[B + 1] int32: row b is tokens [queries[b], queries[b + 1])."""
        return self.keys(0)[1]

    def keys(self, kept: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Which keys each row has, one row after the other, int64, and their limits, int32 [B + 1].

        kept: how many keys of a prefix stand before those of all rows, and belong to each; without any, the keys of
        the rows are as they are: None.
        """
        if kept not in self._keys:
            limits = torch.nn.functional.pad((self.lengths + kept).cumsum(0), (1, 0))
            places = None
            if kept:
                row = torch.repeat_interleave(self.lengths + kept)
                place = torch.arange(len(row), device=row.device) - limits[row]
                places = torch.where(place < kept, place, place + self.starts[row])
            if places is not None:
                places = copy_to_device(places, self.device)
            self._keys[kept] = places, copy_to_device(limits.to(torch.int32), self.device)
        return self._keys[kept]


_present: Layout | None = None  # of the batch that is run now


class Packing:
    """A model whose rows are run packed."""

    def __init__(self, body: torch.nn.Module, kernel: Kernel):
        self.body, self.kernel = body, kernel

    def run(self, ids: torch.Tensor, lengths: torch.Tensor, prefix: Prefix | None) -> torch.Tensor:
        """Last hidden states [T, D] of tokens [T], rows of `lengths` (in host memory) one after the other."""
        first = prefix.length if prefix else 0
        return self._call(ids, lengths, first, {"past_key_values": prefix.cache, "use_cache": True} if prefix else {})

    def run_prefix(self, ids: torch.Tensor, cache: "PrefixCache") -> torch.Tensor:
        """Last hidden states [P, D] of a prefix [P], whose keys and values go to the cache."""
        lengths = torch.tensor([len(ids)])
        return self._call(ids, lengths, 0, {"past_key_values": cache, "use_cache": True})

    def _call(self, ids: torch.Tensor, lengths: torch.Tensor, first: int, options: dict) -> torch.Tensor:
        global _present
        _present = layout = Layout(lengths, int(lengths.max()), self.kernel, ids.device)
        within = torch.arange(len(ids)) - torch.repeat_interleave(layout.starts, lengths)
        places = copy_to_device(first + within, ids.device)
        try:
            return self.body(
                input_ids=ids[None], attention_mask=None, position_ids=places[None], **options
            ).last_hidden_state[0]
        finally:
            _present = None


@contextmanager
def packed(body: torch.nn.Module, with_prefix: bool) -> Iterator[Packing | None]:
    """The model with its attention made for packed rows, if there is a kernel and rows come out the same; else None."""
    kernel = kernel_for(body)
    if kernel is None or not hasattr(body, "set_attn_implementation"):
        yield None
        return
    alone = _rows_alone(body)
    before = body.config._attn_implementation
    _register()
    body.set_attn_implementation(NAME)
    try:
        packing: Packing | None = Packing(body, kernel)
        if reason := _objection(packing, alone, with_prefix):
            log.warning("rows of %s are padded, not packed: %s", type(body).__name__, reason)
            body.set_attn_implementation(before)
            packing = None
        yield packing
    finally:
        body.set_attn_implementation(before)


def kernel_for(body: torch.nn.Module) -> Kernel | None:
    """flash-attention's kernel, or torch's, on a GPU and in a dtype that they know."""
    weight = next(body.parameters())
    if weight.device.type != "cuda" or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.cuda.get_device_capability(weight.device) < (8, 0):
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return _torch_kernel()

    def run(query, key, value, queries, keys, longest_query, longest_key, scale, window):
        return flash_attn_varlen_func(
            query, key, value, queries, keys, longest_query, longest_key,
            softmax_scale=scale, causal=window[1] == 0, window_size=window if window[0] >= 0 else (-1, -1),
        )  # fmt: skip

    return run


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return None  # an early version

    def run(query, key, value, queries, keys, longest_query, longest_key, scale, window):
        return varlen_attn(
            query, key, value, queries, keys, longest_query, longest_key,
            scale=scale, window_size=window, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip

    return run


class _UnknownAttentionError(Exception):
    """The model's attention does more than the kernel."""


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None,
            is_causal=None, softcap=None, s_aux=None, **kwargs):  # fmt: skip
    """A transformers attention function: query [1, H, T, d], key and value [1, H', P + T, d] -> [1, T, H, d]."""
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise _UnknownAttentionError("its attention does more than the kernel")
    layout = _present
    kept = key.shape[2] - query.shape[2]
    places, limits = layout.keys(kept)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, d]
    if places is not None:
        key, value = key[places], value[places]
    causal = module.is_causal if is_causal is None else is_causal
    window = (sliding_window - 1 if sliding_window else -1, 0) if causal else (-1, -1)
    if sliding_window and not causal:
        raise _UnknownAttentionError("its attention has windows to both sides")
    out = layout.kernel(
        query.contiguous(), key.contiguous(), value.contiguous(), layout.queries, limits, layout.longest,
        layout.longest + kept, scaling, window,
    )  # fmt: skip
    return out[None], None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


@torch.inference_mode()
def _rows_alone(body: torch.nn.Module) -> list[torch.Tensor]:
    """Last hidden states of the probe's rows, each by itself."""
    device = next(body.parameters()).device
    return [run_alone(body, row.to(device)[None], None)[0] for row in _probe_rows()]


def _probe_rows() -> list[torch.Tensor]:
    first = [0, 1, 0, 0, 1]
    return [torch.tensor(first + rest) for rest in ([1, 0, 1, 1, 0, 0], [0], [0, 0, 1])]


def _objection(packing: Packing, alone: list[torch.Tensor], with_prefix: bool) -> str | None:
    """What is wrong with packed rows of this model, if anything is."""
    if getattr(packing.body.config.get_text_config(), "attention_chunk_size", None):
        return "its attention is in chunks"
    try:
        agrees = _agrees(packing, alone, with_prefix)
    except (_UnknownAttentionError, RuntimeError, ValueError, TypeError) as error:  # kernels refuse in many ways
        return str(error)
    return None if agrees else "states are not those of each row alone"


@torch.inference_mode()
def _agrees(packing: Packing, alone: list[torch.Tensor], with_prefix: bool) -> bool:
    """Whether rows come out packed as they do alone, also after a prefix where that is to be used."""
    device = alone[0].device
    rows = _probe_rows()
    prefix = run_prefix(packing.body, rows[0][:5].numpy(), device, packing.run_prefix) if with_prefix else None
    skipped = prefix.length if prefix else 0
    rest = [row[skipped:] for row in rows]
    lengths = torch.tensor([len(row) for row in rest])
    found = packing.run(torch.cat(rest).to(device), lengths, prefix)
    expected = torch.cat([states[skipped:] for states in alone]).float()
    return float((found.float() - expected).norm()) <= TOLERANCE * float(expected.norm())
