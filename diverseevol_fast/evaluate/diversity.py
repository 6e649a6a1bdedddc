"""How diverse a run's pools, or subsets of a data set, are, beside random subsets of the same size."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from .._common.errors import InputError
from .._common.files import as_paths
from .._common.messages import shown
from .._common.progress import Progress
from .._common.provenance import check_same_data, of_embeddings, of_picks
from ..data.dataset import QUICKSTART, load_data
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
    keep_json,
    kept_record,
    short_digest,
)
from .measures import MEASURES, Values, describe, measure_nested, partition

log = logging.getLogger("diverseevol_fast")

YARDSTICK = 1 << 20  # a stream of its own: [seed, 0] is that of [seed], from which a run draws its initial pool
HIGHEST_SEED = (1 << 32) - 1  # scikit-learn's

Nested = tuple[torch.Tensor, list[int]]  # rows, and the sizes of the leading blocks to be measured, ascending


@dataclass(frozen=True)
class Diversity:
    """What diversity found out of a run's pools, or of subsets of a data set."""

    source: str  # the run's folder, or the data set
    record: dict[str, Any]  # as measure_run returns it; of a data set "subsets" stands for "rounds"

    def __repr__(self) -> str:
        return f"Diversity({self.source!r}, {len(self.entries)} {'rounds' if self.is_run else 'subsets'})"

    @property
    def is_run(self) -> bool:
        """Whether it is of a run's pools."""
        return "rounds" in self.record

    @property
    def entries(self) -> list[dict[str, Any]]:
        """For each round or subset its size, values and yardstick."""
        return self.record["rounds" if self.is_run else "subsets"]

    def table(self) -> list[dict[str, Any]]:
        """A row for each round or subset: its name, its size, and the value of each measure."""
        label = "round" if self.is_run else "picks"
        return [{label: entry[label], "size": entry["size"], **entry["values"]} for entry in self.entries]

    def to_dict(self) -> dict[str, Any]:
        """The record, and what it is of."""
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
    """Measure how diverse runs' pools, round by round, or subsets of one data set are, in one fixed model's embeddings.

    Args:
        source: a run's folder or a list of them; or the name of a data set.
        picks: of a data set: the files that say which rows of it are measured (a JSON list, a record of picks, .npy).
        model: the fixed model, a local folder or a hub name. None: each run's base model; runs of different ones do
            not compare.
        embeddings: instead of a model, a .npy file [N, D] of every row of the data set.
        random: how many random subsets of each size are the yardstick.
        seed: of these draws and of the k-means cells.
        columns: the data set's other names for a row's parts.
        allow_other_data: take picks or embeddings of another data set all the same.
        trust_remote_code: whether code that comes with the model runs.

    Returns:
        One Diversity for each run, or for the data set. measures.py says what each measure is.

    Raises:
        InputError: files that do not fit, or belong to another data set; numbers below 0.
        RunError: an embedding that is not finite.
    """
    if model is not None and embeddings is not None:
        raise InputError("diversity: expected a model or embeddings, got both")
    _check_draws(random, seed)
    sources = [str(one) for one in (source if isinstance(source, list | tuple) else [source])]
    for one in sources:
        if one != QUICKSTART and not Path(one).exists():
            raise InputError(f"{one}: no such file or folder; expected the folder of a run, or a data set")
    are_runs = [RunState(Path(one)).provenance_file.is_file() for one in sources]
    given = None if embeddings is None else _Given(Path(embeddings), allow_other_data)
    if all(are_runs):
        for name, value in (("picks", picks), ("columns", columns)):
            if value is not None:
                raise InputError(f"{name}: is of a data set; a run has its own, leave it out")
        return _of_runs(sources, model, given, random, seed, trust_remote_code)
    if any(are_runs) or len(sources) > 1:
        raise InputError(
            f"diversity: expected folders of runs, with state/run.json, or one data set, got {' '.join(sources)}"
        )
    if picks is None:
        raise InputError(f"{sources[0]}: no run's folder, so a data set; say with picks which rows of it are measured")
    return [
        _of_data(sources[0], columns, as_paths(picks), model, given, random, seed, allow_other_data, trust_remote_code)
    ]


@dataclass(frozen=True)
class _Given:
    """A file of embeddings that is measured as it is."""

    path: Path
    allow_other_data: bool

    def check_are_of(self, own: dict[str, dict[str, Any]]) -> None:
        """own: what is measured -> its provenance. Raises InputError where the file is known to be of other data."""
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
    centred: bool = False,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The diversity of each round's pool among the run's candidates, and of random subsets of the same size.

    Kept in a folder, and read from there when it was made from the same: measures.json for the run's own space,
    a name of its own for any other. A folder that cannot be written to is warned of, nothing is kept then.

    Args:
        run: a run with models.
        space: in which the candidates are embedded; None: the run's own (fixed_space).
        embeddings: instead, a .npy file [N, D] of every row of the run's data set.
        random: how many random subsets of each size; within a draw a smaller one begins a larger one.
        seed: of the draws and of the k-means partition.
        centred: the mean of all candidates is subtracted first, so that cosines are of what tells rows apart; distances
            stay as they are.
        folder: where the metrics and the embeddings are kept; None: RUN/diversity.

    Returns:
        {"model", "random", "seed", "dimension", "rows", "measures": {name: {"title", "higher_is_more_diverse",
        "what"}}, "rounds": [{"round", "size", "values": {name: number}, "random": {name: {"mean", "low", "high"}}}]}.
        A measure that needs two rows is None for one; "random" is empty without draws.

    Raises:
        InputError, RunError: as fixed_embeddings and the reading of `embeddings` do; a number or a seed below 0.
    """
    _check_draws(random, seed)
    pools = [run.pool(r) for r in range(run.rounds)]
    if embeddings is None:
        space = space or fixed_space(run)
        name, source, own = space.name, space.provenance, is_own(run, space)
    else:
        name, source, own = str(embeddings), {"embeddings_sha256": _file_sha256(embeddings)}, False
    if centred:
        source, own = source | {"centred": True}, False
    provenance = {
        "version": __version__, "data_sha256": run.state.manifest(0)["provenance"]["data_sha256"],
        "pools_sha256": hashlib.sha256(json.dumps(pools).encode()).hexdigest(), "random": random, "seed": seed,
        **source,
    }  # fmt: skip
    folder = folder or run.state.folder / "diversity"
    path = folder / ("measures.json" if own else f"measures-{short_digest(source)}.json")
    kept = kept_record(path)
    if kept.pop("provenance", None) == provenance:
        return kept | {"model": name}  # the same model may be spelled in another way
    if embeddings is None:
        x = fixed_embeddings(run, space, folder)
    else:
        x = _candidates_of(_checked_embeddings(embeddings, len(run.data.rows), str(run.state.folder)), run.candidates)
    if centred:
        x = x - x.mean(dim=0, dtype=torch.float64).float()
    positions = torch.from_numpy(np.searchsorted(run.candidates, pools[-1]))
    head, (rounds,) = _measure(x, [(positions, [len(pool) for pool in pools])], random, seed)
    record = {"model": name, **head, "rounds": [{"round": r, **values} for r, values in enumerate(rounds)]}
    keep_json(path, {"provenance": provenance, **record})
    return record


def _of_runs(
    sources: list[str], model: str | None, given: _Given | None, random: int, seed: int, trust_remote_code: bool
) -> list[Diversity]:
    runs = [read_run(Path(source)) for source in sources]
    if given:
        given.check_are_of({str(run.state.folder): run.state.manifest(0)["provenance"] for run in runs})
    spaces = [None] * len(runs) if given else _spaces(runs, model, trust_remote_code)
    path = given and given.path
    return [
        Diversity(source, measure_run(run, space=space, embeddings=path, random=random, seed=seed))
        for source, run, space in zip(sources, runs, spaces, strict=True)
    ]


def _spaces(runs: list[FinishedRun], model: str | None, trust_remote_code: bool) -> list[EmbeddingSpace]:
    """Of a model, one space for all runs, with the first one's settings; without, each run's own."""
    if model is not None:
        return [fixed_space(runs[0], model, trust_remote_code)] * len(runs)
    spaces = [fixed_space(run) for run in runs]
    if any(space.provenance != spaces[0].provenance for space in spaces):
        log.warning(
            "diversity: the runs have different base models, or embed with different settings (model_max_length, "
            "dtype, attn_implementation, trust_remote_code), so their metrics do not compare; name one model for all"
        )
    return spaces


def _of_data(
    source: str, columns: Mapping[str, str] | None, picks: list[Path], model: str | None, given: _Given | None,
    random: int, seed: int, allow_other_data: bool, trust_remote_code: bool,
) -> Diversity:  # fmt: skip
    """As measure_run, of subsets: "subsets" has for each file of picks what "rounds" has for a round."""
    data, _ = load_data(source, columns)
    n = len(data.rows)
    subsets = [(_picks(path, n), path) for path in picks]
    own = {source: {"data_sha256": data.sha256(), "data_rows": n}}
    if not allow_other_data:
        check_same_data(own | {f"picks {path}": of_picks(path) for path in picks}, "allow_other_data=True")
    if given:
        x, name = _checked_embeddings(given.path, n, source), str(given.path)
        given.check_are_of(own)
    elif model is None:
        raise InputError("model: is missing, which embeds the data; or give their embeddings")
    else:
        name = model
        folder = resolve_model(model, trust_remote_code=trust_remote_code).resolve()
        space = EmbeddingSpace(model, folder, trust_remote_code=trust_remote_code)
        digest = short_digest(space.provenance | {"data_sha256": data.sha256()})
        x = embed_rows(space, data, np.arange(n), picks[0].parent / "diversity" / f"embeddings-{digest}.npy")
    head, measured = _measure(x, [(rows, [len(rows)]) for rows, _ in subsets], random, seed)
    entries = [{"picks": str(path), **only} for (_, path), (only,) in zip(subsets, measured, strict=True)]
    return Diversity(source, {"model": name, **head, "subsets": entries})


def _measure(
    x: torch.Tensor, subsets: list[Nested], draws: int, seed: int
) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """What is common to all, and for each of the subsets a list: size, values and yardstick of each of its sizes."""
    n = len(x)
    sizes = sorted({size for _, sizes in subsets for size in sizes})
    steps = sum(n + len(rows) for rows, _ in subsets) + draws * (n + sizes[-1])
    cells = partition(x, seed)
    with Progress("diversity", steps, "row") as bar:
        measured = [_by_size(x, rows, sorted(set(own)), cells, bar) for rows, own in subsets]
        drawn = [_by_size(x, _draw(n, sizes[-1], seed, draw), sizes, cells, bar) for draw in range(draws)]
    entries = [
        [{"size": size, "values": values[size], "random": _spread([one[size] for one in drawn])} for size in own]
        for values, (_, own) in zip(measured, subsets, strict=True)
    ]
    return {"random": draws, "seed": seed, "dimension": x.shape[1], "rows": n, "measures": describe(n)}, entries


def _by_size(
    x: torch.Tensor, rows: torch.Tensor, sizes: list[int], cells: np.ndarray, bar: Progress
) -> dict[int, Values]:
    return dict(zip(sizes, measure_nested(x, rows, sizes, cells, bar.update), strict=True))


def _draw(n: int, size: int, seed: int, number: int) -> torch.Tensor:
    """A random subset, int64 [size]: its leading blocks are the smaller ones of the same draw."""
    return torch.from_numpy(np.random.default_rng([seed, YARDSTICK, number]).permutation(n)[:size])


def _spread(drawn: list[Values]) -> dict[str, dict[str, float | None]]:
    """Mean and range of each measure over the draws; none where it is not to be had."""
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
    """The rows in a picks file: different ones, at least one."""
    numbers = load_row_numbers(path, n)
    if not numbers:
        raise InputError(f"{path}: holds no row; expected at least one to measure")
    seen = set()
    for row in numbers:
        if not 0 <= row < n:
            raise InputError(f"{path}: expected rows from 0 to {n - 1}, got {shown(row, 40)}")
        if row in seen:
            raise InputError(f"{path}: row {row} is given more than once")
        seen.add(row)
    return torch.tensor(numbers)


def _checked_embeddings(path: Path, n: int, of: str) -> torch.Tensor:
    """A .npy file's rows: as many as `of` has, all finite. Memory-mapped, unless they are there column by column."""
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


def _candidates_of(x: torch.Tensor, candidates: np.ndarray) -> torch.Tensor:
    return x if len(candidates) == len(x) else x[torch.from_numpy(candidates)]


def _file_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: not readable: {error.strerror}") from error
