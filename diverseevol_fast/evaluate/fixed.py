"""Embeddings by one fixed model: rounds and subsets can only be compared in the same space."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data import Data
from ..embedding import embed
from ..models import is_sentence_folder, load_encoder, load_sentence_transformer, load_tokenizer, resolve_model
from ..runs import MadeRun
from ..templates import check_template, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

MAX_LENGTH = 512  # tokens; of rows of a data set without a run


def fixed_embeddings(run: MadeRun, model: str | None = None, trust_remote_code: bool = False) -> torch.Tensor:
    """Every candidate of a run by one model: [len(run.candidates), D] float32, mapped from a file in RUN/diversity.

    Position i is row run.candidates[i]. The file survives a crash half-way, and is made once for each model.

    Args:
        run: a run with models.
        model: a local folder or a hub name; None: the model that every round of the run began with.
        trust_remote_code: of `model`; the run's own setting holds for its own.

    Raises:
        InputError: no such model, the run's data is no longer there, or a file that was made from something else.
        RunError: an embedding that is not finite.
    """
    folder = model_folder(run, model, trust_remote_code)
    own = is_own(run, model)
    name = "embeddings.npy" if own else f"embeddings-{short_digest(folder)}.npy"
    return embed_rows(
        folder, run.data, run.candidates, run.state.folder / "diversity" / name,
        max_length=run.config.model_max_length, dtype=run.config.dtype,
        attn_implementation=run.config.attn_implementation,
        trust_remote_code=run.config.trust_remote_code if own else trust_remote_code,
    )  # fmt: skip


def model_folder(run: MadeRun, model: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder of the fixed model.

    Raises:
        InputError: it is not to be had.
    """
    if is_own(run, model):
        return run.base_model().resolve()
    return resolve_model(model, run.config.cache_dir, trust_remote_code).resolve()


def is_own(run: MadeRun, model: str | None) -> bool:
    """Whether it is the model that every round of the run began with."""
    return model in (None, run.config.model_name_or_path)


def embed_rows(
    folder: Path,
    data: Data,
    rows: np.ndarray,
    store: Path,
    *,
    max_length: int = MAX_LENGTH,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> torch.Tensor:
    """These rows' texts (fixed_texts) by the model in `folder`: [len(rows), D] float32, mapped from the file `store`.

    max_length: tokens; dtype: of the weights.

    Raises:
        InputError, RunError: as fixed_embeddings.
    """
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    load = load_sentence_transformer if is_sentence_folder(folder) else load_encoder
    model = load(folder, dtype=dtype, trust_remote_code=trust_remote_code, **options)
    if is_sentence_folder(folder):
        tokenizer, max_length = model.tokenizer, min(max_length, model.max_seq_length or max_length)
    else:
        tokenizer = load_tokenizer(folder, trust_remote_code)
    check_template(data, tokenizer)
    log.info("%s: embedding %d rows by %s", store, len(rows), folder)
    return embed(model, tokenizer, fixed_texts(data, rows, tokenizer), store=store, max_length=max_length).values


def fixed_texts(data: Data, rows: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The rows' training texts without the end token, stripped, after one space: as DiverseEvol measures diversity.

    Raises:
        InputError: a conversation that the tokenizer's chat template refuses.
    """
    end = tokenizer.eos_token or ""
    texts = ("".join(text for text, _ in render(data, int(row), tokenizer)) for row in rows)
    return [" " + text.rstrip().removesuffix(end).strip() for text in texts]


def short_digest(*names: str | Path) -> str:
    """Eight characters that stand for the names in a file's name."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:8]
