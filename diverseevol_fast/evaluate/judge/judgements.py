"""The format of judgement files, the public one with a few more keys: a line per question with both orders."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..._common.errors import InputError
from ..._common.json_lines import id_of, parse, read_text, text_of
from ..._common.messages import shown
from ..._common.provenance import recorded
from .answer_pairs import Answer
from .prompt import parse_scores
from .replies import PROVENANCE, Key, Reply, partial_of, reply_of, unfinished

NOT_PARSED = [-1.0, -1.0]  # what public judge scripts write for a reply without scores; ours is null
SMALLEST, LARGEST = 1e-6, 1e6  # of scores, whatever their sign
LONGEST = 1e12  # characters or words of an answer


@dataclass(frozen=True)
class Judgement:
    """One line: a question, judged in both orders."""

    question_id: str | int
    question: str
    model: str  # the names of the two assistants
    reference: str
    scores: tuple[tuple[float, float] | None, tuple[float, float] | None]  # (model's, reference's) by order; None: none
    responses: tuple[str, str]  # replies as they came, by order
    calls: tuple[Any, Any]  # how they came, by order; of ours
    provenance: dict[str, Any] | None  # what replies.PROVENANCE lists; of ours
    answer_length: dict[str, dict[str, float]] | None  # [model, reference][characters, words]; of ours

    def reply(self, path: Path, order: int) -> Reply:
        """The reply of a line of ours; `path` is what the error names.

        Raises:
            InputError: the line does not say how it came.
        """
        call = self.calls[order]
        return reply_of(
            f"{path}, question {shown(self.question_id)}, call_QUERY{order}",
            {**call, "text": self.responses[order]} if isinstance(call, dict) else call,
        )

    @property
    def key(self) -> str:
        """The id's text."""
        return str(self.question_id)

    @property
    def compared(self) -> str:
        """Who was judged, by whom where that is known."""
        judge = f", judged by {shown(self.provenance['model'], 40)}" if self.provenance else ""
        return f"{shown(self.model, 40)} against {shown(self.reference, 40)}{judge}"


def read_judgements(path: Path) -> list[Judgement]:
    """A judgement file, ours or a public one, every line checked.

    Order 0 (`..._QUERY0`) shows the model's answer first, order 1 the reference answer; `eval_QUERYq` is [the model's
    score, the reference's] in both, or null (in public files [-1, -1]) where the reply had no scores.

    Raises:
        InputError: no such file, one that is cut off or of unfinished judgements, a line without both orders, an id
            that comes twice, a score that is not a number, lines of more than one pair of assistants or judge.
    """
    partial = partial_of(path)
    kept = partial if partial.exists() and not path.exists() else path
    text = read_text(kept)
    sentence = unfinished(kept, text)
    if sentence:
        raise InputError(sentence)
    judgements = [_judgement(f"{path}, line {number}", row) for number, row in parse(path, text)]
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
    """The line of a question whose two replies are there; beside the public keys how it was made, and lengths.

    Args:
        answer, reference: of one question.
        names: of the model and of the reference.
        replies: by question and order.
        provenance: what replies.PROVENANCE lists.
    """
    line: dict[str, Any] = {"question_id": answer.question_id, "question_text": answer.question}
    for order in (0, 1):
        reply = replies[answer.key, order]
        shown = parse_scores(reply.text)
        line[f"assistant1_QUERY{order}"], line[f"assistant2_QUERY{order}"] = names if order == 0 else names[::-1]
        line[f"eval_QUERY{order}"] = shown and list(shown if order == 0 else shown[::-1])
        line[f"response_QUERY{order}"] = reply.text
        line[f"call_QUERY{order}"] = {name: value for name, value in asdict(reply).items() if name != "text"}
    line["answer_length"] = {"model": answer.length, "reference": reference.length}
    line["provenance"] = provenance
    return line


def _judgement(place: str, row: dict[str, Any]) -> Judgement:
    question_id = id_of(place, row, "question_id")
    place = f"{place} (question {shown(question_id, 40)})"
    for order in (0, 1):
        if f"eval_QUERY{order}" not in row:
            raise InputError(f"{place}: order {order} is missing (no eval_QUERY{order}); expected both orders")
    model, reference = (text_of(place, row, f"assistant{number}_QUERY0") for number in (1, 2))
    if (reference, model) != tuple(text_of(place, row, f"assistant{number}_QUERY1") for number in (1, 2)):
        raise InputError(
            f"{place}: expected the assistants of QUERY0, {shown(model, 40)} and {shown(reference, 40)}, swapped "
            "in QUERY1"
        )
    return Judgement(
        question_id,
        text_of(place, row, "question_text"),
        model,
        reference,
        (_scores(place, row, 0), _scores(place, row, 1)),
        (text_of(place, row, "response_QUERY0"), text_of(place, row, "response_QUERY1")),
        (row.get("call_QUERY0"), row.get("call_QUERY1")),
        _provenance(place, row),
        _answer_length(place, row),
    )


def _provenance(place: str, row: dict[str, Any]) -> dict[str, Any] | None:
    provenance = recorded(row)
    if provenance is not None and not _is_made_from(provenance):
        raise InputError(
            f"{place}: provenance: expected an object with {', '.join(PROVENANCE)}, got {shown(provenance, 60)}"
        )
    return provenance


def _is_made_from(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(PROVENANCE)
        and all(type(value[name]) is (int if name == "questions" else str) for name in PROVENANCE)
    )


def _answer_length(place: str, row: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    length = row.get("answer_length")
    if length is None:
        return None
    try:
        numbers = [length[side][unit] for side in ("model", "reference") for unit in ("characters", "words")]
    except (TypeError, KeyError):
        numbers = [None]
    if not all(_is_number(number) and 0 <= number <= LONGEST for number in numbers):
        raise InputError(
            f"{place}: answer_length: expected characters and words of the model and the reference, "
            f"got {shown(length, 60)}"
        )
    return length


def _scores(place: str, row: dict[str, Any], order: int) -> tuple[float, float] | None:
    pair = row[f"eval_QUERY{order}"]
    if pair is None or pair == NOT_PARSED:
        return None
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_score, pair)):
        raise InputError(
            f"{place}: eval_QUERY{order}: expected two numbers, [the model's score, the reference's], "
            f"got {shown(pair, 60)}"
        )
    return float(pair[0]), float(pair[1])


def _is_score(value: Any) -> bool:
    """A number of which neither sums nor their ratio overflow; one of -1 or 11 is a score, too."""
    return _is_number(value) and (value == 0 or SMALLEST <= abs(value) <= LARGEST)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
