"""`diverseevol judge`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._common.json_lines import listed
from .options import add_number, keywords
from .result import Result

if TYPE_CHECKING:
    from ..evaluate.judge.judge import Estimate, Judgements


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    judge = commands.add_parser(
        "judge",
        parents=[common],
        allow_abbrev=False,  # --api-key must not stand for --api-key-env: users would put the key itself after it
        help="a judge model rates answers against reference answers",
        description="Asks an OpenAI-compatible endpoint in both orders; each judgement is kept as it comes.",
    )
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
    """Write the judgements; the text has their scores, or with --dry-run the calls and tokens that they would take."""
    from ..evaluate.judge.judge import Estimate, judge

    result = judge(**keywords(args))
    text = _text_of_estimate(result, args.max_tokens) if isinstance(result, Estimate) else _text(result)
    return Result(text, result.to_dict())


def _text_of_estimate(estimate: "Estimate", max_tokens: int) -> str:
    return (
        f"{estimate.calls_left:,} calls left of {2 * estimate.questions:,} ({estimate.questions:,} questions, both "
        f"orders); about {estimate.prompt_tokens:,.0f} tokens of prompts (characters / 4, an estimate for English) and "
        f"at most {estimate.most_reply_tokens:,} of replies (--max-tokens {max_tokens} each); nothing was asked"
    )


def _text(result: "Judgements") -> str:
    """The output, its token counts, the replies without scores, and the table of scores or why there is none."""
    from ..evaluate.judge.score import scores_table

    sentence = (
        f"{result.output}: {2 * result.questions:,} judgements ({result.questions:,} questions, both orders)"
        f"{', complete before, nothing was asked' if result.complete_before else ''}; tokens, as the endpoint counts "
        f"them: {result.tokens[0]:,} of prompts, {result.tokens[1]:,} of replies"
    )
    if result.unparsed:
        cut = f", {result.cut_off} of them cut off (a larger --max-tokens helps)" if result.cut_off else ""
        sentence += (
            f"\n{len(result.unparsed)} replies hold no scores{cut}: "
            f"{listed([f'question {key} order {order}' for key, order in result.unparsed])}. "
            "To ask a question again, take its line out of the file and give the same command"
        )
    return f"{sentence}\n\n{scores_table([result.scores]) if result.scores else result.unscored}"
