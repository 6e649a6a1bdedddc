"""A model in half precision beside itself, and what that does to embeddings and picks."""

import copy
import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from ..data.templates import Tokens
from ..models.token_budget import CPU_TOKENS
from ..selection.traversal import kcenter
from .encoder import Encoder
from .engine import Engine
from .store import MemoryStore

log = logging.getLogger("diverseevol_fast")

COMPARED_ROWS = 400
COMPARED_PICKS = 100


def in_dtype(
    encoder: Encoder, name: str | None, tokens: Tokens, rows: np.ndarray, compared: bool
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder with its weights in the dtype `name` (None: in their own), and what that changes on a CPU.

    compared: whether to find out, on some of `rows`; else nothing is said.
    """
    if name is None:
        return encoder, {}
    rough = lowered(encoder, getattr(torch, name))
    if rough is encoder or encoder.device.type != "cpu" or not compared:
        return rough, {}
    return rough, {name: compare(encoder, rough, tokens, rows)}


def lowered(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """The encoder with a copy of its model whose weights are in dtype; buffers stay, rotary frequencies for one."""
    if dtype == encoder.dtype:
        return encoder
    if encoder.device.type == "cpu" and dtype == torch.bfloat16 and not has_bfloat16_products():
        log.warning("this CPU has no bfloat16 products (AVX512-BF16 or AMX): float32 is faster here")
    body = copy.deepcopy(encoder.body)
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
    return dataclasses.replace(encoder, model=body, body=body)


def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compare(exact: Encoder, rough: Encoder, tokens: Tokens, rows: np.ndarray) -> dict[str, float]:
    """What `rough` changes, on up to 400 of `rows`.

    Returns the relative error of an embedding (the length of the difference by the length of the embedding), on
    average and at most, and how many of up to 100 K-Center picks, both from the same first row, are not the same rows.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:COMPARED_ROWS])
    first, second = (_embedded(encoder, tokens, chosen) for encoder in (exact, rough))
    errors = (second - first).norm(dim=1) / first.norm(dim=1)
    picks = min(COMPARED_PICKS, max(1, len(chosen) // 4))
    same = np.intersect1d(*(kcenter(values, picks, seed=0).indices for values in (first, second)))
    found = {
        "rows": len(chosen), "relative_error": float(errors.mean()), "largest_relative_error": float(errors.max()),
        "picks": picks, "picks_that_differ": picks - len(same),
    }  # fmt: skip
    log.info("%s instead of %s, on %d rows: embeddings %.1e apart (at most %.1e), %d of %d picks differ",
             _name(rough), _name(exact), len(chosen), found["relative_error"], found["largest_relative_error"],
             found["picks_that_differ"], picks)  # fmt: skip
    return found


def _embedded(encoder: Encoder, tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
    store = MemoryStore(len(rows), encoder.dim, torch.float32, "cpu", CPU_TOKENS)
    Engine(encoder, tokens, rows, store, CPU_TOKENS).run(np.empty(0, dtype=np.int64), progress=False)
    return store.values


def _name(encoder: Encoder) -> str:
    return str(encoder.dtype).removeprefix("torch.")
