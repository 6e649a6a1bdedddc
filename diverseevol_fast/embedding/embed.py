"""embed: a data set's embeddings by a model, into memory or a file, and what can be picked among them at once."""

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._common import distributed
from .._common.errors import InputError
from .._common.files import locked
from ..data.dataset import Data, data_of
from ..data.templates import Tokens, tokenize
from ..models.load import check_vocabulary, model_sha256, usable_length
from ..models.token_budget import find_budget
from ..ops import masked_mean_pool
from ..selection.arguments import as_indices
from ..selection.stream import KCenterStream
from ..selection.traversal import KCenterResult, kcenter
from .encoder import Encoder, encoder_of, is_sentence_transformer, template_for
from .engine import Engine, shares_prefixes
from .prefix import run_alone
from .store import FILE_DTYPES, FileStore, MemoryStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Embeddings:
    """What embed returns."""

    store: FileStore | MemoryStore
    metrics: dict[str, float]  # seconds, tokens/s, shares, memory; empty where nothing was left to do
    first: list[int]  # the rows that were embedded first, the centres of what is picked
    stream: KCenterStream | None  # has every other row's bound; None where nothing was left to do, or without centres
    picked: list[int] = field(default_factory=list)  # by select, without a stream

    def __repr__(self) -> str:
        values = self.values
        where = getattr(self.store, "path", values.device)
        dtype = str(values.dtype).removeprefix("torch.")
        picks = len(self.stream.picks if self.stream else self.picked)
        return f"Embeddings({list(values.shape)} {dtype}, {where}; {len(self.first)} embedded first, {picks} picked)"

    @property
    def values(self) -> torch.Tensor:
        """[N, D] in the dtype asked for, where the store is; a file's are mapped."""
        return self.store.values

    def select(self, k: int | None, *, radius: float | None = None, seed: int = 0) -> KCenterResult:
        """Pick k rows, the farthest first, from those embedded first; without any, from a row drawn with `seed`.

        The rows' bounds are there already: no pass over the embeddings, unless they were finished before, or there
        are no centres. Called again it goes on.

        Raises:
            TypeError, ValueError: as kcenter; CandidateError: values that were changed, of a centre or of a row that is
                compared exactly (the bounds are those of the values as they were embedded).
        """
        if self.stream:
            self.stream.check_centers(self.values[self.first], self.first)
            return self.stream.select(k, radius=radius)
        centers = [*self.first, *self.picked]
        result = kcenter(self.values, k, centers or None, radius=radius, seed=seed, progress=True)
        self.picked.extend(result.indices.tolist())
        return result


def embed(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase | None",
    rows: list[str] | list[dict] | Data,
    *,
    pooling: str | None = None,
    template: str | Path | None = None,
    store: str | Path = "host",
    dtype: str = "float32",
    max_length: int | None = None,
    max_tokens_per_batch: int | str = "auto",
    centers_first: Any = None,
    progress: bool = True,
) -> Embeddings:
    """Embed texts or rows of instruction data: the mean of each one's last hidden states, pooled in float32.

    DiverseEvol's embedding of a sample (arXiv 2311.08182, section 2). The model is used as it is, where and in what
    precision it is, without its head. Rows run in batches of like length; what they begin with
    alike runs once where the model is causal; on a GPU, in half precision, they are packed where an attention kernel
    allows it. Where torch.distributed is initialised, all processes call it with the same, share the work, and have
    all embeddings at the end.

    Args:
        model: a transformers model, causal or encoder, or a sentence-transformers model.
        tokenizer: a fast one; None for a sentence-transformers model, which has its own.
        rows: texts, taken as they are, or rows in a schema that README.md names.
        pooling: "mean" (None), "cls" (the first token's state) or "last". A sentence-transformers model's own
            pooling, prompt and what follows (normalisation) hold for it; None is expected then.
        template: from a row to a text: "alpaca", "plain", "chat" or a file, as README.md says. None: for an encoder
            the row's own texts, for a causal model what it is trained on.
        store: "host" (memory), "device" (where the model is), or a path ending in .npy: a file that is filled batch
            by batch, goes on where it was after a crash, and is refused when it is of another model or other rows.
        dtype: of the store: "float32", "float16", or, not in a file, "bfloat16".
        max_length: tokens; longer rows are cut, and counted. None: what the model and its tokenizer take.
        max_tokens_per_batch: padding included; out of memory halves it. "auto": found by a probe on a GPU, 2,048 on
            a CPU.
        centers_first: rows (numbers or a mask) that are embedded first, as centres for select.
        progress: show it, when the package's logger is at INFO.

    Returns:
        Embeddings; its values are [N, D], N the number of rows.

    Raises:
        InputError: rows, model and tokenizer that do not fit, a row of which no token is made, another's file.
        RunError: an embedding that is not finite; the row is named, finished batches are kept.
    """
    data = rows if isinstance(rows, Data) else data_of(rows)
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, torch.nn.Module) else []
    given = {"store": store, "dtype": dtype, "max_tokens_per_batch": max_tokens_per_batch, "progress": progress}
    try:
        return _embed(encoder_of(model, pooling), tokenizer, data, pooling, template, max_length, centers_first, given)
    finally:
        for module, training in modes:
            module.training = training


def _embed(
    encoder: Encoder,
    tokenizer: "PreTrainedTokenizerBase | None",
    data: Data,
    pooling: str | None,
    template: str | Path | None,
    max_length: int | None,
    centers_first: Any,
    given: dict[str, Any],
) -> Embeddings:
    """embed, with what embed_tokens takes as it is in `given`."""
    model = encoder.model
    if is_sentence_transformer(model):
        tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("tokenizer: is missing; expected the model's own")
    chosen = template_for(encoder, None if template is None else str(template), data, tokenizer)
    length = usable_length(max_length, encoder.body.config, tokenizer, encoder.reserved_positions)
    tokens = tokenize(data, tokenizer, length, template=chosen)
    if tokens.truncated:
        log.warning("%d of %d rows are longer than %d tokens and were cut", tokens.truncated, len(tokens), length)
    provenance = {"tokens_sha256": tokens.sha256(), "pooling": pooling or "mean"} | chosen.provenance(data)
    if given["store"] not in ("host", "device"):
        provenance["model_sha256"] = model_sha256(encoder.model, encoder.body.config)
    first = [] if centers_first is None else _row_numbers(centers_first, len(tokens))
    return embed_tokens(encoder, tokens, np.arange(len(tokens)), provenance=provenance, first=first, **given)


def embed_tokens(
    encoder: Encoder,
    tokens: Tokens,
    rows: np.ndarray,
    *,
    store: str | Path,
    provenance: dict[str, Any],
    dtype: str = "float32",
    first: list[int] | np.ndarray = (),
    max_tokens_per_batch: int | str = "auto",
    progress: bool = True,
    replace: bool = False,
) -> Embeddings:
    """As embed, of `rows` of tokens: position i is row rows[i], and `first` are positions.

    provenance: what a file is to be recognised by, beside `first` and its shape. replace: a finished file that was made
    from something else, or is damaged, is begun anew instead of being refused.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    path = None if store in ("host", "device") else _npy(store, dtype)
    check_vocabulary(encoder.body, int(tokens.ids.max()))
    first = np.asarray(first, dtype=np.int64)
    budget = _budget(encoder, int(tokens.lengths()[rows].max()), max_tokens_per_batch)
    budget = int(distributed.lowest(torch.tensor(budget)))  # the same batches for every process
    shape = (len(rows), encoder.dim)
    with _locked_while_written(path, replace):
        if path is None:
            place = encoder.device if store == "device" else "cpu"
            kept = MemoryStore(*shape, DTYPES[dtype], place, budget)
        else:
            first_sha256 = hashlib.sha256(json.dumps(first.tolist()).encode()).hexdigest()
            provenance = provenance | {"first_sha256": first_sha256, "shares_prefixes": shares_prefixes(encoder)}
            kept = FileStore(path, *shape, provenance, budget, DTYPES[dtype], replace)
        if kept.complete:
            return Embeddings(kept, {}, first.tolist(), None)
        engine = Engine(encoder, tokens, rows, kept, budget)
        metrics = engine.run(first, progress)
    log.info("embedded %s", describe(metrics))
    return Embeddings(kept, metrics, first.tolist(), engine.stream)


def _locked_while_written(path: Path | None, replace: bool) -> contextlib.AbstractContextManager:
    """A file that stands is finished: it is read, from where nothing can be written, too."""
    if path is None or not distributed.is_first() or (path.exists() and not replace):
        return contextlib.nullcontext()
    return locked(path)


def describe(metrics: dict[str, float]) -> str:
    """The metrics of an embedding in one line, for people: all of them are in metrics.json."""
    return (
        f"{metrics['tokens']:,} tokens in {metrics['seconds']:.1f} s ({metrics['tokens_per_second']:,.0f} a second); "
        f"{1 - metrics['padding']:.0%} of the work was real tokens, the rest padding; sharing what rows begin with "
        f"saved {metrics['prefix_share']:.0%} of the tokens; at most {metrics['peak_memory'] / 1e9:.1f} GB of memory"
    )


def _budget(encoder: Encoder, longest: int, wanted: int | str) -> int:
    if wanted == "auto":

        @torch.inference_mode()
        def probe(count: int, length: int) -> None:
            ids = torch.zeros((count, length), dtype=torch.int64, device=encoder.device)
            masked_mean_pool(run_alone(encoder.body, ids, torch.ones_like(ids)), torch.ones_like(ids))

        return find_budget(longest, encoder.device, probe)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"max_tokens_per_batch: expected 'auto' or a number of at least 1, got {wanted!r}")
    return wanted


def _row_numbers(rows: Any, n: int) -> list[int]:
    try:
        return as_indices(rows, n, "centers_first")
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def _npy(store: str | Path, dtype: str) -> Path:
    path = Path(store) if isinstance(store, str | Path) else Path()
    if path.suffix != ".npy":
        raise InputError(f"store: expected 'host', 'device' or a name ending in .npy, got {str(store)!r}")
    if DTYPES[dtype] not in FILE_DTYPES:
        raise InputError(f"dtype: a .npy file holds float32 or float16, got {dtype}")
    return path
