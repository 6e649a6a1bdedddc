"""`diverseevol diversity`: its options and its tables."""

import argparse
from pathlib import Path
from typing import Any

from .._common.messages import printable
from .options import keywords
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    diversity = commands.add_parser(
        "diversity",
        parents=[common],
        help="how diverse a run's pools, or subsets of a data set, are",
        description="Measures of diversity, round by round, with random subsets of the same size as the yardstick; "
        "in the embeddings of one fixed model. Without --model each run is measured by its own base model: runs of "
        "different ones do not compare.",
    )
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

    records = [result.to_dict() for result in diversity(**keywords(args))]
    return Result("\n\n".join(_table(record) for record in records), records)


def _table(record: dict[str, Any]) -> str:
    """A line per round or subset, and below each the random subsets' mean, lowest and highest value."""
    from ..evaluate.measures import MEASURES

    label = "round" if "run" in record else "picks"
    lines = [[label, "size", "", *(measure.head for measure in MEASURES.values())]]
    for entry in record["rounds" if "run" in record else "subsets"]:
        lines.append([str(entry[label]), str(entry["size"]), "", *map(_number, entry["values"].values())])
        for name, key in (("random", "mean"), ("lowest", "low"), ("highest", "high")):
            if entry["random"]:
                lines.append(["", "", name, *(_number(spread[key]) for spread in entry["random"].values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lower = ", ".join(measure.head for measure in MEASURES.values() if not measure.higher_is_more_diverse)
    source = printable(record.get("run") or record["data"])
    title = (
        f"{source}: {record['rows']:,} rows in {record['dimension']} dimensions by {printable(record['model'])}; "
        f"{record['random']} random subsets of each size"
    )
    table = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]
    return "\n".join([title, *table, f"more diverse: higher; lower in {lower}. --json says what each number is."])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
