"""Where embeddings go: memory here or on a GPU, or a file that is filled batch by batch and survives a crash."""

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
# Of a provenance: which rows a batch holds, and what was asked for. Neither decides the values of a finished file.
NOT_COMPARED = ("first_sha256", "shares_prefixes", "batching", "request_sha256", "asked_sha256")
FILE_DTYPES = {torch.float32: np.float32, torch.float16: np.float16}


class MemoryStore:
    """Embeddings [N, D] in memory, here or on a GPU. Nothing is kept of an unfinished one."""

    def __init__(self, rows: int, dim: int, dtype: torch.dtype, device: torch.device | str, budget: int):
        self.values = torch.zeros((rows, dim), dtype=dtype, device=device)
        self.budget = budget
        self.complete = False
        self._mine = torch.zeros(rows, dtype=torch.bool, device=device)  # written by this process

    def has(self, number: int, rows: np.ndarray) -> bool:
        """Whether batch `number`, of these row positions, was stored by an earlier start: nothing was."""
        return False

    def write(self, number: int, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Store batch `number`: values [B, D] for the row positions, int64 [B], both where the store is."""
        self.values[rows] = values
        self._mine[rows] = True

    def flush(self) -> None:
        """Nothing is to be kept."""

    def share(self, rows: torch.Tensor) -> None:
        """Every process has these rows, int64, from now on, whichever wrote them."""
        rows = rows.to(self.values.device)
        part = torch.where(self._mine[rows, None], self.values[rows], 0)
        self.values[rows] = distributed.total(part)

    def finish(self) -> None:
        """Every batch is in."""
        if distributed.world() > 1:
            self.values[~self._mine] = 0
            distributed.total(self.values)
        self.complete = True


class FileStore:
    """A float32 or float16 [N, D] .npy file that is filled batch by batch, by one process or several.

    While it is filled it is called `<path>.part`, and `<path>.progress` lists the finished batches (a further
    process's are in `<path>.progress.<rank>`); opened again with the same provenance it goes on from there.
    `<path>.json` keeps the provenance of the finished file. Which rows were in a batch together changes no more than
    the last bits of its values, so that it also serves where the provenance differs in NOT_COMPARED alone. The token
    budget of the batches stands in the progress file, and holds until all are through: in another their numbers mean
    something else.
    """

    def __init__(
        self, path: Path, rows: int, dim: int, provenance: dict[str, Any], budget: int,
        dtype: torch.dtype = torch.float32, replace: bool = False,
    ):  # fmt: skip
        """Open or create. replace: a finished file of something else, or a damaged one, is begun anew.

        Raises:
            InputError: `path` holds embeddings of something else, or is damaged, and is not to be replaced.
            OSError: no space for the whole file (it is reserved at once).
        """
        self.path, self.dtype = path, FILE_DTYPES[dtype]
        self.part = path.with_name(path.name + ".part")
        self.meta = sidecar_of(path)
        self.provenance = provenance | {"rows": rows, "dim": dim, "batching": BATCHING}
        self.provenance |= {} if dtype == torch.float32 else {"dtype": "float16"}
        self.done: set[int] = set()
        self.budget = budget
        self.complete = self._is_complete(replace)
        distributed.barrier()  # no process makes or removes what another has not looked for yet
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
        distributed.barrier()  # all have read what there is
        if not self._header(self.progress):
            self.progress.unlink(missing_ok=True)
            self._begin()
        self.map = np.lib.format.open_memmap(self.part, mode="r+")
        distributed.barrier()  # what is left to do is shared out by what all have read

    @property
    def progress(self) -> Path:
        """This process's list of finished batches."""
        return self._progress_of(distributed.rank())

    @property
    def values(self) -> torch.Tensor:
        """[N, D], written in place; read-only in a finished file."""
        return torch.from_numpy(self.map if not self.complete else np.load(self.path, mmap_mode="c"))

    def _progress_of(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.progress" + (f".{rank}" if rank else ""))

    def _is_complete(self, replace: bool) -> bool:
        if not self.path.exists():
            return False
        wrong = self._what_is_wrong()
        if wrong is None:
            return True
        if replace:
            return False
        raise InputError(f"{self.path}: exists, and is {wrong}; remove it (overwrite=True does), or name another")

    def _what_is_wrong(self) -> str | None:
        """Why the file at `path` is not these embeddings."""
        try:
            provenance = read_record(self.meta)
        except (OSError, InputError):
            return f"not known to be made from this data and model: {self.meta.name} does not say so"
        differing = differences(*(_compared(one) for one in (provenance, self.provenance)), "it")
        if differing:
            return f"not made from this data and model ({'; '.join(differing)})"
        if not self._is_whole(self.path):
            return f"damaged: expected a whole .npy file of {' x '.join(map(str, self._shape))} numbers"
        return None

    @property
    def _shape(self) -> tuple[int, int]:
        return self.provenance["rows"], self.provenance["dim"]

    def _is_whole(self, path: Path) -> bool:
        """Whether it is a .npy file of this shape and dtype that was not cut short."""
        array = read_whole_npy(path)
        return array is not None and array.shape == self._shape and array.dtype == self.dtype

    def _can_resume(self) -> bool:
        if not (self.part.exists() and self._is_whole(self.part)):
            return False
        return recorded(self._header(self._progress_of(0))) == self.provenance

    def _header(self, progress: Path) -> dict[str, Any]:
        """The first line of a process's list; empty when it is not there, or a crash left half of it."""
        try:
            line, whole, _ = progress.read_text(encoding="utf-8").partition("\n")
            header = parse_json(line, str(progress)) if whole else {}
        except (OSError, ValueError):
            return {}
        return header if isinstance(header, dict) and type(header.get("budget")) is int else {}

    def _resume(self) -> None:
        """What any process finished before, under any number of them."""
        for path in progress_files(self.path):
            header = self._header(path)
            if not header:
                continue
            whole, _, cut_short = path.read_text(encoding="utf-8").rpartition("\n")
            if cut_short and path == self.progress:  # by a crash in a write: what is appended next must not join it
                with atomic_path(path) as partial:
                    partial.write_text(whole + "\n", encoding="utf-8")
            self.budget = header["budget"]
            self.done |= {int(line) for line in whole.split("\n")[1:] if line.isdecimal()}

    def _create(self, rows: int, dim: int) -> None:
        for path in progress_files(self.path):
            path.unlink()
        try:
            array = np.lib.format.open_memmap(self.part, mode="w+", dtype=self.dtype, shape=(rows, dim))
            with open(self.part, "rb+") as file:  # a sparse file on a full disk would end the process at a write
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        except OSError as error:
            self.part.unlink(missing_ok=True)
            size = np.dtype(self.dtype).itemsize * rows * dim
            needed = f"{error.strerror}, {size} bytes are needed for the embeddings"
            raise OSError(error.errno, needed, str(self.path)) from error

    def _begin(self) -> None:
        self._append(json.dumps({"provenance": self.provenance, "budget": self.budget}) + "\n")

    def has(self, number: int, rows: np.ndarray) -> bool:
        """Whether batch `number`, of these row positions, was stored by an earlier start.

        A row of zeros alone was not: the file began with them, and a list of batches may be of another file.
        """
        return number in self.done and bool(self.map[rows].any(axis=1).all())

    def write(self, number: int, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Store batch `number`: values [B, D] for the row positions, int64 [B], in host memory."""
        self.map[rows.numpy()] = values.numpy()
        self._pending.append(number)
        if time.perf_counter() - self._flushed >= SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def share(self, rows: torch.Tensor) -> None:
        """Every process sees these rows from now on: it is one file."""
        distributed.barrier()

    def finish(self) -> None:
        """Every batch is in: give the file its name."""
        if self.complete:
            return
        self.flush()
        distributed.barrier()
        del self.map
        if distributed.is_first():
            self.path.unlink(missing_ok=True)  # what is replaced: never beside the provenance of another
            write_json(self.meta, self.provenance)
            os.replace(self.part, self.path)
            sync_folder(self.path.parent)
            for path in progress_files(self.path):
                path.unlink()
        distributed.barrier()
        self.complete = True

    def array(self) -> np.ndarray:
        """The finished embeddings, memory-mapped: [N, D], read-only."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def flush(self) -> None:
        """Make what was written survive a crash."""
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


def _compared(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key not in NOT_COMPARED}


def read_whole_npy(path: Path) -> np.ndarray | None:
    """A .npy file, memory-mapped (copy on write); None when it is none, or was cut short."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def remove_embeddings(path: Path) -> None:
    """Delete a store's files, finished or not."""
    for suffix in ("", ".json", ".part"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for progress in progress_files(path):
        progress.unlink()


def progress_files(path: Path) -> list[Path]:
    """The lists of finished batches of the store at `path`, the first process's first."""
    return sorted(path.parent.glob(glob.escape(path.name) + ".progress*"))
