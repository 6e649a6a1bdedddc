"""Embeddings: every row's mean last hidden state, batch by batch, into a file that survives a crash."""

import inspect
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .batches import pad, token_budget_batches
from .errors import InputError, RunError
from .files import atomic_path, sync_folder, write_json
from .models import backbone, check_vocabulary
from .ops import masked_mean_pool
from .progress import Progress
from .templates import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("diverseevol_fast")

SECONDS_BETWEEN_FLUSHES = 2.0


class EmbeddingStore:
    """A float32 [N, D] .npy file that is filled batch by batch.

    While it is filled it is called `<path>.part`, and `<path>.progress` lists the finished batches; opened again
    with the same fingerprint it goes on from there. `<path>.json` keeps the fingerprint of the finished file.
    """

    def __init__(self, path: Path, rows: int, dim: int, fingerprint: dict[str, Any]):
        """Open or create.

        Raises:
            InputError: `path` holds embeddings of something else.
            OSError: no space for the whole file (it is reserved at once).
        """
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.progress = path.with_name(path.name + ".progress")
        self.meta = path.with_name(path.name + ".json")
        self.fingerprint = fingerprint | {"rows": rows, "dim": dim}
        self.done: set[int] = set()
        self.complete = self._is_complete()
        self._pending: list[int] = []
        self._flushed = time.perf_counter()
        if not self.complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.map = self._resume() if self._can_resume() else self._create(rows, dim)

    def _is_complete(self) -> bool:
        if not self.path.exists():
            return False
        if self.meta.exists() and json.loads(self.meta.read_text(encoding="utf-8")) == self.fingerprint:
            return True
        raise InputError(f"{self.path}: exists, and is not made from this data and model; remove it or name another")

    def _can_resume(self) -> bool:
        if not (self.part.exists() and self.progress.exists()):
            return False
        lines = self.progress.read_text(encoding="utf-8").split("\n")
        return len(lines) > 1 and json.loads(lines[0]) == self.fingerprint

    def _resume(self) -> np.memmap:
        whole, _, cut_short = self.progress.read_text(encoding="utf-8").rpartition("\n")
        if cut_short:  # by a crash in the middle of a write: what is appended next must not join it
            with atomic_path(self.progress) as partial:
                partial.write_text(whole + "\n", encoding="utf-8")
        self.done = {int(line) for line in whole.split("\n")[1:]}
        return np.lib.format.open_memmap(self.part, mode="r+")

    def _create(self, rows: int, dim: int) -> np.memmap:
        self.progress.unlink(missing_ok=True)
        try:
            array = np.lib.format.open_memmap(self.part, mode="w+", dtype=np.float32, shape=(rows, dim))
            with open(self.part, "rb+") as file:  # a sparse file on a full disk would end the process at a write
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        except OSError as error:
            self.part.unlink(missing_ok=True)
            needed = f"{error.strerror}, {4 * rows * dim} bytes are needed for the embeddings"
            raise OSError(error.errno, needed, str(self.path)) from error
        self._append(json.dumps(self.fingerprint) + "\n")
        return array

    def write(self, number: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Store batch `number`: values [B, D] for the row positions [B]."""
        self.map[rows] = values
        self._pending.append(number)
        if time.perf_counter() - self._flushed >= SECONDS_BETWEEN_FLUSHES:
            self._flush()

    def finish(self) -> None:
        """Every batch is in: give the file its name."""
        if self.complete:
            return
        self._flush()
        del self.map
        write_json(self.meta, self.fingerprint)
        os.replace(self.part, self.path)
        sync_folder(self.path.parent)
        self.progress.unlink()
        self.complete = True

    def array(self) -> np.ndarray:
        """The finished embeddings, memory-mapped: [N, D] float32, read-only."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def remove(self) -> None:
        """Delete the finished file."""
        remove_embeddings(self.path)

    def _flush(self) -> None:
        self.map.flush()
        self._append("".join(f"{number}\n" for number in self._pending))
        self._pending = []
        self._flushed = time.perf_counter()

    def _append(self, text: str) -> None:
        with open(self.progress, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def remove_embeddings(path: Path) -> None:
    """Delete a store's files, finished or not."""
    for suffix in ("", ".json", ".part", ".progress"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@torch.inference_mode()
def embed_rows(
    model: "PreTrainedModel",
    tokens: Tokens,
    rows: np.ndarray,
    store: EmbeddingStore,
    max_tokens_per_batch: int,
) -> dict[str, float]:
    """Fill `store` with the embeddings of `rows` of `tokens`: position i of the store is row rows[i].

    The plain mean of the last hidden states over all of a row's tokens (arXiv 2311.08182, section 2), pooled in
    float32. Finished batches in the store are not computed again. Returns seconds, tokens, tokens/s and the share
    of padding.

    Raises:
        InputError: the tokenizer's ids do not fit the model.
        RunError: an embedding that is not finite; the row is named, finished batches are kept.
    """
    began = time.perf_counter()
    body = backbone(model).eval()
    check_vocabulary(model, int(tokens.ids.max()))
    options = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}
    lengths = tokens.lengths()[rows]
    computed = padded = 0
    with Progress("embed", int(lengths.sum()), "token") as bar:
        for number, batch in enumerate([] if store.complete else token_budget_batches(lengths, max_tokens_per_batch)):
            real = int(lengths[batch].sum())
            if number not in store.done:
                ids, mask, _ = pad(tokens, rows[batch])
                ids, mask = ids.to(model.device), mask.to(model.device)
                hidden = body(input_ids=ids, attention_mask=mask.long(), **options).last_hidden_state  # [B, T, D]
                pooled = masked_mean_pool(hidden, mask)  # [B, D]
                _check_finite(pooled, rows[batch])
                store.write(number, batch, pooled.cpu().numpy())
                computed, padded = computed + real, padded + ids.numel()
            bar.update(real)
    store.finish()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens": computed,
        "tokens_per_second": computed / seconds,
        "padding": 1 - computed / padded if padded else 0.0,
    }


def _check_finite(pooled: torch.Tensor, rows: np.ndarray) -> None:
    bad = ~torch.isfinite(pooled).all(dim=1)
    if bad.any():
        raise RunError(
            f"the model's embedding of row {int(rows[int(bad.nonzero()[0])])} is not finite: "
            "training may have diverged; a lower learning_rate or dtype float32 may help"
        )
