"""`diverseevol diversity`: its options, and its tables."""

import argparse
from pathlib import Path
from typing import Any

from .._common.messages import printable
from .options import columns_of
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """The command's options."""
    diversity = commands.add_parser(
        "diversity", parents=[common], help="how diverse a run's pools, or subsets of a data set, are",
        description="Measures of diversity, round by round, with random subsets of the same size as the yardstick; "
        "in the embeddings of one fixed model. Without --model each run is measured by its own base model: runs of "
        "different ones do not compare.",
    )  # fmt: skip
    diversity.add_argument("source", nargs="+", metavar="RUN_OR_DATA", help="run folders, or one data set")
    diversity.add_argument("--picks", type=Path, nargs="+", metavar="FILE", help="subsets of the data set: picks.json")
    diversity.add_argument("--model", help="the fixed model (each run's base model)")
    diversity.add_argument("--embeddings", type=Path, metavar="X.npy", help="instead of a model: of every row")
    diversity.add_argument(
        "--allow-other-data", action="store_true", help="take --picks or --embeddings of another data set all the same"
    )
    diversity.add_argument("--random", type=int, default=5, metavar="R", help="random subsets as the yardstick (5)")
    diversity.add_argument("--seed", type=int, default=0, help="of the draws and of the k-means cells (0)")
    diversity.add_argument("--columns", metavar="MAP", help="the data set's other names: '{instruction: question}'")
    diversity.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def execute(args: argparse.Namespace) -> Result:
    """A table for each run, or for the data set."""
    from ..evaluate.diversity import diversity

    found = diversity(
        args.source, picks=args.picks, model=args.model, embeddings=args.embeddings, random=args.random,
        seed=args.seed, columns=columns_of(args.columns), allow_other_data=args.allow_other_data,
        trust_remote_code=args.trust_remote_code,
    )  # fmt: skip
    records = [one.to_dict() for one in found]
    return Result("\n\n".join(_table(record) for record in records), records)


def _table(record: dict[str, Any]) -> str:
    """A line per round or subset, and below it the random subsets' mean and range."""
    from ..evaluate.measures import MEASURES

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
