"""A judge model rates answers against reference answers; replies are stored as they come, and none is paid twice."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..._common.errors import InputError
from ...data.dataset import write_rows
from ..resumable_lines import check_folder, check_provenance
from .answer_pairs import Answer, pair_answers
from .connection import check_url
from .endpoint import Endpoint
from .judgements import judgement_line, read_judgements
from .prompt import PROMPT_SHA256, parse_scores, prompt
from .replies import Key, Reply, held_replies, partial_of, stored_replies
from .scheduler import Job, ask_all
from .score import Scores, scores_of

CHARACTERS_PER_TOKEN = 4  # of English text, for an estimate

Pair = tuple[Answer, Answer]  # the model's and the reference's


@dataclass(frozen=True)
class Judgements:
    """The outcome of `judge`."""

    output: Path
    questions: int
    complete_before: bool  # the output was complete, and nothing was asked
    tokens: tuple[int, int]  # of all prompts and of all replies, as the endpoint counts them
    unparsed: tuple[Key, ...]  # question and order of the replies without scores
    cut_off: int  # unparsed replies that ended at max_tokens
    scores: Scores | None
    unscored: str | None  # the reason if `scores` is None

    def __repr__(self) -> str:
        return f"Judgements({self.output}: {self.questions} questions, {self.scores or self.unscored})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": str(self.output),
            "questions": self.questions,
            "complete_before": self.complete_before,
            "prompt_tokens": self.tokens[0],
            "reply_tokens": self.tokens[1],
            "unparsed": [{"question": key, "order": order} for key, order in self.unparsed],
            "scores": self.scores and self.scores.to_dict(),
        }


@dataclass(frozen=True)
class Estimate:
    """What `judge` would ask, with dry_run."""

    questions: int
    calls_left: int
    prompt_tokens: float  # an estimate: characters / CHARACTERS_PER_TOKEN
    most_reply_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON values."""
        return asdict(self)


def judge(
    answers: str | Path,
    reference: str | Path,
    *,
    base_url: str,
    model: str,
    api_key_env: str,
    output: str | Path | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    max_tokens: int = 1024,
    dry_run: bool = False,
) -> Judgements | Estimate:
    """Ask a judge model about every question in both orders, and write a judgement file.

    A reply is on the disk (`<output>.partial`) before it counts; once all are there, the judgements are written at
    once, in the answers' order. The same call resumes after an interruption. A reply without scores is stored and
    counted.

    Args:
        answers: the model's answer file, as `generate` writes it.
        reference: the answer file of the other side.
        base_url: of an OpenAI-compatible endpoint, such as https://api.openai.com/v1.
        model: the judge's name at the endpoint.
        api_key_env: the name of the environment variable that holds the key.
        output: a name that ends in .jsonl; None: <answers>_vs_<reference>.jsonl beside `answers`.
        concurrency: requests at a time.
        timeout: seconds without a byte of a reply after which a request is tried again.
        retries: of one request, by the openai client, which waits longer each time.
        max_tokens: of a reply.
        dry_run: ask and write nothing, and return an Estimate.

    Returns:
        Judgements: the file, what it took, the replies without scores, and the scores; with dry_run an Estimate.

    Raises:
        InputError: an argument, a file or the key does not fit, nothing was asked; or as ask_all.
        RunError: as ask_all.
    """
    for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0), ("max_tokens", max_tokens, 1)):
        if value < least:
            raise InputError(f"{name}: expected {least} or more, got {value}")
    if not 0 < timeout < math.inf:
        raise InputError(f"timeout: expected more than 0 seconds, got {timeout:g}")
    check_url(base_url)
    answers, reference = Path(answers), Path(reference)
    pairs = pair_answers(answers, reference)
    output = _checked_output(output, answers, reference)
    provenance = _provenance(model, pairs)
    written = _written(output, provenance)
    jobs = _jobs(pairs, written | stored_replies(partial_of(output), provenance))
    if dry_run:
        prompt_tokens = sum(len(text) for _, text in jobs) / CHARACTERS_PER_TOKEN
        return Estimate(len(pairs), len(jobs), prompt_tokens, len(jobs) * max_tokens)
    if not _jobs(pairs, written):
        partial_of(output).unlink(missing_ok=True)  # a kill between writing the output and removing this leaves both
        return _outcome(output, pairs, written, complete_before=True)
    connect = partial(Endpoint, base_url, model, api_key_env, timeout, retries, max_tokens)
    endpoint = connect() if jobs else None  # before the partial file: a missing key leaves no file behind
    with held_replies(partial_of(output), provenance) as file:
        # Another process may have completed the output before this one locked the partial file.
        written = _written(output, provenance)
        jobs = _jobs(pairs, written | file.replies)
        if jobs:
            ask_all(endpoint or connect(), jobs, concurrency, file)
        replies, names = written | file.replies, _names(answers, reference)
        write_rows(output, (judgement_line(*pair, names, replies, provenance) for pair in pairs))
        file.remove()
    return _outcome(output, pairs, replies, complete_before=False)


def _checked_output(output: str | Path | None, answers: Path, reference: Path) -> Path:
    output = Path(output) if output else answers.with_name(f"{answers.stem}_vs_{reference.stem}.jsonl")
    if output.suffix != ".jsonl":
        raise InputError(f"output: expected a name that ends in .jsonl, got {output}")
    if output.resolve() in (answers.resolve(), reference.resolve()):
        raise InputError(f"output: {output} is one of the files to judge; name another")
    check_folder(output.parent)
    return output


def _provenance(model: str, pairs: list[Pair]) -> dict[str, Any]:
    """With the keys replies.PROVENANCE. The hashes are of the files' content, not of their layout."""
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
    """The assistants' names: <folder>/<file>, <run>/rd_<r> of `generate`, with more folders if these are the same."""
    one, other = (path.resolve().with_suffix("").parts for path in (answers, reference))
    parts = 2
    while one != other and one[-parts:] == other[-parts:]:
        parts += 1
    return str(Path(*one[-parts:])), str(Path(*other[-parts:]))


def _written(output: Path, provenance: dict[str, Any]) -> dict[Key, Reply]:
    """The replies in an existing output, whose lines may be fewer than the questions: a removed one is asked again."""
    replies = {}
    for judgement in read_judgements(output) if output.exists() else []:
        check_provenance(output, judgement.provenance, provenance)
        for order in (0, 1):
            replies[judgement.key, order] = judgement.reply(output, order)
    return replies


def _jobs(pairs: list[Pair], replies: dict[Key, Reply]) -> list[Job]:
    """The requests that have no reply yet, question by question."""
    return [
        ((answer.key, order), prompt(answer.question, first.text, second.text))
        for answer, reference in pairs
        for order, (first, second) in enumerate(((answer, reference), (reference, answer)))
        if (answer.key, order) not in replies
    ]


def _outcome(output: Path, pairs: list[Pair], replies: dict[Key, Reply], complete_before: bool) -> Judgements:
    scores = unscored = None
    try:
        scores = scores_of(output)
    except InputError as error:  # as when no reply holds scores: the judgements are written all the same
        unscored = str(error)
    prompt_tokens, reply_tokens = (sum(reply.tokens[i] for reply in replies.values() if reply.tokens) for i in (0, 1))
    keys = [(answer.key, order) for answer, _ in pairs for order in (0, 1)]
    unparsed = tuple(key for key in keys if parse_scores(replies[key].text) is None)
    cut_off = sum(replies[key].finish_reason == "length" for key in unparsed)
    return Judgements(
        output, len(pairs), complete_before, (prompt_tokens, reply_tokens), unparsed, cut_off, scores, unscored
    )
