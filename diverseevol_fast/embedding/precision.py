"""A copy of a model in another dtype, and how much that changes embeddings and picks."""

import copy
import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from .._common.dtypes import dtype_name, torch_dtype
from ..data.tokens import Tokens
from ..models.token_budget import CPU_TOKENS
from ..selection.traversal import kcenter
from .encoder import Encoder
from .engine import Engine
from .store import MemoryStore

log = logging.getLogger("diverseevol_fast")

COMPARED_ROWS = 400
COMPARED_PICKS = 100


def in_dtype(
    encoder: Encoder, name: str | None, tokens: Tokens, row_ids: np.ndarray, compared: bool
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder with its weights in the dtype `name` (None: their own), and what that changes, by the dtype's name.

    compared: measure what it changes, by `compare` on some of row_ids; never on a GPU. Otherwise the dict is empty.
    """
    if name is None:
        return encoder, {}
    rough = lowered(encoder, torch_dtype(name))
    if rough is encoder or encoder.device.type != "cpu" or not compared:
        return rough, {}
    return rough, {name: compare(encoder, rough, tokens, row_ids)}


def lowered(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """The encoder with a copy of its model whose weights are in dtype; buffers, such as rotary frequencies, stay."""
    if dtype == encoder.dtype:
        return encoder
    if encoder.device.type == "cpu" and dtype == torch.bfloat16 and not has_bfloat16_products():
        log.warning("this CPU has no bfloat16 products (AVX512-BF16 or AMX): float32 is faster here")
    body = copy.deepcopy(encoder.body)
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
    return dataclasses.replace(encoder, model=body, body=body)


def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions that multiply bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compare(exact: Encoder, rough: Encoder, tokens: Tokens, row_ids: np.ndarray) -> dict[str, float]:
    """What `rough` changes, on up to 400 rows of row_ids.

    Returns the relative error of an embedding (the length of the difference by the length of the embedding), on
    average and at most, and how many of up to 100 K-Center picks, from the same first row, are other rows.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(row_ids)[:COMPARED_ROWS])
    first, second = (_embedded(encoder, tokens, chosen) for encoder in (exact, rough))
    errors = (second - first).norm(dim=1) / first.norm(dim=1)
    picks = min(COMPARED_PICKS, max(1, len(chosen) // 4))
    first_picks, second_picks = (kcenter(values, picks, seed=0).indices for values in (first, second))
    differ = picks - len(np.intersect1d(first_picks, second_picks))
    mean, largest, names = float(errors.mean()), float(errors.max()), (dtype_name(rough.dtype), dtype_name(exact.dtype))
    text = "%s instead of %s, on %d rows: embeddings %.1e apart (at most %.1e), %d of %d picks differ"
    log.info(text, *names, len(chosen), mean, largest, differ, picks)
    return {
        "rows": len(chosen),
        "relative_error": mean,
        "largest_relative_error": largest,
        "picks": picks,
        "picks_that_differ": differ,
    }


def _embedded(encoder: Encoder, tokens: Tokens, row_ids: np.ndarray) -> torch.Tensor:
    store = MemoryStore(len(row_ids), encoder.dim, torch.float32, "cpu", CPU_TOKENS)
    Engine(encoder, tokens, row_ids, store, CPU_TOKENS).run(np.empty(0, dtype=np.int64), progress=False)
    return store.values
