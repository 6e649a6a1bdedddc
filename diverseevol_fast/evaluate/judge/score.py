"""The Relative Score of judgement files with its interval, and their other statistics; offline."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._common.errors import InputError
from ..._common.json_lines import listed
from ..._common.messages import printable, shown
from ..._common.statistics import ratio_interval
from .answer_pairs import check_same_questions, read_answers
from .judgements import Judgement, read_judgements

FORMULA = "100 x (sum of the model's scores) / (sum of the reference's scores), over all questions and both orders"
LOWEST, HIGHEST = 1.0, 10.0  # scores that the prompt asks for

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Scores:
    """Statistics of a judgement file. A question counts as scored if both its replies were parsed."""

    file: str
    model: str
    reference: str
    judge: str | None  # public files do not name it
    questions: int  # scored
    relative_score: float
    low: float | None  # 95% interval of the Relative Score; None for one question, or if a sum may be zero
    high: float | None
    resamples: int
    seed: int
    win: float  # share of the scored questions whose sum over both orders is higher for the model
    tie: float
    lose: float
    position_effect: dict[str, float]  # mean score of the answer shown first minus that shown second
    unparsed: dict[str, Any]  # count of replies, question_ids
    out_of_range: dict[str, Any]  # count of scores below 1 or above 10 (not clipped), question_ids
    unfixed: dict[str, Any]  # count of replies known to be made without temperature 0, question_ids
    answer_length: dict[str, dict[str, float]] | None  # [model, reference][characters, words], means

    def __repr__(self) -> str:
        return f"Scores({self.file}: {self.relative_score:.2f} ({_interval_text(self)}), {self.questions} questions)"

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON values."""
        return asdict(self)


def score(
    judgements: Paths,
    *,
    answers: Paths | None = None,
    reference: Paths | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Scores]:
    """The scores of judgement files, in their order.

    Args:
        judgements: one file or several, of `judge` or public ones.
        answers: for the mean length of the answers, one file for each judgement file; those of `judge` hold it already.
        reference: the same of the reference answers; one file may serve all.
        resamples: how many the bootstrap draws.
        seed: of its draws.

    Returns:
        One Scores for each judgement file.

    Raises:
        InputError: an argument or a file does not fit; see scores_of.
    """
    if resamples < 1:
        raise InputError(f"resamples: expected 1 or more, got {resamples}")
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")
    paths = _paths(judgements)
    answer_files = _one_each("answers", answers, len(paths))
    reference_files = _one_each("reference", reference, len(paths))
    return [
        scores_of(path, resamples, seed, answer_file, reference_file)
        for path, answer_file, reference_file in zip(paths, answer_files, reference_files, strict=True)
    ]


def scores_of(
    path: Path,
    resamples: int = 10_000,
    seed: int = 0,
    answers: Path | None = None,
    reference: Path | None = None,
) -> Scores:
    """The scores of one judgement file, of `judge` or a public one.

    The Relative Score is FORMULA. Its interval is the 2.5th to the 97.5th percentile over `resamples` bootstrap
    resamples of the questions; both orders of a question stay together.

    Args:
        path: a judgement file.
        resamples, seed: of the bootstrap.
        answers, reference: the files that were judged, for their lengths; files of `judge` hold those already.

    Raises:
        InputError: as read_judgements; a file of `judge` lacks questions; no question has two parsed replies; the
            reference's scores sum to zero; `answers` or `reference` have other questions.
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
    difference = (sums[:, 0] - sums[:, 1]).round(6)  # in floats 6.0 + 6.1 is not 6.4 + 5.7
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
    """A table for people: a line for each file, then the meaning of the columns and the files' details."""
    heads = "judgements", "questions", "Relative Score", "95% interval", "win", "tie", "lose", "position"
    lines = [[*heads, "unparsed", "out of range"]]
    for each in scores:
        shares = (f"{share:.1%}" for share in (each.win, each.tie, each.lose))
        counts = (str(each.unparsed["count"]), str(each.out_of_range["count"]))
        name, questions, relative_score = printable(each.file), str(each.questions), f"{each.relative_score:.2f}"
        effect = f"{each.position_effect['both']:+.2f}"
        lines.append([name, questions, relative_score, _interval_text(each), *shares, effect, *counts])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([*table, "", *_legend(scores[0]), *(line for each in scores for line in ("", *_details(each)))])


def _paths(files: Paths) -> list[Path]:
    return [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]


def _one_each(name: str, files: Paths | None, count: int) -> Sequence[Path | None]:
    """The files of an argument, one for each of `count` judgement files."""
    if files is None:
        return [None] * count
    paths = _paths(files)
    if len(paths) == 1 and name == "reference":
        return paths * count
    if len(paths) != count:
        raise InputError(f"{name}: expected one file for each of the {count} judgement files, got {len(paths)}")
    return paths


def _check_complete(path: Path, judgements: list[Judgement], expected: int | None) -> None:
    if expected not in (None, len(judgements)):
        raise InputError(
            f"{path}: {len(judgements)} of {expected} questions; judge into it again, which asks only for the others"
        )


def _interval(sums: np.ndarray, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """The 95% interval of the Relative Score. sums: [questions, (model, reference)] float64."""
    interval = ratio_interval(sums[:, 0], sums[:, 1], resamples, seed) if len(sums) > 1 else None
    return (None, None) if interval is None else (100 * interval[0], 100 * interval[1])


def _counted(counts: list[tuple[Judgement, int]]) -> dict[str, Any]:
    return {
        "count": sum(count for _, count in counts),
        "question_ids": [judgement.question_id for judgement, count in counts if count],
    }


def _out_of_range(judgement: Judgement) -> int:
    return sum(not LOWEST <= score <= HIGHEST for pair in judgement.scores if pair for score in pair)


def _is_unfixed(call: Any) -> bool:
    """Whether a reply was made without temperature 0, as far as its record says; public files have no records."""
    return isinstance(call, dict) and call.get("temperature", 0) != 0


def _answer_length(
    path: Path, judgements: list[Judgement], answers: Path | None, reference: Path | None
) -> dict[str, dict[str, float]] | None:
    """Mean lengths: of the answers in `answers` and `reference`, or else of those in the judgement file."""
    means = {}
    for side, file in (("model", answers), ("reference", reference)):
        if file:
            lengths = _lengths_in(file, path, judgements)
        else:
            lengths = [judgement.answer_length[side] for judgement in judgements if judgement.answer_length]
        if len(lengths) == len(judgements):
            means[side] = {unit: float(np.mean([each[unit] for each in lengths])) for unit in ("characters", "words")}
    return means or None


def _lengths_in(file: Path, path: Path, judgements: list[Judgement]) -> list[dict[str, int]]:
    """Lengths of the answers in `file`, which must be to the questions of the judgements at `path`."""
    answers = read_answers(file)
    judged = {judgement.key: judgement.question for judgement in judgements}
    check_same_questions(path, judged, file, {key: answer.question for key, answer in answers.items()})
    return [answer.length for answer in answers.values()]


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
