"""Embeddings by one fixed model, so that rounds and subsets are compared in the same space."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._common.files import atomic_path, read_json, write_json
from .._common.version import __version__
from ..data.dataset import Data
from ..data.templates import Template, choose_template, prompt_of
from ..embedding.embed import embed
from ..models.load import folder_sha256, load_for_embedding, resolve_model
from ..runs.config import Config
from ..runs.finished import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # EEXIST: it is a file
TEXTS = 2  # version of fixed_texts: embeddings of other texts do not compare
SETTINGS = ("dtype", "attn_implementation", "trust_remote_code")  # of a run that its embedding space shares

_in_memory: dict[Path, tuple[dict[str, Any], torch.Tensor]] = {}  # unwritable file -> provenance, embeddings


@dataclass(frozen=True)
class EmbeddingSpace:
    """A fixed model and its settings: embeddings compare where all but the name and the folder are the same."""

    name: str  # of the model, as the user wrote it
    folder: Path
    max_length: int = 512  # tokens
    dtype: str = "float32"  # of the weights
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    plain_texts: bool = False  # the rows' own texts instead of their training texts

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The model's digest and the settings; the model's folder is no part of it."""
        plain = {"plain_texts": True} if self.plain_texts else {}
        settings = {name: getattr(self, name) for name in ("max_length", *SETTINGS)}
        return _provenance(folder_sha256(self.folder), settings | plain)


def fixed_space(run: FinishedRun, model: str | None = None, trust_remote_code: bool = False) -> EmbeddingSpace:
    """The space of a model with a run's settings.

    Args:
        model: a local folder, a hub name or a .gguf file; None: the run's base model.
        trust_remote_code: whether code that comes with `model` runs; for its base model the run's own setting holds.

    Raises:
        InputError: there is no such model.
    """
    own = run.config.model_name_or_path
    if model is None or model == own:
        return EmbeddingSpace(own, run.base_model().resolve(), **_settings(run.config))
    folder = resolve_model(model, run.config.cache_dir, trust_remote_code).resolve()
    settings = _settings(run.config)
    settings["trust_remote_code"] = trust_remote_code
    return EmbeddingSpace(model, folder, **settings)


def is_own(run: FinishedRun, space: EmbeddingSpace) -> bool:
    """Whether the space is that of the run's base model with the run's settings."""
    base = run.state.manifest(0)["provenance"]["base_model_sha256"]
    return space.provenance == _provenance(base, _settings(run.config))


def fixed_embeddings(
    run: FinishedRun,
    space: EmbeddingSpace | None = None,
    folder: Path | None = None,
    others: Sequence[Path] = (),
) -> torch.Tensor:
    """The embeddings of a run's candidates in one space: [len(run.candidates), D] float32, mapped from a file.

    Position i is row run.candidates[i]. The file is made once for each space, and resumed after a crash. Where it
    cannot be written, the embeddings are in memory, made once in a process, and a warning says so.

    Args:
        run: a run with models.
        space: the embedding space; None: the run's own (fixed_space).
        folder: the folder of the file; None: RUN/diversity.
        others: folders of other runs' files; one with the same provenance is copied instead of embedding anew.

    Raises:
        InputError: there is no such model, the run's data is gone, or the file has another provenance.
        RunError: an embedding that is not finite.
    """
    space = space or fixed_space(run)
    name = "embeddings.npy" if is_own(run, space) else f"embeddings-{short_digest(space.provenance)}.npy"
    store = (folder or run.state.folder / "diversity") / name
    return embed_rows(space, run.data, run.candidates, store, [other / name for other in others])


def embed_rows(
    space: EmbeddingSpace, data: Data, rows: np.ndarray, store: Path, others: Sequence[Path] = ()
) -> torch.Tensor:
    """The embeddings of these rows' texts: [len(rows), D] float32, mapped from the file `store`.

    A finished file of the same provenance is opened without loading the model, and one of `others` copied. Where the
    file cannot be written, the embeddings are in memory.

    Raises:
        InputError, RunError: as fixed_embeddings.
    """
    record = _record_of(store)
    rows_sha256 = hashlib.sha256(rows.tobytes()).hexdigest()
    provenance = {"version": __version__, "data_sha256": data.sha256(), "rows_sha256": rows_sha256} | space.provenance
    if os.path.exists(store) and load_json(record) == provenance:  # Path.exists raises in a folder without access
        return torch.from_numpy(np.load(store, mmap_mode="c"))
    if _in_memory.get(store, ({}, None))[0] == provenance:
        return _in_memory[store][1]
    for other in others:
        if os.path.exists(other) and load_json(_record_of(other)) == provenance and _copied(other, store):
            save_json(record, provenance)
            return torch.from_numpy(np.load(store, mmap_mode="c"))
    values, is_saved = _embedded(space, data, rows, store)
    if is_saved:
        save_json(record, provenance)
    else:
        _in_memory[store] = provenance, values
    return values


def _record_of(store: Path) -> Path:
    return store.with_name(f"{store.name}.source.json")


def _copied(other: Path, store: Path) -> bool:
    """Copy a file; False, with a warning, where it cannot be written."""
    try:
        with atomic_path(store) as partial:
            shutil.copyfile(other, partial)
    except OSError as error:
        _warn_not_saved(store, error)
        return False
    return True


def fixed_texts(
    data: Data, rows: np.ndarray, tokenizer: "PreTrainedTokenizerBase", template: Template | None = None
) -> list[str]:
    """The rows' texts, stripped, after one space: the texts in which DiverseEvol measures diversity.

    For instructions they follow DiverseEvol's templates/alpaca.json: the training text, but with a line break between
    "### Response:" and the output. For conversations they are the training text without the end token.

    template: None: the default of the rows' schema, as in training.

    Raises:
        InputError: the tokenizer's chat template refuses a conversation.
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
    """Eight characters of a provenance's digest, for a file's name."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:8]


def load_json(path: Path) -> dict[str, Any]:
    """The object that save_json wrote; empty if there is no file, or none that can be read."""
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


def save_json(path: Path, value: Any) -> None:
    """Write a file that can be made again, or warn where it cannot be written, as in somebody else's folder."""
    try:
        write_json(path, value)
    except OSError as error:
        _warn_not_saved(path, error)


def _warn_not_saved(path: Path, error: OSError) -> None:
    """
    Raises:
        OSError: the error, unless it says that the folder is not writable.
    """
    if error.errno not in NOT_WRITABLE:
        raise error
    log.warning("%s: not kept, made again the next time: it cannot be written (%s)", path, os.strerror(error.errno))


def _provenance(model_sha256: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"model_sha256": model_sha256, "texts": TEXTS, **settings}


def _settings(config: Config) -> dict[str, Any]:
    return {"max_length": config.model_max_length} | {name: getattr(config, name) for name in SETTINGS}


def _embedded(space: EmbeddingSpace, data: Data, rows: np.ndarray, store: Path) -> tuple[torch.Tensor, bool]:
    """The embeddings, and whether they are saved in the file."""
    model, tokenizer, max_length = load_for_embedding(
        space.folder,
        dtype=space.dtype,
        attn_implementation=space.attn_implementation,
        trust_remote_code=space.trust_remote_code,
        max_length=space.max_length,
    )
    no_chat = data.schema.is_conversation and not tokenizer.chat_template
    plain = space.plain_texts or no_chat
    template = choose_template("plain" if plain else None, data, tokenizer, encoder=plain)  # it adds no end tokens
    log.info("%s: embedding %d rows by %s", store, len(rows), space.folder)
    texts = fixed_texts(data, rows, tokenizer, template)
    try:
        return embed(texts, model, tokenizer, store=store, max_length=max_length).values, True
    except OSError as error:
        _warn_not_saved(store, error)
    return embed(texts, model, tokenizer, store="host", max_length=max_length).values, False
