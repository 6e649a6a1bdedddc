"""Embeddings by one fixed model: rounds and subsets can only be compared in the same space."""

import errno
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from .._common.files import read_json, write_json
from ..data.dataset import Data
from ..data.templates import Template, choose_template, prompt_of
from ..embedding.embed import embed
from ..models.load import folder_sha256, load_for_embedding, resolve_model
from ..runs.config import Config
from ..runs.finished import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # the last: a file for a folder
TEXTS = 2  # goes up when fixed_texts changes: embeddings of other texts do not compare

_in_memory: dict[Path, tuple[dict[str, Any], torch.Tensor]] = {}  # by the file that cannot be: provenance, embeddings


@dataclass(frozen=True)
class EmbeddingSpace:
    """A fixed model and what it embeds with: embeddings compare where all but the name and the folder is the same."""

    name: str  # of the model, as it was given
    folder: Path
    max_length: int = 512  # tokens
    dtype: str = "float32"  # of the weights
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    plain_texts: bool = False  # the rows' own texts instead of their training texts

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What tells the space from others, wherever the model's folder is."""
        settings = ("max_length", "dtype", "attn_implementation", "trust_remote_code")
        plain = {"plain_texts": True} if self.plain_texts else {}
        return _provenance(folder_sha256(self.folder), {name: getattr(self, name) for name in settings} | plain)


def fixed_space(run: FinishedRun, model: str | None = None, trust_remote_code: bool = False) -> EmbeddingSpace:
    """The space of a model with a run's settings.

    Args:
        model: a local folder or a hub name; None: the model that every round of the run began with.
        trust_remote_code: of `model`; the run's own setting holds for its own.

    Raises:
        InputError: the model is not to be had.
    """
    own = run.config.model_name_or_path
    if model is None or model == own:
        return EmbeddingSpace(own, run.base_model().resolve(), **_settings(run.config))
    folder = resolve_model(model, run.config.cache_dir, trust_remote_code).resolve()
    settings = _settings(run.config)
    settings["trust_remote_code"] = trust_remote_code
    return EmbeddingSpace(model, folder, **settings)


def is_own(run: FinishedRun, space: EmbeddingSpace) -> bool:
    """Whether it is that of the run's settings and of the model that every round of it began with."""
    base = run.state.manifest(0)["provenance"]["base_model_sha256"]
    return space.provenance == _provenance(base, _settings(run.config))


def fixed_embeddings(run: FinishedRun, space: EmbeddingSpace | None = None, folder: Path | None = None) -> torch.Tensor:
    """Every candidate of a run in one space: [len(run.candidates), D] float32, mapped from a file in a folder.

    Position i is row run.candidates[i]. The file survives a crash half-way, and is made once for each space. Where it
    cannot be written they are in memory, made once in a process, and a warning says so.

    Args:
        run: a run with models.
        space: None: the run's own (fixed_space).
        folder: where the file is kept; None: RUN/diversity.

    Raises:
        InputError: no such model, the run's data is no longer there, or a file that was made from something else.
        RunError: an embedding that is not finite.
    """
    space = space or fixed_space(run)
    name = "embeddings.npy" if is_own(run, space) else f"embeddings-{short_digest(space.provenance)}.npy"
    return embed_rows(space, run.data, run.candidates, (folder or run.state.folder / "diversity") / name)


def embed_rows(space: EmbeddingSpace, data: Data, rows: np.ndarray, store: Path) -> torch.Tensor:
    """These rows' texts in the space: [len(rows), D] float32, mapped from the file `store`.

    A finished file that was made from the same is opened without loading the model. Where there can be no such file
    they are in memory.

    Raises:
        InputError, RunError: as fixed_embeddings.
    """
    record = store.with_name(f"{store.name}.source.json")
    rows_sha256 = hashlib.sha256(rows.tobytes()).hexdigest()
    provenance = {"version": __version__, "data_sha256": data.sha256(), "rows_sha256": rows_sha256} | space.provenance
    if os.path.exists(store) and kept_record(record) == provenance:  # unlike Path.exists no error for what is closed
        return torch.from_numpy(np.load(store, mmap_mode="c"))
    if _in_memory.get(store, ({}, None))[0] == provenance:
        return _in_memory[store][1]
    values, is_kept = _embedded(space, data, rows, store)
    if is_kept:
        keep_json(record, provenance)
    else:
        _in_memory[store] = provenance, values
    return values


def fixed_texts(
    data: Data, rows: np.ndarray, tokenizer: "PreTrainedTokenizerBase", template: Template | None = None
) -> list[str]:
    """The rows' texts, stripped, after one space: as DiverseEvol measures diversity.

    Of instruction data they are those of its templates/alpaca.json: the training text, but with a line break between
    "### Response:" and the output. Conversations are the training text without the end token.

    template: None: the training's own of the rows' schema.

    Raises:
        InputError: a conversation that the tokenizer's chat template refuses.
    """
    template = template or choose_template(None, data, tokenizer)
    return [" " + _fixed_text(data, int(row), tokenizer, template).strip() for row in rows]


def _fixed_text(data: Data, row: int, tokenizer: "PreTrainedTokenizerBase", template: Template) -> str:
    if template.name == "alpaca":
        fields = data.fields(row)
        return f"{prompt_of(fields['instruction'], fields['input'])}\n{fields['output']}"
    text = "".join(text for text, _ in template.segments(data, row, tokenizer))
    return text.rstrip().removesuffix(str(tokenizer.eos_token or ""))


def short_digest(provenance: dict[str, Any]) -> str:
    """Eight characters that stand for what a file was made from, in its name."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:8]


def kept_record(path: Path) -> dict[str, Any]:
    """What keep_json kept; empty when there is none, or none that can be read."""
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError, OSError):
        record = None
    if isinstance(record, dict):
        return record
    log.warning("%s: not a JSON object, so made again", path)
    return {}


def keep_json(path: Path, value: Any) -> None:
    """Write what can be made again, or warn that it is not kept: the folder may be somebody else's, or read-only."""
    try:
        write_json(path, value)
    except OSError as error:
        _warn_not_kept(path, error)


def _warn_not_kept(path: Path, error: OSError) -> None:
    """
    Raises:
        OSError: the error, if it is not that nothing may be written there.
    """
    if error.errno not in NOT_WRITABLE:
        raise error
    log.warning("%s: not kept, made again the next time: it cannot be written (%s)", path, os.strerror(error.errno))


def _provenance(model_sha256: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"model_sha256": model_sha256, "texts": TEXTS, **settings}


def _settings(config: Config) -> dict[str, Any]:
    return {
        "max_length": config.model_max_length, "dtype": config.dtype,
        "attn_implementation": config.attn_implementation, "trust_remote_code": config.trust_remote_code,
    }  # fmt: skip


def _embedded(space: EmbeddingSpace, data: Data, rows: np.ndarray, store: Path) -> tuple[torch.Tensor, bool]:
    """The embeddings, and whether they are in the file."""
    model, tokenizer, max_length = load_for_embedding(
        space.folder,
        dtype=space.dtype,
        attn_implementation=space.attn_implementation,
        trust_remote_code=space.trust_remote_code,
        max_length=space.max_length,
    )
    no_chat = data.schema.is_conversation and not tokenizer.chat_template
    plain = space.plain_texts or no_chat
    template = choose_template("plain" if plain else None, data, tokenizer, encoder=plain)  # no end tokens in it
    log.info("%s: embedding %d rows by %s", store, len(rows), space.folder)
    texts = fixed_texts(data, rows, tokenizer, template)
    try:
        return embed(texts, model, tokenizer, store=store, max_length=max_length).values, True
    except OSError as error:
        _warn_not_kept(store, error)
    return embed(texts, model, tokenizer, store="host", max_length=max_length).values, False
