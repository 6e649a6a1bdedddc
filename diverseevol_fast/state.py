"""A run's folder: what is finished, what it was made from, and how to go on after a crash.

    data/rd_<r>_labeled.json, rd_<r>_unlabeled.json     the pool that round r trains on, and the rest
    output/rd_<r>/                                      the model trained in round r
    state/run.json                                      what the run was made from; compared when it is continued
    state/tokens.npz                                    the rows' token ids
    state/rd_<r>/selected.json                          the rows that joined the pool in round r, in pick order
    state/rd_<r>/metrics.json, manifest.json            figures; hashes, versions, random states

A stage is finished when its last file stands: selected.json for selection, output/rd_<r>/ for training.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import distributed
from .errors import InputError
from .files import read_json, sync_folder, write_json
from .store import remove_embeddings


class RunState:
    """Paths and records of one run folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def identity_file(self) -> Path:
        return self.folder / "state" / "run.json"

    @property
    def tokens_file(self) -> Path:
        return self.folder / "state" / "tokens.npz"

    def round_folder(self, r: int) -> Path:
        return self.folder / "state" / f"rd_{r}"

    def model_folder(self, r: int) -> Path:
        return self.folder / "output" / f"rd_{r}"

    def embeddings_file(self, r: int) -> Path:
        return self.round_folder(r) / "embeddings.npy"

    def statistics_file(self, r: int) -> Path:
        return self.round_folder(r) / "statistics.npy"

    @property
    def base_embeddings_file(self) -> Path:
        return self.folder / "state" / "base_embeddings.npy"

    def remove_embeddings(self, r: int, last: int) -> None:
        """What round r was chosen by; after the last round the base model's embeddings, too."""
        files = [self.embeddings_file(r), self.statistics_file(r)]
        for path in files + ([self.base_embeddings_file] if r == last else []):
            remove_embeddings(path)

    def data_file(self, r: int, part: str) -> Path:
        return self.folder / "data" / f"rd_{r}_{part}.json"

    def selected(self, r: int) -> list[int] | None:
        """The rows that joined the pool in round r, in pick order; None when not selected yet."""
        path = self.round_folder(r) / "selected.json"
        return read_json(path)["indices"] if _all_see(path) else None

    def record_selected(self, r: int, indices: list[int], sqdist: list[float] | None) -> None:
        """sqdist: each pick's squared distance to its nearest centre when picked; None for the initial pool."""
        if distributed.is_first():
            write_json(self.round_folder(r) / "selected.json", {"indices": indices, "sqdist": sqdist})
        distributed.barrier()

    def is_trained(self, r: int) -> bool:
        return _all_see(self.model_folder(r))

    def metrics(self, r: int) -> dict[str, Any]:
        path = self.round_folder(r) / "metrics.json"
        return read_json(path) if path.exists() else {}

    def record_metrics(self, r: int, **stages: dict[str, Any]) -> None:
        """Add a stage's figures to the round's."""
        if distributed.is_first():
            write_json(self.round_folder(r) / "metrics.json", self.metrics(r) | stages)

    def manifest(self, r: int) -> dict[str, Any]:
        path = self.round_folder(r) / "manifest.json"
        return read_json(path) if path.exists() else {}

    def record_manifest(self, r: int, manifest: dict[str, Any]) -> None:
        if distributed.is_first():
            write_json(self.round_folder(r) / "manifest.json", manifest)


def build_folder(folder: Path, build: Callable[[Path], Any]) -> Any:
    """Let `build` fill a folder beside `folder`, then give it its name: it stands whole or not at all."""
    partial = _empty_beside(folder)
    result = build(partial)
    _name(partial, folder)
    return result


def build_folder_together(folder: Path, build: Callable[[Path], Any]) -> Any:
    """As build_folder, by all processes of the job: each calls `build`, the first one makes and names the folder."""
    partial = folder.with_name(f".{folder.name}.partial")
    if distributed.is_first():
        _empty_beside(folder)
    distributed.barrier()
    result = build(partial)
    distributed.barrier()
    if distributed.is_first():
        _name(partial, folder)
    distributed.barrier()
    return result


def _all_see(path: Path) -> bool:
    """Whether the path exists: no process of the job goes on, and makes it, before all have looked."""
    found = path.exists()
    distributed.barrier()
    return found


def _empty_beside(folder: Path) -> Path:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _name(partial: Path, folder: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    os.replace(partial, folder)
    sync_folder(folder.parent)


@contextmanager
def open_run(folder: Path) -> Iterator[RunState]:
    """Hold a run folder, new or to be continued; one job at a time, of which the first process holds it.

    Raises:
        InputError: the folder holds something else, or another process has it open.
    """
    if not distributed.is_first():
        yield RunState(folder)
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the run's output, got a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "state").is_dir():
        raise InputError(f"{folder}: holds files that are not a run's; name another output_dir or empty it")
    (folder / "state").mkdir(parents=True, exist_ok=True)
    with open(folder / "state" / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is running it") from error
        state = RunState(folder)
        try:
            yield state
        finally:
            if not state.identity_file.exists():
                _leave_nothing(folder)


def _leave_nothing(folder: Path) -> None:
    """A run that was refused at the start leaves no folder behind, unless there is something in it."""
    (folder / "state" / "lock").unlink(missing_ok=True)
    shutil.rmtree(folder / "base", ignore_errors=True)  # made for this run alone
    for path in (folder / "state", folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def check_identity(state: RunState, identity: dict[str, Any]) -> bool:
    """Whether the run was begun before, from the same.

    Raises:
        InputError: it was begun from something else; says from what.
    """
    if not state.identity_file.exists():
        return False
    before, identity = _flat(read_json(state.identity_file)), _flat(identity)
    differing = [
        f"{key}: the run has {_short(before.get(key))}, now {_short(identity.get(key))}"
        for key in sorted(before.keys() | identity.keys())
        if before.get(key) != identity.get(key)
    ]
    if differing:
        raise InputError(f"{state.folder}: an output of another run; name another output_dir. {'; '.join(differing)}")
    return True


def record_identity(state: RunState, identity: dict[str, Any]) -> None:
    """The run is begun, from this."""
    write_json(state.identity_file, identity)


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """The same with the keys of dictionaries in it as "outer.inner"."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
