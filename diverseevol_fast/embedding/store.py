"""Stores of embeddings: host memory, a GPU, or a file that is filled batch by batch and survives a crash."""

import glob
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common import distributed
from .._common.errors import InputError
from .._common.files import atomic_path, read_record, sync_folder, write_json
from .._common.provenance import differences, recorded, sidecar_of
from .._common.reading import parse_json
from .prefix import BATCHING

SECONDS_BETWEEN_FLUSHES = 2.0
FILLED_AT_ONCE = 8192  # rows
# These keys of a provenance say which rows a batch holds, and what was asked for: they do not change a finished file.
NOT_COMPARED = ("first_sha256", "shares_prefixes", "batching", "request_sha256", "asked_sha256")
FILE_DTYPES = {torch.float32: np.float32, torch.float16: np.float16}


class MemoryStore:
    """Embeddings [N, D] in host memory or on a GPU. A crash loses all of them."""

    def __init__(self, rows: int, dim: int, dtype: torch.dtype, device: torch.device | str, budget: int):
        self.values = torch.zeros((rows, dim), dtype=dtype, device=device)
        self.budget = budget
        self.complete = False
        self._is_own = torch.zeros(rows, dtype=torch.bool, device=device)  # the rows that this process wrote

    def has(self, number: int, indices: np.ndarray) -> bool:
        """Whether an earlier start stored batch `number`: memory holds nothing of one."""
        return False

    def write(self, number: int, indices: torch.Tensor, values: torch.Tensor) -> None:
        """Store batch `number`: values [B, D] at the indices, int64 [B], both on the store's device."""
        self.values[indices] = values
        self._is_own[indices] = True

    def flush(self) -> None:
        """Do nothing: memory does not survive a crash."""

    def share(self, indices: torch.Tensor) -> None:
        """Give every process the rows at these indices, int64, whichever process wrote them."""
        indices = indices.to(self.values.device)
        own = torch.where(self._is_own[indices, None], self.values[indices], 0)
        self.values[indices] = distributed.total(own)

    def finish(self) -> None:
        """Give every process all rows, once every batch is written."""
        if distributed.world() > 1:
            self.values[~self._is_own] = 0
            distributed.total(self.values)
        self.complete = True


class FileStore:
    """A float32 or float16 [N, D] .npy file that one or several processes fill batch by batch.

    Until it is finished it is named `<path>.part`, and `<path>.progress` lists the finished batches (those of a further
    process: `<path>.progress.<rank>`); opened again with the same provenance, it is continued. `<path>.json` keeps the
    provenance of the finished file. Which rows share a batch changes only the last bits of their values, so that a
    finished file also serves when the provenance differs in NOT_COMPARED alone. The progress file records the token
    budget, which holds until the file is finished: with another budget, a batch's number stands for other rows.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        dim: int,
        provenance: dict[str, Any],
        budget: int,
        dtype: torch.dtype = torch.float32,
        replace: bool = False,
    ):
        """Open or create the file. replace: a finished file that is damaged, or of other inputs, is begun anew.

        Raises:
            InputError: `path` is damaged or holds embeddings of other inputs, and `replace` is False.
            OSError: there is no space for the whole file, which is reserved at once.
        """
        self.path, self.dtype = path, FILE_DTYPES[dtype]
        self.partial = path.with_name(path.name + ".part")
        self.meta = sidecar_of(path)
        self.provenance = provenance | {"rows": rows, "dim": dim, "batching": BATCHING}
        self.provenance |= {} if dtype == torch.float32 else {"dtype": "float16"}
        self.done: set[int] = set()
        self.budget = budget
        self.complete = self._is_complete(replace)
        distributed.barrier()  # no process may create or remove a file before all have looked for it
        self._pending: list[int] = []
        self._flushed = time.perf_counter()
        if self.complete:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with distributed.first_then_others():
            if self._can_resume():
                self._resume()
            elif distributed.is_first():
                self._create(rows, dim)
        distributed.barrier()  # every process has read the progress files before one of them is changed
        if not self._header(self.progress):
            self.progress.unlink(missing_ok=True)
            self._begin()
        self.map = np.lib.format.open_memmap(self.partial, mode="r+")
        distributed.barrier()  # no process writes before all have opened the file

    @property
    def progress(self) -> Path:
        """This process's list of finished batches."""
        return self._progress_of(distributed.rank())

    @property
    def values(self) -> torch.Tensor:
        """[N, D], memory-mapped; changes to those of a finished file stay in memory."""
        return torch.from_numpy(np.load(self.path, mmap_mode="c") if self.complete else self.map)

    def _progress_of(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.progress" + (f".{rank}" if rank else ""))

    def _is_complete(self, replace: bool) -> bool:
        if not self.path.exists():
            return False
        objection = self._objection()
        if objection is None:
            return True
        if replace:
            return False
        raise InputError(f"{self.path}: exists, and is {objection}; remove it (overwrite=True does), or name another")

    def _objection(self) -> str | None:
        """Why the file at `path` does not hold these embeddings; None when it does."""
        try:
            provenance = read_record(self.meta)
        except (OSError, InputError):
            return f"not known to be made from this data and model: {self.meta.name} does not say so"
        differing = differences(provenance, self.provenance, "it", ignored=NOT_COMPARED)
        if differing:
            return f"not made from this data and model ({'; '.join(differing)})"
        if not self._is_whole(self.path):
            return f"damaged: expected a whole .npy file of {' x '.join(map(str, self._shape))} numbers"
        return None

    @property
    def _shape(self) -> tuple[int, int]:
        return self.provenance["rows"], self.provenance["dim"]

    def _is_whole(self, path: Path) -> bool:
        """Whether the file at `path` is a whole .npy file of this shape and dtype."""
        array = read_whole_npy(path)
        return array is not None and array.shape == self._shape and array.dtype == self.dtype

    def _can_resume(self) -> bool:
        if not (self.partial.exists() and self._is_whole(self.partial)):
            return False
        return recorded(self._header(self._progress_of(0))) == self.provenance

    def _header(self, progress: Path) -> dict[str, Any]:
        """The first line of a progress file; empty when there is none, or a crash left half of it."""
        try:
            line, whole, _ = progress.read_text(encoding="utf-8").partition("\n")
            header = parse_json(line, str(progress)) if whole else {}
        except (OSError, ValueError):
            return {}
        return header if isinstance(header, dict) and type(header.get("budget")) is int else {}

    def _resume(self) -> None:
        """Read which batches are finished, from the progress files of however many processes there were."""
        for path in progress_files(self.path):
            header = self._header(path)
            if not header:
                continue
            whole, _, cut_short = path.read_text(encoding="utf-8").rpartition("\n")
            if cut_short and path == self.progress:  # a crash left half a line, which the next line must not join
                with atomic_path(path) as partial:
                    partial.write_text(whole + "\n", encoding="utf-8")
            self.budget = header["budget"]
            self.done |= {int(line) for line in whole.split("\n")[1:] if line.isdecimal()}

    def _create(self, rows: int, dim: int) -> None:
        for path in (rounds_of(self.path), *progress_files(self.path)):
            path.unlink(missing_ok=True)
        try:
            array = np.lib.format.open_memmap(self.partial, mode="w+", dtype=self.dtype, shape=(rows, dim))
            with open(self.partial, "rb+") as file:  # a write to a sparse file on a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        except OSError as error:
            self.partial.unlink(missing_ok=True)
            size = np.dtype(self.dtype).itemsize * rows * dim
            needed = f"{error.strerror}, {size} bytes are needed for the embeddings"
            raise OSError(error.errno, needed, str(self.path)) from error

    def _begin(self) -> None:
        self._append(json.dumps({"provenance": self.provenance, "budget": self.budget}) + "\n")

    def has(self, number: int, indices: np.ndarray) -> bool:
        """Whether an earlier start stored batch `number`, of the rows at these indices.

        A batch with a row of zeros was not stored, even if it is listed: the file began as zeros.
        """
        return number in self.done and bool(self.map[indices].any(axis=1).all())

    def write(self, number: int, indices: torch.Tensor, values: torch.Tensor) -> None:
        """Store batch `number`: values [B, D] at the indices, int64 [B], both in host memory."""
        self.map[indices.numpy()] = values.numpy()
        self._pending.append(number)
        if time.perf_counter() - self._flushed >= SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def share(self, indices: torch.Tensor) -> None:
        """Wait until every process has written its rows at these indices: all processes map the same file."""
        distributed.barrier()

    def finish(self) -> None:
        """Give the file its name, once every batch is written."""
        if self.complete:
            return
        self.flush()
        distributed.barrier()
        del self.map
        if distributed.is_first():
            self.path.unlink(missing_ok=True)  # a replaced file must not stand beside the new provenance
            write_json(self.meta, self.provenance)
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
            for path in progress_files(self.path):
                path.unlink()
        distributed.barrier()
        self.complete = True

    def fill(self, indices: np.ndarray, values: torch.Tensor, rounds: np.ndarray) -> None:
        """Store the rows of values [N, D] at the indices, int64 [B], which no batch embedded, before finish.

        One process calls this. rounds: [N] int32, the round in which each row of the file was embedded; it becomes the
        file of `rounds_of`.
        """
        for start in range(0, len(indices), FILLED_AT_ONCE):
            part = indices[start : start + FILLED_AT_ONCE]
            self.map[part] = values[torch.from_numpy(part)].cpu().numpy()
        with atomic_path(rounds_of(self.path)) as partial, open(partial, "wb") as file:
            np.save(file, rounds)

    def flush(self) -> None:
        """Make the batches written so far survive a crash."""
        if self._pending:
            self.map.flush()
            self._append("".join(f"{number}\n" for number in self._pending))
            self._pending = []
        self._flushed = time.perf_counter()

    def _append(self, text: str) -> None:
        with open(self.progress, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def read_whole_npy(path: Path) -> np.ndarray | None:
    """A .npy file, memory-mapped (copy on write); None when it is no .npy file, or was cut short."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def rounds_of(path: Path) -> Path:
    """The file beside the embeddings at `path` that says in which round each row was embedded.

    Only embeddings of lazy rounds have it: rows of earlier rounds are predicted (selection/lazy.py).
    """
    return path.with_name(path.name + ".rounds.npy")


def remove_embeddings(path: Path) -> None:
    """Delete a store's files, finished or not."""
    for suffix in ("", ".json", ".part"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    rounds_of(path).unlink(missing_ok=True)
    for progress in progress_files(path):
        progress.unlink()


def progress_files(path: Path) -> list[Path]:
    """The progress files of the store at `path`, the first process's first."""
    return sorted(path.parent.glob(glob.escape(path.name) + ".progress*"))
