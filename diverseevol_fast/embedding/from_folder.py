"""Embeddings by a model in a folder: all that decides them is on record before the model is loaded."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common.checks import check_tokens_per_batch
from .._common.files import file_sha256
from .._common.provenance import of_file, sidecar_of, versions
from ..data.dataset import Data
from ..data.tokens import log_lengths, log_sample, tokenize
from ..models.load import folder_sha256, load_for_embedding, usable_length
from .embed_tokens import Embeddings, embed_tokens
from .encoder import Encoder, encoder_of, template_for
from .precision import in_dtype
from .store import read_whole_npy


@dataclass(frozen=True)
class EmbedSettings:
    """How rows become embeddings, as `embed` describes it."""

    template: str | None
    pooling: str | None
    max_length: int | None
    max_tokens_per_batch: int | str
    dtype: str  # of the weights
    store_dtype: str  # of the embeddings
    attn_implementation: str | None
    trust_remote_code: bool


def provenance_in(data: Data, folder: Path) -> dict[str, Any]:
    """The provenance of what is made from a data set by the model in a folder."""
    return {"data_sha256": data.sha256(), "data_rows": len(data.rows), "model_sha256": folder_sha256(folder)}


def finished_embeddings(
    path: Path, data: Data, rows: np.ndarray, provenance: dict[str, Any], settings: EmbedSettings
) -> np.ndarray | None:
    """The embeddings of `rows` that stand at `path`, memory-mapped, where all that decides them is the same."""
    if not path.exists():
        return None
    record = of_file(sidecar_of(path))
    if record.get("request_sha256") != _request_sha256(data, rows, provenance, settings):
        return None
    x = read_whole_npy(path)
    return x if x is not None and x.shape == (record.get("rows"), record.get("dim")) else None


def embed_by_folder(
    data: Data,
    rows: np.ndarray,
    folder: Path,
    provenance: dict[str, Any],
    settings: EmbedSettings,
    *,
    store: str | Path,
    first: list[int],
    overwrite: bool = False,
    progress: bool = True,
) -> Embeddings:
    """Embed `rows` of the data, those at the positions `first` before the others.

    provenance: as provenance_in returns it.

    Raises:
        InputError, RunError: as embed.
    """
    encoder, tokenizer, max_length = _load(folder, settings)
    template = template_for(encoder, settings.template, data, tokenizer)
    length = usable_length(max_length, encoder.body.config, tokenizer, encoder.reserved_positions)
    check_tokens_per_batch("max_tokens_per_batch", settings.max_tokens_per_batch, length)
    log_sample(template, data, int(rows[0]), tokenizer)
    left_out = np.setdiff1d(np.arange(len(data.rows)), rows)
    tokens = tokenize(data, tokenizer, length, left_out.tolist(), template)
    log_lengths(tokens, length)
    if encoder.device.type == "cpu" and settings.dtype == "bfloat16":
        encoder, _ = in_dtype(encoder, settings.dtype, tokens, rows, compared=True)
    recorded = (
        provenance
        | template.provenance(data)
        | {
            "request_sha256": _request_sha256(data, rows, provenance, settings),
            "tokens_sha256": tokens.sha256(),
            "dtype": settings.dtype,
            "attention": settings.attn_implementation,
            "pooling": settings.pooling,
        }
    )
    return embed_tokens(
        encoder,
        tokens,
        rows,
        store=store,
        provenance=recorded,
        store_dtype=settings.store_dtype,
        first=first,
        max_tokens_per_batch=settings.max_tokens_per_batch,
        replace=overwrite,
        progress=progress,
    )


def _load(folder: Path, settings: EmbedSettings) -> tuple[Encoder, Any, int | None]:
    """The encoder in a folder, its tokenizer, and how many tokens a row may have."""
    on_cpu = not torch.cuda.is_available()
    model, tokenizer, max_length = load_for_embedding(
        folder,
        # On a CPU the weights are rounded to bfloat16 later, when what that changes can be measured.
        dtype="float32" if on_cpu and settings.dtype == "bfloat16" else settings.dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        max_length=settings.max_length,
    )
    return encoder_of(model, settings.pooling), tokenizer, max_length


def _request_sha256(data: Data, rows: np.ndarray, provenance: dict[str, Any], settings: EmbedSettings) -> str:
    """Digest of all that decides the embeddings of `rows` and is known before the model is loaded."""
    request = provenance | versions() | asdict(settings)
    del request["max_tokens_per_batch"], request["trust_remote_code"]
    if settings.template and Path(settings.template).is_file():
        request["template"] = file_sha256(Path(settings.template))
    request |= {"columns": dict(data.columns), "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest()}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
