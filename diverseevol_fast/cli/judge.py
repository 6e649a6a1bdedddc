"""`diverseevol judge`."""

import argparse
from pathlib import Path

from .options import add_number
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """The command's options."""
    judge = commands.add_parser(
        "judge", parents=[common], allow_abbrev=False,  # no --api-key: its value would be a key, not a name
        help="a judge model rates answers against reference answers",
        description="Asks an OpenAI-compatible endpoint in both orders; each judgement is kept as it comes.",
    )  # fmt: skip
    judge.add_argument("--answers", type=Path, required=True, metavar="FILE", help="as generate writes them")
    judge.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the other side's answers")
    judge.add_argument("--base-url", required=True, metavar="URL", help="such as https://api.openai.com/v1")
    judge.add_argument("--model", required=True, metavar="NAME", help="the judge")
    judge.add_argument("--api-key-env", required=True, metavar="VAR", help="the environment variable with the key")
    judge.add_argument("--output", type=Path, metavar="FILE.jsonl", help="(<answers>_vs_<reference>.jsonl beside A)")
    add_number(judge, "--concurrency", 8, "N", "requests under way")
    add_number(judge, "--timeout", 120.0, "SECONDS", "without a byte, after which a request is tried again")
    add_number(judge, "--retries", 6, "N", "of one request, with back-off")
    add_number(judge, "--max-tokens", 1024, "T", "of a reply")
    judge.add_argument("--dry-run", action="store_true", help="say how many calls and tokens it would take")


def execute(args: argparse.Namespace) -> Result:
    """Call the package's function and say what came of it."""
    from ..evaluate.judge.judge import judge_answers

    return judge_answers(args)
