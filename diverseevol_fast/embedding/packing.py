"""Runs the rows of a batch one after the other, without padding, where an attention kernel keeps them apart."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .._common.device_copies import copy_to_device
from .prefix import Prefix, run_alone, run_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .prefix_cache import PrefixCache

log = logging.getLogger("diverseevol_fast")

NAME = "diverseevol_packed"
TOLERANCE = 0.02  # relative, in half precision: rows that see each other, or only part of themselves, exceed it by far

# Attention within each row, whose queries are the last of its tokens. Its arguments: queries [T, H, d], keys and values
# [K, H', d], the rows' limits and the longest row in queries and in keys, the scale, the window (left, right),
# of which -1 is open.
Kernel = Callable[..., torch.Tensor]


@dataclass
class Layout:
    """Where the rows of a packed batch begin and end."""

    lengths: torch.Tensor  # [B] int64, in host memory
    longest: int
    kernel: Kernel
    device: torch.device  # of queries and keys
    _keys: dict[int, tuple[torch.Tensor | None, torch.Tensor]] = field(default_factory=dict)

    @property
    def starts(self) -> torch.Tensor:
        """[B] int64, in host memory: the index of each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def queries(self) -> torch.Tensor:
        """[B + 1] int32: row b is tokens [queries[b], queries[b + 1])."""
        return self.keys(0)[1]

    def keys(self, prefix: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The indices of the keys of each row, one row after the other, int64, and the rows' limits, int32 [B + 1].

        prefix: how many keys of a prefix stand before those of all rows; each row attends to them. Without any, the
        indices are None: the keys are in order.
        """
        if prefix not in self._keys:
            limits = torch.nn.functional.pad((self.lengths + prefix).cumsum(0), (1, 0))
            indices = None
            if prefix:
                row = torch.repeat_interleave(self.lengths + prefix)
                within = torch.arange(len(row), device=row.device) - limits[row]
                indices = torch.where(within < prefix, within, within + self.starts[row])
                indices = copy_to_device(indices, self.device)
            self._keys[prefix] = indices, copy_to_device(limits.to(torch.int32), self.device)
        return self._keys[prefix]


_layout: Layout | None = None  # of the batch that runs now: _attend, which transformers calls, has no other way to it


class Packing:
    """Runs a model on packed rows."""

    def __init__(self, body: "PreTrainedModel", kernel: Kernel):
        self.body, self.kernel = body, kernel

    def run(self, ids: torch.Tensor, lengths: torch.Tensor, prefix: Prefix | None) -> torch.Tensor:
        """Last hidden states [T, D] of tokens [T]: rows of `lengths` [B] (in host memory), one after the other."""
        if not prefix:
            return self._call(ids, lengths, 0, {})
        return self._call(ids, lengths, prefix.length, {"past_key_values": prefix.cache, "use_cache": True})

    def run_prefix(self, ids: torch.Tensor, cache: "PrefixCache") -> torch.Tensor:
        """Last hidden states [P, D] of a prefix [P]; its keys and values go to the cache."""
        lengths = torch.tensor([len(ids)])
        return self._call(ids, lengths, 0, {"past_key_values": cache, "use_cache": True})

    def _call(self, ids: torch.Tensor, lengths: torch.Tensor, first: int, options: dict) -> torch.Tensor:
        global _layout
        _layout = layout = Layout(lengths, int(lengths.max()), self.kernel, ids.device)
        within = torch.arange(len(ids)) - torch.repeat_interleave(layout.starts, lengths)
        position_ids = copy_to_device(first + within, ids.device)[None]
        try:
            output = self.body(input_ids=ids[None], attention_mask=None, position_ids=position_ids, **options)
            return output.last_hidden_state[0]
        finally:
            _layout = None


@contextmanager
def packed(body: "PreTrainedModel", with_prefix: bool) -> Iterator[Packing | None]:
    """Switch the model's attention to packed rows; None without a kernel, or when a probe's rows do not stay the same.

    with_prefix: whether rows will follow a shared prefix. The model has its own attention again at the end.
    """
    kernel = kernel_for(body)
    if kernel is None or not hasattr(body, "set_attn_implementation"):
        yield None
        return
    alone = _rows_alone(body)
    own_attention = body.config._attn_implementation or "eager"
    _register()
    body.set_attn_implementation(NAME)
    try:
        packing: Packing | None = Packing(body, kernel)
        if reason := _objection(packing, alone, with_prefix):
            log.warning("rows of %s are padded, not packed: %s", type(body).__name__, reason)
            body.set_attn_implementation(own_attention)
            packing = None
        yield packing
    finally:
        body.set_attn_implementation(own_attention)


def kernel_for(body: "PreTrainedModel") -> Kernel | None:
    """flash-attention's kernel, or torch's; None without a GPU, and for dtypes or GPUs that they do not support."""
    weight = next(body.parameters())
    if weight.device.type != "cuda" or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.cuda.get_device_capability(weight.device) < (8, 0):
        return None
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # an optional package
    except ImportError:
        return _torch_kernel()

    def run(query, key, value, queries, keys, longest_query, longest_key, scale, window):
        options = {"causal": window[1] == 0, "window_size": window if window[0] >= 0 else (-1, -1)}
        tensors = (query, key, value, queries, keys)
        return flash_attn_varlen_func(*tensors, longest_query, longest_key, softmax_scale=scale, **options)

    return run


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return None  # an early version of torch's kernel lacks them

    def run(query, key, value, queries, keys, longest_query, longest_key, scale, window) -> Any:
        options = {"scale": scale, "window_size": window, "enable_gqa": query.shape[1] != key.shape[1]}
        return varlen_attn(query, key, value, queries, keys, longest_query, longest_key, **options)

    return run


class _UnknownAttentionError(Exception):
    """The model's attention does something that the kernel does not."""


def _attend(module, query, key, value, attention_mask, scaling=None, sliding_window=None, is_causal=None, **options):
    """A transformers attention function: query [1, H, T, d], key and value [1, H', P + T, d] -> [1, T, H, d]."""
    extras = (attention_mask, options.get("softcap"), options.get("s_aux"))
    if any(extra is not None for extra in extras):
        raise _UnknownAttentionError("its attention does more than the kernel")
    causal = module.is_causal if is_causal is None else is_causal
    if sliding_window and not causal:
        raise _UnknownAttentionError("its attention has windows to both sides")
    window = (sliding_window - 1 if sliding_window else -1, 0) if causal else (-1, -1)
    layout = _layout
    if layout is None:
        raise RuntimeError("packed attention is called outside Packing.run")
    prefix = key.shape[2] - query.shape[2]
    indices, limits = layout.keys(prefix)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, d]
    if indices is not None:
        key, value = key[indices], value[indices]
    tensors = (query.contiguous(), key.contiguous(), value.contiguous(), layout.queries, limits)
    out = layout.kernel(*tensors, layout.longest, layout.longest + prefix, scaling, window)
    return out[None], None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


@torch.inference_mode()
def _rows_alone(body: "PreTrainedModel") -> list[torch.Tensor]:
    """Last hidden states of each of the probe's rows, run alone."""
    device = next(body.parameters()).device
    return [run_alone(body, row.to(device)[None], None)[0] for row in _probe_rows()]


def _probe_rows() -> list[torch.Tensor]:
    first = [0, 1, 0, 0, 1]
    return [torch.tensor(first + rest) for rest in ([1, 0, 1, 1, 0, 0], [0], [0, 0, 1])]


def _objection(packing: Packing, alone: list[torch.Tensor], with_prefix: bool) -> str | None:
    """Why packed rows of this model cannot be used; None when they can."""
    if getattr(packing.body.config.get_text_config(), "attention_chunk_size", None):
        return "its attention is in chunks"
    try:
        agrees = _agrees(packing, alone, with_prefix)
    except (_UnknownAttentionError, RuntimeError, ValueError, TypeError) as error:  # kernels refuse with any of these
        return str(error)
    return None if agrees else "states are not those of each row alone"


@torch.inference_mode()
def _agrees(packing: Packing, alone: list[torch.Tensor], with_prefix: bool) -> bool:
    """Whether packed rows have the states that they have alone; with_prefix: also after a prefix."""
    device = alone[0].device
    rows = _probe_rows()
    prefix = run_prefix(packing.body, rows[0][:5].numpy(), device, packing.run_prefix) if with_prefix else None
    skipped = prefix.length if prefix else 0
    rows = [row[skipped:] for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    states = packing.run(torch.cat(rows).to(device), lengths, prefix).float()
    expected = torch.cat([row_states[skipped:] for row_states in alone]).float()
    return float((states - expected).norm()) <= TOLERANCE * float(expected.norm())
