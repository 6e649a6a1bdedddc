"""The diversity of a run's pools, or of subsets of a data set, beside random subsets of the same size."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common.errors import InputError
from .._common.files import as_paths, file_sha256
from .._common.messages import shown
from .._common.progress import Progress
from .._common.provenance import check_same_data, of_embeddings, of_picks
from .._common.reading import check_file
from .._common.version import __version__
from ..data.dataset import BUILTIN, Data, load_data
from ..data.input_files import load_embeddings, load_row_numbers
from ..models.load import resolve_model
from ..ops.checks import first_not_finite
from ..runs.finished import FinishedRun, read_run
from ..runs.state import RunState
from ..selection.arguments import as_rows
from .evaluation_encoder import (
    EmbeddingSpace,
    embed_rows,
    fixed_embeddings,
    fixed_space,
    is_own,
    load_json,
    save_json,
    short_digest,
)
from .measures import MEASURES, Values, describe, measure_nested, partition

log = logging.getLogger("diverseevol_fast")

YARDSTICK = 1 << 20  # random stream of the yardstick; [seed, 0] is that of [seed], which draws a run's initial pool
HIGHEST_SEED = (1 << 32) - 1  # scikit-learn takes no higher one

Nested = tuple[torch.Tensor, list[int]]  # indices, and ascending sizes: each subset is the first `size` of the indices


@dataclass(frozen=True)
class Diversity:
    """The diversity of a run's pools, or of subsets of a data set."""

    source: str  # the run's folder, or the data set
    record: dict[str, Any]  # as measure_run returns it; for a data set with "subsets" instead of "rounds"

    def __repr__(self) -> str:
        return f"Diversity({self.source!r}, {len(self.entries)} {'rounds' if self.is_run else 'subsets'})"

    @property
    def is_run(self) -> bool:
        """Whether a run's pools were measured."""
        return "rounds" in self.record

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The size, values and yardstick of each round or subset."""
        return self.record["rounds" if self.is_run else "subsets"]

    def table(self) -> list[dict[str, Any]]:
        """A row for each round or subset: its name, its size, and the value of each measure."""
        label = "round" if self.is_run else "picks"
        return [{label: entry[label], "size": entry["size"], **entry["values"]} for entry in self.entries]

    def to_dict(self) -> dict[str, Any]:
        """The record, with its source."""
        return {"run" if self.is_run else "data": self.source, **self.record}


def diversity(
    source: Any,
    *,
    picks: Any = None,
    model: str | None = None,
    embeddings: str | Path | None = None,
    random: int = 5,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    allow_other_data: bool = False,
    trust_remote_code: bool = False,
) -> list[Diversity]:
    """Measure the diversity of runs' pools, round by round, or of subsets of one data set, by one fixed model.

    Args:
        source: a run's folder or a list of them; or the name of a data set.
        picks: for a data set: the files with the indices of each subset (a JSON list, a record of picks, .npy).
        model: the fixed model: a local folder, a hub name or a .gguf file. None: each run's base model; runs with
            different base models do not compare.
        embeddings: instead of a model, a .npy file [N, D] of every row of the data set.
        random: number of random subsets of each size, which are the yardstick.
        seed: of these subsets and of the k-means cells.
        columns: the data set's names for our columns.
        allow_other_data: accept picks or embeddings of another data set.
        trust_remote_code: whether code that comes with the model runs.

    Returns:
        One Diversity for each run, or for the data set. measures.py describes each measure.

    Raises:
        InputError: files do not fit, or belong to another data set; random or seed is out of its range.
        RunError: an embedding is not finite.
    """
    if model is not None and embeddings is not None:
        raise InputError("diversity: expected a model or embeddings, got both")
    _check_draws(random, seed)
    sources = [str(one) for one in (source if isinstance(source, list | tuple) else [source])]
    for one in sources:
        if one not in BUILTIN and not Path(one).exists():
            raise InputError(f"{one}: no such file or folder; expected the folder of a run, or a data set")
    are_runs = [RunState(Path(one)).provenance_file.is_file() for one in sources]
    file = None if embeddings is None else _EmbeddingsFile(Path(embeddings), allow_other_data)
    if all(are_runs):
        for name, value in (("picks", picks), ("columns", columns)):
            if value is not None:
                raise InputError(f"{name}: is of a data set; a run has its own, leave it out")
        return _of_runs(sources, model, file, random, seed, trust_remote_code)
    if any(are_runs) or len(sources) > 1:
        raise InputError(
            f"diversity: expected folders of runs, with state/run.json, or one data set, got {' '.join(sources)}"
        )
    paths = [] if picks is None else as_paths(picks)
    if not paths:
        raise InputError(f"{sources[0]}: no run's folder, so a data set; say with picks which rows of it are measured")
    data, _ = load_data(sources[0], columns)
    subsets = _read_subsets(data, paths, allow_other_data)
    name, x = _embeddings_of(data, model, file, paths[0].parent / "diversity", trust_remote_code)
    head, measured = _measure(x, [(indices, [len(indices)]) for _, indices in subsets], random, seed)
    entries = [{"picks": str(path), **only} for (path, _), (only,) in zip(subsets, measured, strict=True)]
    return [Diversity(sources[0], {"model": name, **head, "subsets": entries})]


@dataclass(frozen=True)
class _EmbeddingsFile:
    """A file of embeddings that the user made."""

    path: Path
    allow_other_data: bool

    def check_same_data(self, own: dict[str, dict[str, Any]]) -> None:
        """Raises InputError if the file's data is known to differ. own: name of what is measured -> its provenance."""
        if not self.allow_other_data:
            provenance = of_embeddings(self.path, len(load_embeddings(self.path)))
            check_same_data(own | {f"embeddings {self.path}": provenance}, "allow_other_data=True")


def measure_run(
    run: FinishedRun,
    *,
    space: EmbeddingSpace | None = None,
    embeddings: Path | None = None,
    random: int = 5,
    seed: int = 0,
    centered: bool = False,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The diversity of each round's pool among the run's candidates, and of random subsets of the same size.

    The result is saved in a folder, and read from there if its provenance is the same: measures.json for the run's own
    space, another name for any other space. Where the folder cannot be written, a warning says so.

    Args:
        run: a run with models.
        space: the embedding space; None: the run's own (fixed_space).
        embeddings: instead of a space, a .npy file [N, D] of every row of the run's data set.
        random: number of random subsets of each size; the smaller ones of a draw are the beginning of the larger ones.
        seed: of the draws and of the k-means partition.
        centered: subtract the mean of all candidates first, so that cosines compare what differs between rows;
            distances do not change.
        folder: the folder of the result and the embeddings; None: RUN/diversity.

    Returns:
        {"model", "random", "seed", "dimension", "rows", "measures": {name: {"title", "higher_is_more_diverse",
        "what"}}, "rounds": [{"round", "size", "values": {name: number}, "random": {name: {"mean", "low", "high"}}}]}.
        A measure that needs two rows is None for a single row; "random" is empty without draws.

    Raises:
        InputError: as fixed_embeddings; `embeddings` does not fit; random or seed is out of its range.
        RunError: as fixed_embeddings.
    """
    _check_draws(random, seed)
    pools = [run.pool(r) for r in range(run.rounds)]
    if embeddings is None:
        space = space or fixed_space(run)
        name, source, own = space.name, space.provenance, is_own(run, space)
    else:
        check_file(embeddings)
        name, source, own = str(embeddings), {"embeddings_sha256": file_sha256(embeddings)}, False
    if centered:
        source, own = source | {"centred": True}, False  # spelled as in the files of earlier versions
    data_sha256 = run.state.manifest(0)["provenance"]["data_sha256"]
    pools_sha256 = hashlib.sha256(json.dumps(pools).encode()).hexdigest()
    provenance = {"version": __version__, "data_sha256": data_sha256, "pools_sha256": pools_sha256}
    provenance |= {"random": random, "seed": seed, **source}
    folder = folder or run.state.folder / "diversity"
    path = folder / ("measures.json" if own else f"measures-{short_digest(source)}.json")
    saved = load_json(path)
    if saved.pop("provenance", None) == provenance:
        return saved | {"model": name}  # the name under which it was saved may be another one of the same model
    if embeddings is None:
        x = fixed_embeddings(run, space, folder)
    else:
        x = _checked_embeddings(embeddings, len(run.data.rows), str(run.state.folder))
        x = x if len(run.candidates) == len(x) else x[torch.from_numpy(run.candidates)]
    if centered:
        x = x - x.mean(dim=0, dtype=torch.float64).float()
    positions = torch.from_numpy(np.searchsorted(run.candidates, pools[-1]))
    head, (rounds,) = _measure(x, [(positions, [len(pool) for pool in pools])], random, seed)
    record = {"model": name, **head, "rounds": [{"round": r, **values} for r, values in enumerate(rounds)]}
    save_json(path, {"provenance": provenance, **record})
    return record


def _of_runs(
    sources: list[str], model: str | None, file: _EmbeddingsFile | None, random: int, seed: int, trust_remote_code: bool
) -> list[Diversity]:
    runs = [read_run(Path(source)) for source in sources]
    if file:
        file.check_same_data({str(run.state.folder): run.state.manifest(0)["provenance"] for run in runs})
    spaces = [None] * len(runs) if file else _spaces(runs, model, trust_remote_code)
    path = file and file.path
    return [
        Diversity(source, measure_run(run, space=space, embeddings=path, random=random, seed=seed))
        for source, run, space in zip(sources, runs, spaces, strict=True)
    ]


def _spaces(runs: list[FinishedRun], model: str | None, trust_remote_code: bool) -> list[EmbeddingSpace]:
    """The space of each run: for a model, one for all with the first run's settings; for None, each run's own."""
    if model is not None:
        return [fixed_space(runs[0], model, trust_remote_code)] * len(runs)
    spaces = [fixed_space(run) for run in runs]
    if any(space.provenance != spaces[0].provenance for space in spaces):
        log.warning(
            "diversity: the runs have different base models, or embed with different settings (model_max_length, "
            "dtype, attn_implementation, trust_remote_code), so their metrics do not compare; name one model for all"
        )
    return spaces


def _read_subsets(data: Data, paths: list[Path], allow_other_data: bool) -> list[tuple[Path, torch.Tensor]]:
    """Each file of picks with its indices."""
    subsets = [(path, _picks(path, len(data.rows))) for path in paths]
    if not allow_other_data:
        check_same_data(_own(data) | {f"picks {path}": of_picks(path) for path in paths}, "allow_other_data=True")
    return subsets


def _embeddings_of(
    data: Data, model: str | None, file: _EmbeddingsFile | None, folder: Path, trust_remote_code: bool
) -> tuple[str, torch.Tensor]:
    """The name of the model or of the file, and the embeddings of all rows. folder: of the embeddings by a model."""
    if file:
        x = _checked_embeddings(file.path, len(data.rows), data.source)
        file.check_same_data(_own(data))
        return str(file.path), x
    if model is None:
        raise InputError("model: is missing, which embeds the data; or give their embeddings")
    resolved = resolve_model(model, trust_remote_code=trust_remote_code).resolve()
    space = EmbeddingSpace(model, resolved, trust_remote_code=trust_remote_code)
    digest = short_digest(space.provenance | {"data_sha256": data.sha256()})
    return model, embed_rows(space, data, np.arange(len(data.rows)), folder / f"embeddings-{digest}.npy")


def _own(data: Data) -> dict[str, dict[str, Any]]:
    return {data.source: {"data_sha256": data.sha256(), "data_rows": len(data.rows)}}


def _measure(
    x: torch.Tensor, subsets: list[Nested], draws: int, seed: int
) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """The keys that all subsets share, and for each of the subsets its entries: size, values and yardstick by size."""
    n = len(x)
    sizes = sorted({size for _, sizes in subsets for size in sizes})
    steps = sum(n + len(indices) for indices, _ in subsets) + draws * (n + sizes[-1])
    cells = partition(x, seed)
    with Progress("diversity", steps, "row") as bar:
        measured = [_by_size(x, indices, sorted(set(own)), cells, bar) for indices, own in subsets]
        drawn = [_by_size(x, _draw(n, sizes[-1], seed, draw), sizes, cells, bar) for draw in range(draws)]
    entries = [
        [{"size": size, "values": values[size], "random": _spread([one[size] for one in drawn])} for size in own]
        for values, (_, own) in zip(measured, subsets, strict=True)
    ]
    return {"random": draws, "seed": seed, "dimension": x.shape[1], "rows": n, "measures": describe(n)}, entries


def _by_size(
    x: torch.Tensor, indices: torch.Tensor, sizes: list[int], cells: np.ndarray, bar: Progress
) -> dict[int, Values]:
    return dict(zip(sizes, measure_nested(x, indices, sizes, cells, bar.update), strict=True))


def _draw(n: int, size: int, seed: int, number: int) -> torch.Tensor:
    """The indices of a random subset, int64 [size]; the smaller subsets of the draw are its beginnings."""
    return torch.from_numpy(np.random.default_rng([seed, YARDSTICK, number]).permutation(n)[:size])


def _spread(drawn: list[Values]) -> dict[str, dict[str, float | None]]:
    """Mean and range of each measure over the draws; None where no draw has a value."""
    spread = {}
    for name in MEASURES if drawn else ():
        values = [value for one in drawn if (value := one[name]) is not None]
        spread[name] = {
            "mean": float(np.mean(values)) if values else None,
            "low": min(values, default=None),
            "high": max(values, default=None),
        }
    return spread


def _check_draws(random: int, seed: int) -> None:
    if random < 0:
        raise InputError(f"random: expected how many random subsets, from 0, got {random}")
    if not 0 <= seed <= HIGHEST_SEED:
        raise InputError(f"seed: expected a number from 0 to {HIGHEST_SEED}, got {seed}")


def _picks(path: Path, n: int) -> torch.Tensor:
    """The indices in a file of picks, int64: at least one, each once, from 0 to n - 1."""
    indices = load_row_numbers(path, n)
    if not indices:
        raise InputError(f"{path}: holds no row; expected at least one to measure")
    seen = set()
    for row in indices:
        if not 0 <= row < n:
            raise InputError(f"{path}: expected rows from 0 to {n - 1}, got {shown(row, 40)}")
        if row in seen:
            raise InputError(f"{path}: row {row} is given more than once")
        seen.add(row)
    return torch.tensor(indices)


def _checked_embeddings(path: Path, n: int, of: str) -> torch.Tensor:
    """The n finite embeddings of the data of `of` in a .npy file; memory-mapped, unless stored in column order."""
    values = np.ascontiguousarray(load_embeddings(path))
    if len(values) != n:
        raise InputError(f"{path}: {len(values)} rows, but the data of {of} has {n}; expected one for every row")
    try:
        x = as_rows(values, str(path))
    except ValueError as error:
        raise InputError(str(error)) from error
    bad = first_not_finite(x)
    if bad >= 0:
        raise InputError(f"{path}: row {bad} holds a value that is not finite; embed it again, or leave it out")
    return x
