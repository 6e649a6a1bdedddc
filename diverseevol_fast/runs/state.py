"""A run's folder: which stages are finished, the run's provenance, and how it continues after a crash.

    data/rd_<r>_labeled.json, rd_<r>_unlabeled.json     the pool that round r trains on, and the other candidates
    output/rd_<r>/                                      the model trained in round r
    state/run.json                                      the run's provenance, compared when it is continued
    state/tokens.npz                                    the rows' token ids
    state/rd_<r>/selected.json                          the indices that joined the pool in round r, in pick order
    state/rd_<r>/metrics.json, manifest.json            metrics; hashes, versions, random states

A stage is finished when its last file exists: selected.json for selection, output/rd_<r>/ for training. A round's
manifest has the SHA-256 of selected.json and of the model, the sizes of the model's files, and in round 0 the SHA-256
of tokens.npz. A file that has changed since is refused.
"""

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._common import distributed
from .._common.errors import InputError
from .._common.files import empty_beside, file_sha256, json_text, read_record, rename_synced, write_json
from .._common.provenance import differences
from ..embedding.store import remove_embeddings
from ..models.load import folder_sha256
from ..strategies import STRATEGIES

log = logging.getLogger("diverseevol_fast")

HASHED_AT_START = 1 << 30  # bytes; of a larger model only the file sizes are compared before it is loaded
# Settings that may change until round 1 is selected, which is the first to use them.
STRATEGY_KEYS = ("evol_schedule_name", "whiten_n_components", "max_random_times", "vendi_argmax_rank")
LAZY_KEYS = ("lazy_rounds", "lazy_bound", "lazy_probe", "lazy_audit")
FREE_UNTIL_SELECTED = {f"config.{key}" for key in (*STRATEGY_KEYS, *LAZY_KEYS, "n_query", "embed_dtype")}

OLDER_NAMES = {"made_from": "provenance", "config.unseen": "config.held_out_groups"}  # version 0.1's keys of records
for metric in ("loss", "interval", "seconds"):
    OLDER_NAMES |= {f"held_out_{metric}": f"validation_{metric}", f"unseen_{metric}": f"held_out_groups_{metric}"}


class RunState:
    """Paths and records of one run folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def provenance_file(self) -> Path:
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

    def remove_embeddings(self, r: int, last: int, lazy: bool) -> None:
        """Remove the embeddings and statistics that selected round r; after the last round the base model's too.

        lazy: those of round r are kept for the next round, and those of the round before are removed.
        """
        files = [self.embeddings_file(r), self.statistics_file(r)]
        if lazy and r > 0:
            files = [self.embeddings_file(r - 1)] + (files if r == last else [])
        for path in files + ([self.base_embeddings_file] if r == last else []):
            remove_embeddings(path)

    def data_file(self, r: int, part: str) -> Path:
        return self.folder / "data" / f"rd_{r}_{part}.json"

    def selected(self, r: int) -> list[int] | None:
        """The indices that joined the pool in round r, in pick order; None when it is not selected yet."""
        path = self.round_folder(r) / "selected.json"
        return read_record(path, "indices", "sqdist")["indices"] if _exists_for_all(path) else None

    def record_selected(self, r: int, indices: list[int], sqdist: list[float] | None) -> None:
        """sqdist: each pick's squared distance to its nearest center when picked; None where the strategy has none."""
        if distributed.is_first():
            record = {"indices": indices, "sqdist": sqdist}
            sha256 = hashlib.sha256(json_text(record).encode()).hexdigest()
            before = self.manifest(r).get("selected_sha256", sha256)
            if before != sha256 and self.model_folder(r).exists():
                raise InputError(
                    f"{self.model_folder(r)}: was trained on other rows than are selected for it now; put "
                    f"{self.round_folder(r) / 'selected.json'} back, or begin anew with restart=True"
                )
            self.record_manifest(r, {"selected_sha256": sha256})
            write_json(self.round_folder(r) / "selected.json", record)
        distributed.barrier()

    def is_anything_selected(self) -> bool:
        """Whether a round after round 0 is selected."""
        return any(path.parent.name != "rd_0" for path in self.folder.glob("state/rd_*/selected.json"))

    def is_anything_trained(self) -> bool:
        """Whether a round has its model."""
        return any(self.folder.glob("output/rd_*"))

    def has_stages(self) -> bool:
        """Whether any stage is finished."""
        return self.is_anything_trained() or any(self.folder.glob("state/rd_*/selected.json"))

    def forget(self) -> None:
        """Remove all records of a run that trained nothing."""
        self.provenance_file.unlink()
        self.tokens_file.unlink(missing_ok=True)
        for folder in (*self.folder.glob("state/rd_*"), self.folder / "data", self.folder / "output"):
            shutil.rmtree(folder, ignore_errors=True)

    def is_trained(self, r: int) -> bool:
        return _exists_for_all(self.model_folder(r))

    def record_model(self, r: int, folder: Path) -> None:
        """Record the round's model, which is in `folder` until the folder is renamed."""
        if distributed.is_first():
            self.record_manifest(r, {"model_sha256": folder_sha256(folder), "model_bytes": _sizes(folder)})

    def model_sha256(self, r: int, loaded: bool) -> str:
        """Digest of the round's model. loaded: the model is read from its folder, which is compared with the record.

        Raises:
            InputError: the folder has changed since training.
        """
        recorded = self.manifest(r).get("model_sha256")
        if recorded and not loaded:
            return recorded
        digest = folder_sha256(self.model_folder(r))
        if digest != (recorded or digest):
            raise self._changed(self.model_folder(r), "its weights or settings are others")
        return digest

    def check_files(self, rounds: int) -> None:
        """Compare the finished files of rounds 0 to `rounds` - 1 with the manifests, as far as these have digests.

        Raises:
            InputError: a file has changed since it was written.
        """
        if not self.tokens_file.exists():
            raise self._changed(self.tokens_file, "it is not there")
        self._check_file(self.tokens_file, self.manifest(0).get("tokens_sha256"))
        self.check_selected(rounds)
        for r in range(rounds):
            if self.model_folder(r).exists() and "model_bytes" in self.manifest(r):
                self._check_model(r, self.manifest(r)["model_bytes"])

    def check_selected(self, rounds: int) -> None:
        """Compare selected.json of rounds 0 to `rounds` - 1 with the manifests. Raises InputError as check_files."""
        for r in range(rounds):
            self._check_file(self.round_folder(r) / "selected.json", self.manifest(r).get("selected_sha256"))

    def _check_model(self, r: int, recorded: dict[str, int]) -> None:
        sizes = _sizes(self.model_folder(r))
        for name, size in recorded.items():
            if sizes.get(name) != size:
                raise self._changed(self.model_folder(r) / name, f"{sizes.get(name, 'no')} bytes, not {size}")
        if sum(sizes.values()) <= HASHED_AT_START:
            self.model_sha256(r, loaded=True)

    def _check_file(self, path: Path, sha256: str | None) -> None:
        if sha256 and path.exists() and file_sha256(path) != sha256:
            raise self._changed(path, "its SHA-256 is another")

    def _changed(self, path: Path, how: str) -> InputError:
        return InputError(
            f"{path}: has changed since the run wrote it ({how}); put it back, or begin anew with restart=True, "
            "which keeps this folder aside"
        )

    def metrics(self, r: int) -> dict[str, Any]:
        path = self.round_folder(r) / "metrics.json"
        return read_record(path, older_names=OLDER_NAMES) if path.exists() else {}

    def record_metrics(self, r: int, **stages: dict[str, Any] | int) -> None:
        """Add a stage's metrics to the round's."""
        if distributed.is_first():
            write_json(self.round_folder(r) / "metrics.json", self.metrics(r) | stages)

    def manifest_file(self, r: int) -> Path:
        return self.round_folder(r) / "manifest.json"

    def manifest(self, r: int, *keys: str) -> dict[str, Any]:
        """The round's manifest, empty where there is none yet.

        Raises:
            InputError: one of `keys` is not in it.
        """
        path = self.manifest_file(r)
        return read_record(path, *keys, older_names=OLDER_NAMES) if path.exists() else {}

    def record_manifest(self, r: int, entries: dict[str, Any]) -> None:
        """Add entries to the round's manifest."""
        if distributed.is_first():
            write_json(self.manifest_file(r), self.manifest(r) | entries)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def build_folder_together(folder: Path, build: Callable[[Path], Any]) -> Any:
    """As build_folder, by all processes of the job: each calls `build`, the first creates and renames the folder."""
    partial = folder.with_name(f".{folder.name}.partial")
    if distributed.is_first():
        empty_beside(folder)
    distributed.barrier()
    result = build(partial)
    distributed.barrier()
    if distributed.is_first():
        rename_synced(partial, folder)
    distributed.barrier()
    return result


def _exists_for_all(path: Path) -> bool:
    """Whether the path exists, the same in every process: none of them goes on and creates it before all have asked."""
    exists = path.exists()
    distributed.barrier()
    return exists


@contextmanager
def open_run(folder: Path, restart: bool = False) -> Iterator[RunState]:
    """Open a run folder, new or to be continued, and lock it against other jobs; the first process holds the lock.

    restart: an earlier run's folder is renamed to <folder>.before-<n>.

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
    aside = _put_aside(folder) if restart and (folder / "state").is_dir() else None
    with _lock(folder):
        state = RunState(folder)
        try:
            yield state
        finally:
            if not state.provenance_file.exists() and not state.has_stages():
                _remove_if_empty(folder)
                if aside and not folder.exists():  # the new run was refused
                    aside.rename(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    (folder / "state").mkdir(parents=True, exist_ok=True)
    with open(folder / "state" / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is running it") from error
        yield


def _put_aside(folder: Path) -> Path:
    """Rename a run's folder, which no process may have open, to the first free <folder>.before-<n>; returns that."""
    with _lock(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
            number += 1
        folder.rename(aside)
    log.info("%s: what was made before is kept as %s", folder, aside)
    return aside


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that was refused at the start, unless other files are in it."""
    (folder / "state" / "lock").unlink(missing_ok=True)
    shutil.rmtree(folder / "base", ignore_errors=True)  # a built-in base model
    for path in (folder / "state", folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def check_provenance(state: RunState, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """The provenance that an earlier start recorded; None without one, or where it differs and nothing was trained.

    Raises:
        InputError: the provenance differs in what may not change; the message says in what.
    """
    if not state.provenance_file.exists():
        if state.has_stages():
            raise InputError(
                f"{state.provenance_file}: is missing, though stages are finished, and nothing says what they were "
                "made from; put it back, or begin anew with restart=True, which keeps this folder aside"
            )
        return None
    before = read_record(state.provenance_file, older_names=OLDER_NAMES)
    if before != provenance and not state.is_anything_trained():
        log.info("%s: begun with other settings, but nothing was trained: beginning anew", state.folder)
        state.forget()
        return None
    free = set() if state.is_anything_selected() else FREE_UNTIL_SELECTED
    if not STRATEGIES[provenance["config.evol_schedule_name"]].picks_all_rounds_at_once:
        free = free | {"config.n_round"}
    differing = differences(before, provenance, "the run", ignored=free)
    if differing:
        raise InputError(
            f"{state.folder}: an output of another run; name another output_dir, or begin anew with restart=True, "
            f"which keeps this one aside. {'; '.join(differing)}"
        )
    for change in differences(before, provenance, "the run"):
        log.info("%s", change)
    return before


def record_provenance(state: RunState, provenance: dict[str, Any]) -> None:
    """Record what the run is made from: from now on it is one to be continued."""
    write_json(state.provenance_file, provenance)
