"""`diverseevol score`: the Relative Score of judgement files with its interval, and what else they say; offline."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._common.errors import InputError
from ..._common.json_lines import listed
from ..._common.messages import printable, shown
from ..._common.statistics import ratio_interval
from ...cli.result import Result
from .answer_pairs import Answer, check_same_questions, read_answers
from .judgements import Judgement, read_judgements

FORMULA = "100 x (sum of the model's scores) / (sum of the reference's scores), over all questions and both orders"
LOWEST, HIGHEST = 1.0, 10.0  # what the prompt asks for


@dataclass(frozen=True)
class Scores:
    """What a judgement file says. Shares are of the scored questions; a question without two parsed replies is not."""

    file: str
    model: str
    reference: str
    judge: str | None  # public files do not name it
    questions: int  # scored
    relative_score: float
    low: float | None  # 95% interval of the Relative Score; None for one question, or where a sum may be zero
    high: float | None
    resamples: int
    seed: int
    win: float  # the model's scores of both orders, summed, are the higher
    tie: float
    lose: float
    position_effect: dict[str, float]  # mean score of the answer shown first minus that shown second
    unparsed: dict[str, Any]  # how many replies, and of which questions
    out_of_range: dict[str, Any]  # how many scores below 1 or above 10 (they count as they are), and of which questions
    unfixed: dict[str, Any]  # how many replies are known to be made without temperature 0, and of which questions
    answer_length: dict[str, dict[str, float]] | None  # mean characters and words of the model and of the reference


def score_judgements(args: argparse.Namespace) -> Result:
    """`diverseevol score`: a table and its details.

    Raises:
        InputError: an option or a file does not fit; see scores_of.
    """
    if args.resamples < 1:
        raise InputError(f"--resamples: expected 1 or more, got {args.resamples}")
    if args.seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {args.seed}")
    several = len(args.judgements)
    answers, references = (_one_each(args, name, several) for name in ("answers", "reference"))
    scores = [
        scores_of(path, args.resamples, args.seed, answer_file, reference_file)
        for path, answer_file, reference_file in zip(args.judgements, answers, references, strict=True)
    ]
    return Result(scores_table(scores), [{"formula": FORMULA, **asdict(each)} for each in scores])


def scores_of(
    path: Path,
    resamples: int = 10_000,
    seed: int = 0,
    answers: Path | None = None,
    reference: Path | None = None,
) -> Scores:
    """The scores of one judgement file, ours or a public one.

    The Relative Score is FORMULA. Its interval is the 2.5th to the 97.5th percentile of the same figure over
    `resamples` bootstrap resamples of the questions; both orders of a question stay together.

    Args:
        path: a judgement file.
        resamples, seed: of the bootstrap.
        answers, reference: the files that were judged, for their lengths; our judgement files hold those.

    Raises:
        InputError: as read_judgements; questions are missing from a file of ours; no question has two parsed replies;
            the reference's scores sum to zero; `answers` or `reference` have other questions.
    """
    judgements = read_judgements(path)
    provenance = judgements[0].provenance or {}
    _check_complete(path, judgements, provenance.get("questions"))
    scored = [judgement for judgement in judgements if None not in judgement.scores]
    if not scored:
        raise InputError(f"{path}: no question has scores in both orders, so there is nothing to sum")
    values = np.array([judgement.scores for judgement in scored])  # [questions, orders, (model, reference)]
    sums = values.sum(axis=1)
    if sums[:, 1].sum() <= 0:
        raise InputError(
            f"{path}: the reference's scores sum to {sums[:, 1].sum():g}; a Relative Score needs more than 0"
        )
    low, high = _interval(sums, resamples, seed)
    difference = (sums[:, 0] - sums[:, 1]).round(6)  # 6.0 + 6.1 and 6.4 + 5.7 are one sum, but not as floats
    by_order = values[:, :, 0] - values[:, :, 1]  # model minus reference
    first_minus_second = by_order.mean(axis=0) * (1, -1)
    return Scores(
        file=str(path),
        model=judgements[0].model,
        reference=judgements[0].reference,
        judge=provenance.get("model"),
        questions=len(scored),
        relative_score=float(100 * sums[:, 0].sum() / sums[:, 1].sum()),
        low=low,
        high=high,
        resamples=resamples,
        seed=seed,
        win=float((difference > 0).mean()),
        tie=float((difference == 0).mean()),
        lose=float((difference < 0).mean()),
        position_effect={
            "model_first": float(first_minus_second[0]),
            "reference_first": float(first_minus_second[1]),
            "both": float(first_minus_second.mean()),
        },
        unparsed=_counted([(each, sum(pair is None for pair in each.scores)) for each in judgements]),
        out_of_range=_counted([(each, _out_of_range(each)) for each in judgements]),
        unfixed=_counted([(each, sum(map(_is_unfixed, each.calls))) for each in judgements]),
        answer_length=_answer_length(path, judgements, answers, reference),
    )


def scores_table(scores: list[Scores]) -> str:
    """A line per file, what the columns mean, and each file's details."""
    lines = [["judgements", "questions", "Relative Score", "95% interval", "win", "tie", "lose",
              "position", "unparsed", "out of range"]]  # fmt: skip
    for each in scores:
        lines.append(
            [
                printable(each.file), str(each.questions), f"{each.relative_score:.2f}", _interval_text(each),
                *(f"{share:.1%}" for share in (each.win, each.tie, each.lose)),
                f"{each.position_effect['both']:+.2f}", str(each.unparsed["count"]), str(each.out_of_range["count"]),
            ]
        )  # fmt: skip
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([*table, "", *_legend(scores[0]), *(line for each in scores for line in ("", *_details(each)))])


def _one_each(args: argparse.Namespace, name: str, several: int) -> list[Path | None]:
    """The files of an option, as many as there are judgement files; one reference may serve all."""
    files = getattr(args, name) or [None]
    if len(files) == 1 and (files == [None] or name == "reference"):
        return files * several
    if len(files) != several:
        raise InputError(f"--{name}: expected one file for each of the {several} judgement files, got {len(files)}")
    return files


def _check_complete(path: Path, judgements: list[Judgement], expected: int | None) -> None:
    if expected not in (None, len(judgements)):
        raise InputError(
            f"{path}: {len(judgements)} of {expected} questions; give the judge command again, it asks the missing ones"
        )


def _interval(sums: np.ndarray, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """Of the Relative Score. sums: [questions, (model, reference)] float64."""
    found = ratio_interval(sums[:, 0], sums[:, 1], resamples, seed) if len(sums) > 1 else None
    return (None, None) if found is None else (100 * found[0], 100 * found[1])


def _counted(counts: list[tuple[Judgement, int]]) -> dict[str, Any]:
    return {
        "count": sum(count for _, count in counts),
        "question_ids": [judgement.question_id for judgement, count in counts if count],
    }


def _out_of_range(judgement: Judgement) -> int:
    return sum(not LOWEST <= score <= HIGHEST for pair in judgement.scores if pair for score in pair)


def _is_unfixed(call: Any) -> bool:
    """Whether a reply's record says that it was made without temperature 0; public files have no record."""
    return isinstance(call, dict) and call.get("temperature", 0) != 0


def _answer_length(
    path: Path, judgements: list[Judgement], answers: Path | None, reference: Path | None
) -> dict[str, dict[str, float]] | None:
    """Mean lengths: of the files that were given, else as the judgement file has them."""
    means = {}
    for side, file in (("model", answers), ("reference", reference)):
        if file:
            lengths = [answer.length for answer in _judged(path, judgements, file).values()]
        else:
            lengths = [judgement.answer_length and judgement.answer_length[side] for judgement in judgements]
        if None not in lengths:
            means[side] = {unit: float(np.mean([each[unit] for each in lengths])) for unit in ("characters", "words")}
    return means or None


def _judged(path: Path, judgements: list[Judgement], file: Path) -> dict[str, Answer]:
    answers = read_answers(file)
    check_same_questions(
        path, {judgement.key: judgement.question for judgement in judgements},
        file, {key: answer.question for key, answer in answers.items()},
    )  # fmt: skip
    return answers


def _interval_text(scores: Scores) -> str:
    return "-" if scores.low is None else f"{scores.low:.2f} to {scores.high:.2f}"


def _legend(scores: Scores) -> list[str]:
    return [
        f"Relative Score = {FORMULA}.",
        f"95% interval: percentile bootstrap over questions, {scores.resamples:,} resamples, seed {scores.seed}.",
        "win / tie / lose: of the questions, the model's scores of both orders, summed, against the reference's.",
        "position: mean score of the answer shown first minus that shown second; 0: the order makes no difference.",
    ]


def _details(scores: Scores) -> list[str]:
    effect = scores.position_effect
    judge = f", judged by {shown(scores.judge)}" if scores.judge else ""
    lines = [
        f"{printable(scores.file)}: {shown(scores.model)} against {shown(scores.reference)}{judge}",
        f"  first minus second: {effect['model_first']:+.3f} with the model first, {effect['reference_first']:+.3f} "
        f"with the reference first (the answers' quality is in both), {effect['both']:+.3f} over both",
    ]
    if scores.answer_length:
        lengths = (
            f"{side} {length['characters']:,.0f} characters, {length['words']:,.1f} words"
            for side, length in scores.answer_length.items()
        )
        lines.append(f"  mean answer length: {'; '.join(lengths)}")
    if scores.unparsed["count"]:
        lines.append(
            f"  unparsed: {scores.unparsed['count']} replies; left out of the score, both orders: questions "
            + listed(scores.unparsed["question_ids"])
        )
    if scores.out_of_range["count"]:
        lines.append(
            f"  out of 1 to 10: {scores.out_of_range['count']} scores, counted as they are: questions "
            + listed(scores.out_of_range["question_ids"])
        )
    if scores.unfixed["count"]:
        lines.append(
            f"  without temperature 0: {scores.unfixed['count']} replies, which may differ from one time to the next: "
            f"questions {listed(scores.unfixed['question_ids'])}"
        )
    return lines
