"""A run read from its folder: its settings, rounds, rows and models."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .._common.errors import InputError
from ..data.dataset import Data, load_data
from ..models.load import SMALL_LLAMA, resolve_model
from .config import Config, make_config
from .inputs import held_out_group_rows, split
from .state import RunState


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder. Reading it changes none of the run's files."""

    state: RunState
    config: Config
    rounds: int  # rounds 0 to rounds - 1 have their model

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.state.folder.resolve().name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.state.folder

    def __repr__(self) -> str:
        return f"FinishedRun({str(self.folder)!r}, {self.rounds} rounds, {self.config.evol_schedule_name})"

    def metrics(self, r: int) -> dict[str, Any]:
        """Round r's metrics by stage: "train", "embed", "select"."""
        return self.state.metrics(r)

    def model_folder(self, r: int) -> Path:
        """The folder of the model that round r trained."""
        return self.state.model_folder(r)

    def to_dict(self) -> dict[str, Any]:
        """The folder, and each round's metrics."""
        rounds = [{"round": r, **self.metrics(r)} for r in range(self.rounds)]
        return {"folder": str(self.folder), "rounds": rounds}

    def pool(self, r: int) -> list[int]:
        """The indices of the rows that round r trained on, in the order they joined: it begins with pool(r - 1)."""
        return [index for earlier in range(r + 1) for index in self.state.selected(earlier) or []]

    @cached_property
    def _loaded(self) -> tuple[Data, list[int]]:
        data, empty = load_data(self.config.full_data_path, self.config.columns, skip_broken=self.config.skip_broken)
        if data.sha256() != self.state.manifest(0)["provenance"]["data_sha256"]:
            raise InputError(f"{self.config.full_data_path}: has changed since the run in {self.state.folder} was made")
        return data, empty

    @property
    def data(self) -> Data:
        """The run's data set.

        Raises:
            InputError: it is no longer there, or has other rows than the run was made from.
        """
        return self._loaded[0]

    @property
    def candidates(self) -> np.ndarray:
        """The indices of the candidates, ascending int64. Raises InputError as `data`."""
        data, empty = self._loaded
        return split(len(data.rows), [*empty, *held_out_group_rows(data, empty, self.config)], self.config)[0]

    def base_model(self) -> Path:
        """The folder of the model that every round trains from.

        Raises:
            InputError: it is not there.
        """
        if self.config.model_name_or_path == SMALL_LLAMA:
            return self.state.folder / "base"
        return resolve_model(self.config.model_name_or_path, self.config.cache_dir, self.config.trust_remote_code)


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        InputError: it is no run's folder, no round has a model yet, or its records were damaged or changed since.
    """
    state = RunState(folder)
    if not state.provenance_file.is_file():
        raise InputError(f"{folder}: expected the folder of a run (with state/run.json); name its output_dir")
    rounds = 0
    while state.model_folder(rounds).is_dir():
        rounds += 1
    if rounds == 0:
        raise InputError(f"{folder}: no round has a model yet; let the run go on first")
    state.check_selected(rounds)
    last = max((r for r in range(rounds) if state.manifest_file(r).exists()), default=0)
    manifests = [state.manifest(r, "config", "provenance") for r in (0, last)]
    return FinishedRun(state, make_config(manifests[-1]["config"]), rounds)
