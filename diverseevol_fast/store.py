"""The embeddings' file: filled batch by batch, it survives a crash."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_path, sync_folder, write_json
from .prefix import BATCHING

SECONDS_BETWEEN_FLUSHES = 2.0


class EmbeddingStore:
    """A float32 [N, D] .npy file that is filled batch by batch.

    While it is filled it is called `<path>.part`, and `<path>.progress` lists the finished batches; opened again
    with the same fingerprint it goes on from there. `<path>.json` keeps the fingerprint of the finished file.
    The way that batches are made is part of every fingerprint: their numbers mean something else in another.
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
        self.fingerprint = fingerprint | {"rows": rows, "dim": dim, "batching": BATCHING}
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
