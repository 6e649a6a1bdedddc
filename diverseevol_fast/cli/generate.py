"""`diverseevol generate`: its options and its message."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._common.dtypes import DTYPES
from .options import add_number, keywords
from .result import Result

if TYPE_CHECKING:
    from ..evaluate.generate import Answers


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    generate = commands.add_parser(
        "generate",
        parents=[common],
        help="a run's models answer questions",
        description="Answers to evol_answer/<questions>_test/<run>/rd_<r>.jsonl; goes on where it was stopped.",
    )
    generate.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    generate.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="JSON lines")
    generate.add_argument("--rounds", type=int, nargs="+", metavar="R", help="these rounds' models (all)")
    generate.add_argument("--output", type=Path, default=Path("evol_answer"), metavar="FOLDER", help="(evol_answer)")
    add_number(generate, "--max-new-tokens", 512, "T", "of an answer")
    add_number(generate, "--max-tokens-per-batch", 8192, "T", "prompts and answers with padding")
    add_number(generate, "--temperature", 0.0, "X", "0 takes the likeliest token")
    add_number(generate, "--top-p", 1.0, "P", "with a temperature")
    add_number(generate, "--seed", 0, "S", "draws tokens when there is a temperature")
    generate.add_argument("--dtype", choices=DTYPES, help="of the weights (the run's)")
    generate.add_argument(
        "--upstream-prompt",
        action="store_true",
        help="as the public implementation generates: the training prompt after a leading space",
    )
    generate.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def execute(args: argparse.Namespace) -> Result:
    """Write the answers; the text is a sentence for each file."""
    from ..evaluate.generate import generate

    answers = generate(**keywords(args))
    return Result("\n".join(map(_sentence, answers)), {"files": [each.to_dict() for each in answers]})


def _sentence(answers: "Answers") -> str:
    return f"{answers.file}: {'was finished before' if answers.finished_before else answers.summary}"
