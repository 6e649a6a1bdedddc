"""`diverseevol judge`: a judge model rates answers against reference answers; nothing is asked twice."""

import argparse
import hashlib
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..._common.errors import InputError
from ..._common.json_lines import listed
from ...cli.result import Result
from ...data.dataset import write_rows
from ..resumable_lines import check_folder, check_provenance
from .answer_pairs import Answer, pair_answers
from .endpoint import Endpoint, check_url
from .judgements import judgement_line, read_judgements
from .prompt import PROMPT_SHA256, parse_scores, prompt
from .replies import Key, Reply, held_replies, partial_of, stored_replies
from .scheduler import Job, ask_all
from .score import scores_of, scores_table

log = logging.getLogger("diverseevol_fast")

CHARACTERS_PER_TOKEN = 4  # of English text, for an estimate

Pair = tuple[Answer, Answer]  # the model's and the reference's


def judge_answers(args: argparse.Namespace) -> Result:
    """`diverseevol judge`: writes a judgement file.

    Every question is asked about in both orders. A reply is on the disk (`<output>.partial`) before it counts; when all
    are there, the judgements are written at once, in the answers' order. A reply without scores is kept and counted.

    Raises:
        InputError: an option, a file or the key does not fit, nothing was asked; or as ask_all.
        RunError: as ask_all.
    """
    _check_numbers(args)
    check_url(args.base_url)
    pairs = pair_answers(args.answers, args.reference)
    output = _output(args)
    provenance = _provenance(args.model, pairs)
    written = _written(output, provenance)
    left = _left(pairs, written | stored_replies(partial_of(output), provenance))
    if args.dry_run:
        return _estimate(left, len(pairs), args.max_tokens)
    complete = not _left(pairs, written)
    if complete:
        partial_of(output).unlink(missing_ok=True)  # left by a kill just after the output got its name
    else:
        endpoint = _endpoint(args) if left else None
        written = _complete(args, pairs, output, provenance, endpoint)
    told, scores = _told(output, pairs, written, complete), _scores(output)
    return Result(f"{told.text}\n\n{scores.text}", told.record | scores.record)


def _complete(
    args: argparse.Namespace, pairs: list[Pair], output: Path, provenance: dict[str, Any], endpoint: Endpoint | None
) -> dict[Key, Reply]:
    """Ask what is left and write the output; returns all replies."""
    with held_replies(partial_of(output), provenance) as file:
        # Read once more: another process may have finished it before this one held the file.
        written = _written(output, provenance)
        left = _left(pairs, written | file.replies)
        if left:
            log.info(
                "judge: %d calls to %s at %s, %d at a time; a call is given up after %d tries, a try after %g s "
                "without a byte",
                len(left), args.model, args.base_url, args.concurrency, args.retries + 1, args.timeout,
            )  # fmt: skip
            ask_all(endpoint or _endpoint(args), left, args.concurrency, file)
        replies = written | file.replies
        names = _names(args.answers, args.reference)
        write_rows(output, (judgement_line(*pair, names, replies, provenance) for pair in pairs))
        file.remove()
    return replies


def _endpoint(args: argparse.Namespace) -> Endpoint:
    return Endpoint(args.base_url, args.model, args.api_key_env, args.timeout, args.retries, args.max_tokens)


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("concurrency", 1), ("retries", 0), ("max_tokens", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(args, name)}")
    if not 0 < args.timeout < math.inf:
        raise InputError(f"--timeout: expected more than 0 seconds, got {args.timeout:g}")


def _output(args: argparse.Namespace) -> Path:
    output = args.output or args.answers.with_name(f"{args.answers.stem}_vs_{args.reference.stem}.jsonl")
    if output.suffix != ".jsonl":
        raise InputError(f"--output: expected a name that ends in .jsonl, got {output}")
    if output.resolve() in (args.answers.resolve(), args.reference.resolve()):
        raise InputError(f"--output: {output} is one of the files to judge; name another")
    check_folder(output.parent)
    return output


def _provenance(model: str, pairs: list[Pair]) -> dict[str, Any]:
    """What replies.PROVENANCE lists: of the files' content, however it is laid out."""
    return {
        "model": model,
        "prompt_sha256": PROMPT_SHA256,
        "answers_sha256": _sha256([[answer.key, answer.question, answer.text] for answer, _ in pairs]),
        "reference_sha256": _sha256([[reference.key, reference.text] for _, reference in pairs]),
        "questions": len(pairs),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _names(answers: Path, reference: Path) -> tuple[str, str]:
    """The assistants' names: <run>/rd_<r> of answers that generate wrote, after the folders that tell them apart."""
    one, other = (path.resolve().with_suffix("").parts for path in (answers, reference))
    parts = 2
    while one != other and one[-parts:] == other[-parts:]:
        parts += 1
    return str(Path(*one[-parts:])), str(Path(*other[-parts:]))


def _written(output: Path, provenance: dict[str, Any]) -> dict[Key, Reply]:
    """The replies in a finished file; lines that were taken out of it are asked again."""
    replies = {}
    for judgement in read_judgements(output) if output.exists() else []:
        check_provenance(output, judgement.provenance, provenance)
        for order in (0, 1):
            replies[judgement.key, order] = judgement.reply(output, order)
    return replies


def _left(pairs: list[Pair], known: dict[Key, Reply]) -> list[Job]:
    """What is still to be asked, question by question."""
    return [
        ((answer.key, order), _prompt(answer, reference, order))
        for answer, reference in pairs
        for order in (0, 1)
        if (answer.key, order) not in known
    ]


def _prompt(answer: Answer, reference: Answer, order: int) -> str:
    first, second = (answer, reference) if order == 0 else (reference, answer)
    return prompt(answer.question, first.text, second.text)


def _estimate(left: list[Job], questions: int, max_tokens: int) -> Result:
    tokens = sum(len(text) for _, text in left) / CHARACTERS_PER_TOKEN
    return Result(
        f"{len(left):,} calls left of {2 * questions:,} ({questions:,} questions, both orders); about {tokens:,.0f} "
        f"tokens of prompts (characters / {CHARACTERS_PER_TOKEN}, an estimate for English) and at most "
        f"{len(left) * max_tokens:,} of replies (--max-tokens {max_tokens} each); nothing was asked",
        {"questions": questions, "calls_left": len(left), "prompt_tokens": tokens,
         "most_reply_tokens": len(left) * max_tokens},
    )  # fmt: skip


def _scores(output: Path) -> Result:
    """The table of scores, or why there are none: the judgements are written either way."""
    try:
        scores = scores_of(output)
    except InputError as error:
        return Result(str(error), {"scores": None})
    return Result(scores_table([scores]), {"scores": asdict(scores)})


def _told(output: Path, pairs: list[Pair], replies: dict[Key, Reply], complete_before: bool) -> Result:
    """Where the judgements are, what they took, and which replies hold no scores."""
    prompts, written = (sum(reply.tokens[side] for reply in replies.values() if reply.tokens) for side in (0, 1))
    sentence = (
        f"{output}: {2 * len(pairs):,} judgements ({len(pairs):,} questions, both orders)"
        f"{', complete before, nothing was asked' if complete_before else ''}; tokens, as the endpoint counts them: "
        f"{prompts:,} of prompts, {written:,} of replies"
    )
    keys = [(answer.key, order) for answer, _ in pairs for order in (0, 1)]
    unparsed = [key for key in keys if parse_scores(replies[key].text) is None]
    record = {
        "output": str(output), "questions": len(pairs), "complete_before": complete_before, "prompt_tokens": prompts,
        "reply_tokens": written, "unparsed": [{"question": key, "order": order} for key, order in unparsed],
    }  # fmt: skip
    if not unparsed:
        return Result(sentence, record)
    cut = sum(replies[key].finish_reason == "length" for key in unparsed)
    return Result(
        f"{sentence}\n{len(unparsed)} replies hold no scores"
        f"{f', {cut} of them cut off (a larger --max-tokens helps)' if cut else ''}: "
        f"{listed([f'question {key} order {order}' for key, order in unparsed])}. "
        "To ask a question again, take its line out of the file and give the same command",
        record,
    )
