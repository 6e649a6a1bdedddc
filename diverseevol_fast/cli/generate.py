"""`diverseevol generate`: its options, and what it says of the answers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._common.dtypes import DTYPES
from .options import add_number
from .result import Result

if TYPE_CHECKING:
    from ..evaluate.generate import Answers


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """The command's options."""
    generate = commands.add_parser(
        "generate", parents=[common], help="a run's models answer questions",
        description="Answers to evol_answer/<questions>_test/<run>/rd_<r>.jsonl; goes on where it was stopped.",
    )  # fmt: skip
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
        "--upstream-prompt", action="store_true",
        help="as the public implementation generates: the training prompt after a leading space",
    )  # fmt: skip
    generate.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def execute(args: argparse.Namespace) -> Result:
    """The files of answers, and how many are empty or cut."""
    from ..evaluate.generate import generate

    answers = generate(
        args.run, args.questions, rounds=args.rounds, output=args.output, max_new_tokens=args.max_new_tokens,
        max_tokens_per_batch=args.max_tokens_per_batch, temperature=args.temperature, top_p=args.top_p, seed=args.seed,
        dtype=args.dtype, upstream_prompt=args.upstream_prompt, trust_remote_code=args.trust_remote_code,
    )  # fmt: skip
    return Result("\n".join(map(_sentence, answers)), {"files": [each.to_dict() for each in answers]})


def _sentence(answers: "Answers") -> str:
    return f"{answers.file}: {'was finished before' if answers.finished_before else answers.summary}"
