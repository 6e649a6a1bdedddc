"""`diverseevol score`."""

import argparse
from pathlib import Path

from .options import add_number, keywords
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    score = commands.add_parser(
        "score",
        parents=[common],
        help="the Relative Score of judgements, offline",
        description="Relative Score = 100 x the model's summed scores / the reference's, both orders pooled.",
    )
    score.add_argument("judgements", type=Path, nargs="+", metavar="FILE", help="of judge, or public ones")
    score.add_argument("--answers", type=Path, nargs="+", metavar="FILE", help="for their length, one per file")
    score.add_argument("--reference", type=Path, nargs="+", metavar="FILE", help="the same; one may serve all files")
    add_number(score, "--resamples", 10_000, "N", "of the bootstrap")
    add_number(score, "--seed", 0, "S", "of the bootstrap")


def execute(args: argparse.Namespace) -> Result:
    """The scores; the record has their formula too."""
    from ..evaluate.judge.score import FORMULA, score, scores_table

    scores = score(**keywords(args))
    return Result(scores_table(scores), [{"formula": FORMULA, **each.to_dict()} for each in scores])
