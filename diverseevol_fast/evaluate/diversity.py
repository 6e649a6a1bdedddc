"""`diverseevol diversity`: how diverse a run's pools, or subsets of a data set, are, beside random subsets."""

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from .._common.errors import InputError
from .._common.messages import printable, shown
from .._common.progress import Progress
from .._common.provenance import check_same_data, of_embeddings, of_picks
from ..cli.result import Result
from ..data.dataset import QUICKSTART, load_data
from ..data.input_files import columns_of, load_embeddings, load_row_numbers
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


def measure_diversity(args: argparse.Namespace) -> Result:
    """`diverseevol diversity`: measures runs' pools, or subsets of a data set.

    Raises:
        InputError, RunError: as the loading and the embedding do.
    """
    if args.model is not None and args.embeddings is not None:
        raise InputError("diversity: expected --model or --embeddings, got both")
    _check_draws(args.random, args.seed)
    for source in args.source:
        if source != QUICKSTART and not Path(source).exists():
            raise InputError(f"{source}: no such file or folder; expected the folder of a run, or a data set")
    are_runs = [RunState(Path(source)).provenance_file.is_file() for source in args.source]
    records = _of_runs(args) if all(are_runs) else _of_data(args, any(are_runs))
    return Result("\n\n".join(_table(record) for record in records), records)


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


def _of_runs(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.picks is not None:
        raise InputError("--picks: says which rows of a data set are measured; a run's pools are its own, leave it out")
    if args.columns is not None:
        raise InputError("--columns: names the columns of a data set; a run's config has its own, leave it out")
    runs = [read_run(Path(source)) for source in args.source]
    if args.embeddings is not None:
        _check_embeddings_are_of({str(run.state.folder): run.state.manifest(0)["provenance"] for run in runs}, args)
    spaces = [None] * len(runs) if args.embeddings else _spaces(runs, args.model, args.trust_remote_code)
    return [
        {"run": source, **measure_run(
            run, space=space, embeddings=args.embeddings, random=args.random, seed=args.seed,
        )}
        for source, run, space in zip(args.source, runs, spaces, strict=True)
    ]  # fmt: skip


def _spaces(runs: list[FinishedRun], model: str | None, trust_remote_code: bool) -> list[EmbeddingSpace]:
    """Of a model, one space for all runs, with the first one's settings; without, each run's own."""
    if model is not None:
        return [fixed_space(runs[0], model, trust_remote_code)] * len(runs)
    spaces = [fixed_space(run) for run in runs]
    if any(space.provenance != spaces[0].provenance for space in spaces):
        log.warning(
            "diversity: the runs have different base models, or embed with different settings (model_max_length, "
            "dtype, attn_implementation, trust_remote_code), so their metrics do not compare; give --model"
        )
    return spaces


def _of_data(args: argparse.Namespace, has_run: bool) -> list[dict[str, Any]]:
    """As measure_run, of subsets: "subsets" has for each picks file what "rounds" has for a round."""
    if has_run or len(args.source) > 1:
        raise InputError(
            f"diversity: expected folders of runs, with state/run.json, or one data set, got {' '.join(args.source)}"
        )
    source = args.source[0]
    if args.picks is None:
        raise InputError(f"{source}: no run's folder, so a data set; say with --picks which rows of it are measured")
    if args.model is None and args.embeddings is None:
        raise InputError("diversity: --model is missing, which embeds the data; or give their --embeddings")
    data, _ = load_data(source, columns_of(args.columns))
    n = len(data.rows)
    subsets = [(_picks(path, n), path) for path in args.picks]
    own = {source: {"data_sha256": data.sha256(), "data_rows": n}}
    if not args.allow_other_data:
        check_same_data(own | {f"--picks {path}": of_picks(path) for path in args.picks}, "--allow-other-data")
    if args.embeddings is None:
        folder = resolve_model(args.model, trust_remote_code=args.trust_remote_code).resolve()
        space = EmbeddingSpace(args.model, folder, trust_remote_code=args.trust_remote_code)
        digest = short_digest(space.provenance | {"data_sha256": data.sha256()})
        x = embed_rows(space, data, np.arange(n), args.picks[0].parent / "diversity" / f"embeddings-{digest}.npy")
    else:
        x = _checked_embeddings(args.embeddings, n, source)
        _check_embeddings_are_of(own, args)
    head, measured = _measure(x, [(rows, [len(rows)]) for rows, _ in subsets], args.random, args.seed)
    entries = [{"picks": str(path), **only} for (_, path), (only,) in zip(subsets, measured, strict=True)]
    return [{"data": source, "model": args.model or str(args.embeddings), **head, "subsets": entries}]


def _check_embeddings_are_of(own: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """own: what is measured -> its provenance. Raises InputError where --embeddings are known to be of other data."""
    if not args.allow_other_data:
        provenance = of_embeddings(args.embeddings, len(load_embeddings(args.embeddings)))
        check_same_data(own | {f"--embeddings {args.embeddings}": provenance}, "--allow-other-data")


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
        values = [one[name] for one in drawn]
        known = values[0] is not None
        spread[name] = {
            "mean": float(np.mean(values)) if known else None,
            "low": min(values) if known else None,
            "high": max(values) if known else None,
        }
    return spread


def _check_draws(random: int, seed: int) -> None:
    if random < 0:
        raise InputError(f"--random: expected how many random subsets, from 0, got {random}")
    if not 0 <= seed <= HIGHEST_SEED:
        raise InputError(f"--seed: expected a number from 0 to {HIGHEST_SEED}, got {seed}")


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


def _table(record: dict[str, Any]) -> str:
    """A line per round or subset, and below it the random subsets' mean and range."""
    label = "round" if "run" in record else "picks"
    lines = [[label, "size", "", *(measure.head for measure in MEASURES.values())]]
    for entry in record["rounds" if "run" in record else "subsets"]:
        lines.append([str(entry[label]), str(entry["size"]), "", *map(_number, entry["values"].values())])
        for name, key in (("random", "mean"), ("lowest", "low"), ("highest", "high")):
            if entry["random"]:
                lines.append(["", "", name, *(_number(spread[key]) for spread in entry["random"].values())])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    lower = ", ".join(measure.head for measure in MEASURES.values() if not measure.higher_is_more_diverse)
    source = printable(record.get("run") or record["data"])
    return "\n".join([
        f"{source}: {record['rows']:,} rows in {record['dimension']} dimensions by {printable(record['model'])}; "
        f"{record['random']} random subsets of each size",
        *("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines),
        f"more diverse: higher; lower in {lower}. --json says what each number is.",
    ])  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
