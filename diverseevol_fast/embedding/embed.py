"""embed: the embeddings of a data set by a model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._common.errors import InputError
from ..data.dataset import Data, load_data
from ..data.tokens import tokenize
from ..models.load import model_sha256, resolve_model, usable_length
from ..selection.arguments import as_indices
from .embed_tokens import Embeddings, embed_tokens
from .encoder import Encoder, encoder_of, is_sentence_transformer, template_for
from .from_folder import EmbedSettings, embed_by_folder, provenance_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")


def embed(
    data: Any,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    columns: Mapping[str, str] | None = None,
    text_column: str | None = None,
    skip_broken: bool = False,
    template: str | Path | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    max_tokens_per_batch: int | str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    centers_first: Any = None,
    store: str | Path = "host",
    store_dtype: str = "float32",
    overwrite: bool = False,
    progress: bool = True,
) -> Embeddings:
    """Embed texts or rows of instruction data: the mean of each one's last hidden states, pooled in float32.

    DiverseEvol's embedding of a sample (arXiv 2311.08182, section 2), by the model without its head. Rows run in
    batches of like length; a causal model runs the tokens that many rows begin with once; on a GPU, in half precision,
    rows are packed without padding where an attention kernel allows it. Where torch.distributed is initialized, all
    processes call it with the same arguments, share the work, and have all embeddings at the end.

    Args:
        data: as load_data takes it: a file's name, "builtin:quickstart", a list of texts or of rows in a schema of
            docs/how-to/subset.md, or a datasets.Dataset.
        model: a local folder, a hub name or a .gguf file; or a model that is loaded: of transformers, causal or
            encoder, or of sentence-transformers. A loaded model is used as it is, where and in what precision it is.
        tokenizer: of a loaded transformers model, a fast one; every other model has its own.
        columns: other names for a row's parts, {"instruction": "question", ...}.
        text_column: rows are of any kind, and this key's value is their text.
        skip_broken: leave broken lines and malformed rows out; row numbers count the rows that are left.
        template: from a row to a text: "alpaca", "plain", "chat" or a file that names {instruction}, {input} and
            {output}. None: for an encoder the row's own texts, for a causal model what it is trained on.
        pooling: "mean" (None), "cls" (the first token's state) or "last". A sentence-transformers model's own
            pooling, prompt and what follows (normalization) hold for it; None is expected then.
        max_length: tokens; longer rows are cut, and counted. None: what the model and its tokenizer take.
        max_tokens_per_batch: padding included; running out of memory halves it. "auto": a probe finds it on a GPU;
            2,048 on a CPU.
        dtype: of the weights of a model that is named (None: "float32"): "float32", "bfloat16", "float16" or "auto".
        attn_implementation: of transformers, for a model that is named.
        trust_remote_code: whether code that comes with a named model runs.
        centers_first: rows (indices or a mask) that are embedded first, as centers for Embeddings.select.
        store: "host" (memory), "device" (where the model is), or a path ending in .npy: a file that is filled batch
            by batch, goes on where it was after a crash, and is refused when it is of another model or other rows.
        store_dtype: of the embeddings: "float32", "float16", or, not in a file, "bfloat16".
        overwrite: replace a file that is of another model or other rows.
        progress: show it, when the package's logger is at INFO.

    Returns:
        Embeddings; its values are [N, D], N the number of rows.

    Raises:
        InputError: rows, model and tokenizer do not fit together, a row has no token, or the file is of other inputs.
        RunError: an embedding is not finite; the message names the row, and the file keeps finished batches.
    """
    loaded, empty = load_data(data, columns, text_column=text_column, skip_broken=skip_broken)
    if empty:
        log.warning("%d rows have an empty %s, the first is row %d", len(empty), loaded.schema.required, empty[0])
    first = [] if centers_first is None else _as_indices(centers_first, len(loaded.rows))
    name = None if template is None else str(template)
    if isinstance(model, str | Path):
        folder = resolve_model(str(model), trust_remote_code=trust_remote_code)
        settings = EmbedSettings(
            name,
            pooling,
            max_length,
            max_tokens_per_batch,
            dtype or "float32",
            store_dtype,
            attn_implementation,
            trust_remote_code,
        )
        return embed_by_folder(
            loaded,
            np.arange(len(loaded.rows)),
            folder,
            provenance_in(loaded, folder),
            settings,
            store=store,
            first=first,
            overwrite=overwrite,
            progress=progress,
        )
    if dtype is not None or attn_implementation is not None:
        raise InputError("dtype, attn_implementation: the model is loaded already and is used as it is; expected none")
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, torch.nn.Module) else []
    kwargs = {"store": store, "store_dtype": store_dtype, "max_tokens_per_batch": max_tokens_per_batch}
    try:
        encoder = encoder_of(model, pooling)
        return _embed_by_model(
            encoder,
            tokenizer,
            loaded,
            pooling,
            name,
            max_length,
            first=first,
            replace=overwrite,
            progress=progress,
            **kwargs,
        )
    finally:
        for module, training in modes:
            module.training = training


def _embed_by_model(
    encoder: Encoder,
    tokenizer: "PreTrainedTokenizerBase | None",
    data: Data,
    pooling: str | None,
    template: str | None,
    max_length: int | None,
    **kwargs: Any,
) -> Embeddings:
    """embed by a model that is loaded; kwargs: of embed_tokens."""
    model = encoder.model
    if is_sentence_transformer(model):
        tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("tokenizer: is missing; expected the model's own")
    chosen = template_for(encoder, template, data, tokenizer)
    length = usable_length(max_length, encoder.body.config, tokenizer, encoder.reserved_positions)
    tokens = tokenize(data, tokenizer, length, template=chosen)
    if tokens.truncated:
        log.warning("%d of %d rows are longer than %d tokens and were cut", tokens.truncated, len(tokens), length)
    provenance = {"tokens_sha256": tokens.sha256(), "pooling": pooling or "mean"} | chosen.provenance(data)
    if kwargs["store"] not in ("host", "device"):
        provenance["model_sha256"] = model_sha256(encoder.model, encoder.body.config)
    return embed_tokens(encoder, tokens, np.arange(len(tokens)), provenance=provenance, **kwargs)


def _as_indices(rows: Any, n: int) -> list[int]:
    try:
        return as_indices(rows, n, "centers_first")
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
