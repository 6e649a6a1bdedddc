"""Judgement files: a line for each question with the judge's replies in both orders; the public format, extended."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..._common.errors import InputError
from ..._common.json_lines import id_of, parse_lines, text_of
from ..._common.messages import shown
from ..._common.provenance import recorded
from ..._common.reading import read_text
from .answer_pairs import Answer
from .prompt import parse_scores
from .replies import PROVENANCE, Key, Reply, partial_of, reply_of, unfinished

NOT_PARSED = [-1.0, -1.0]  # public judge scripts write this for a reply without scores; this package writes null
SMALLEST, LARGEST = 1e-6, 1e6  # absolute values of scores
LONGEST = 1e12  # characters or words of an answer


@dataclass(frozen=True)
class Judgement:
    """One line: a question, judged in both orders.

    `calls`, `provenance` and `answer_length` are None where another program wrote the file.
    """

    question_id: str | int
    question: str
    model: str  # the names of the two assistants
    reference: str
    scores: tuple[tuple[float, float] | None, tuple[float, float] | None]  # (model's, reference's) by order, if parsed
    responses: tuple[str, str]  # texts of the replies by order
    calls: tuple[Any, Any]  # the other fields of the replies by order
    provenance: dict[str, Any] | None  # with the keys replies.PROVENANCE
    answer_length: dict[str, dict[str, float]] | None  # [model, reference][characters, words]

    def reply(self, path: Path, order: int) -> Reply:
        """The reply in one order. The error names `path`.

        Raises:
            InputError: the line does not hold all of a reply, as when another program wrote it.
        """
        call = self.calls[order]
        return reply_of(
            f"{path}, question {shown(self.question_id)}, call_QUERY{order}",
            {**call, "text": self.responses[order]} if isinstance(call, dict) else call,
        )

    @property
    def key(self) -> str:
        """The id as a text."""
        return str(self.question_id)

    @property
    def compared(self) -> str:
        """The names of the assistants and, if known, of the judge."""
        judge = f", judged by {shown(self.provenance['model'], 40)}" if self.provenance else ""
        return f"{shown(self.model, 40)} against {shown(self.reference, 40)}{judge}"


def read_judgements(path: Path) -> list[Judgement]:
    """Read and check a judgement file, of this package or a public one.

    Order 0 (`..._QUERY0`) shows the model's answer first, order 1 the reference answer; `eval_QUERYq` is [the model's
    score, the reference's] in both, or null (in public files [-1, -1]) if the reply had no scores.

    Raises:
        InputError: the file is missing, cut off or of unfinished judgements; a line lacks an order or a score is not a
            number; an id comes twice; the lines are of several pairs of assistants or judges.
    """
    partial = partial_of(path)
    existing = partial if partial.exists() and not path.exists() else path
    text = read_text(existing)
    sentence = unfinished(existing, text)
    if sentence:
        raise InputError(sentence)
    judgements = [_judgement(f"{path}, line {number}", row) for number, row in parse_lines(path, text)]
    seen: set[str] = set()
    first = judgements[0]
    for judgement in judgements:
        if judgement.key in seen:
            raise InputError(
                f"{path}: question {shown(repr(judgement.question_id))} comes twice; expected each id once"
            )
        seen.add(judgement.key)
        pair = judgement.model, judgement.reference
        if pair != (first.model, first.reference) or judgement.provenance != first.provenance:
            raise InputError(
                f"{path}, question {shown(judgement.question_id, 40)}: {judgement.compared}, but the first line "
                f"{first.compared}; expected judgements of one model by one judge in a file"
            )
    return judgements


def judgement_line(
    answer: Answer, reference: Answer, names: tuple[str, str], replies: dict[Key, Reply], provenance: dict[str, Any]
) -> dict[str, Any]:
    """The line of a question: the public keys, how the replies came, the answers' lengths and the provenance.

    Args:
        answer, reference: the two answers to the question.
        names: of the model and of the reference.
        replies: those of this question and perhaps others.
        provenance: with the keys replies.PROVENANCE.
    """
    line: dict[str, Any] = {"question_id": answer.question_id, "question_text": answer.question}
    for order in (0, 1):
        reply = replies[answer.key, order]
        scores = parse_scores(reply.text)
        line[f"assistant1_QUERY{order}"], line[f"assistant2_QUERY{order}"] = names if order == 0 else names[::-1]
        line[f"eval_QUERY{order}"] = scores and list(scores if order == 0 else scores[::-1])
        line[f"response_QUERY{order}"] = reply.text
        line[f"call_QUERY{order}"] = {name: value for name, value in asdict(reply).items() if name != "text"}
    line["answer_length"] = {"model": answer.length, "reference": reference.length}
    line["provenance"] = provenance
    return line


def _judgement(location: str, row: dict[str, Any]) -> Judgement:
    question_id = id_of(location, row, "question_id")
    location = f"{location} (question {shown(question_id, 40)})"
    for order in (0, 1):
        if f"eval_QUERY{order}" not in row:
            raise InputError(f"{location}: order {order} is missing (no eval_QUERY{order}); expected both orders")
    model, reference = (text_of(location, row, f"assistant{number}_QUERY0") for number in (1, 2))
    if (reference, model) != tuple(text_of(location, row, f"assistant{number}_QUERY1") for number in (1, 2)):
        raise InputError(
            f"{location}: expected the assistants of QUERY0, {shown(model, 40)} and {shown(reference, 40)}, swapped "
            "in QUERY1"
        )
    return Judgement(
        question_id,
        text_of(location, row, "question_text"),
        model,
        reference,
        (_scores(location, row, 0), _scores(location, row, 1)),
        (text_of(location, row, "response_QUERY0"), text_of(location, row, "response_QUERY1")),
        (row.get("call_QUERY0"), row.get("call_QUERY1")),
        _provenance(location, row),
        _answer_length(location, row),
    )


def _provenance(location: str, row: dict[str, Any]) -> dict[str, Any] | None:
    provenance = recorded(row)
    if provenance is not None and not _is_provenance(provenance):
        raise InputError(
            f"{location}: provenance: expected an object with {', '.join(PROVENANCE)}, got {shown(provenance, 60)}"
        )
    return provenance


def _is_provenance(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(PROVENANCE)
        and all(type(value[name]) is (int if name == "questions" else str) for name in PROVENANCE)
    )


def _answer_length(location: str, row: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    length = row.get("answer_length")
    if length is None:
        return None
    try:
        counts = [length[side][unit] for side in ("model", "reference") for unit in ("characters", "words")]
    except (TypeError, KeyError):
        counts = [None]
    if not all(_is_number(count) and 0 <= count <= LONGEST for count in counts):
        raise InputError(
            f"{location}: answer_length: expected characters and words of the model and the reference, "
            f"got {shown(length, 60)}"
        )
    return length


def _scores(location: str, row: dict[str, Any], order: int) -> tuple[float, float] | None:
    pair = row[f"eval_QUERY{order}"]
    if pair is None or pair == NOT_PARSED:
        return None
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_score, pair)):
        raise InputError(
            f"{location}: eval_QUERY{order}: expected two numbers, [the model's score, the reference's], "
            f"got {shown(pair, 60)}"
        )
    return float(pair[0]), float(pair[1])


def _is_score(value: Any) -> bool:
    """Whether sums of such numbers and their ratios are finite; scores out of 1 to 10 are allowed."""
    return _is_number(value) and (value == 0 or SMALLEST <= abs(value) <= LARGEST)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
