"""`diverseevol diversity`."""

import argparse
from pathlib import Path

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
    diversity.add_argument("--trust-remote-code", action="store_true")


def execute(args: argparse.Namespace) -> Result:
    """Call the package's function and say what came of it."""
    from ..evaluate.diversity import measure_diversity

    return measure_diversity(args)
