"""Question files: JSON lines in the formats of three benchmarks, or with the keys of instruction data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._common.errors import InputError
from .._common.json_lines import id_of, keys_of, parse_lines, text_of
from .._common.messages import shown
from .._common.reading import read_text

TEXT_KEYS = ("instruction", "text", "prompt", "Instruction", "question")  # the first key that a row has counts
ID_KEYS = ("question_id", "id", "idx")
NAME_ENDINGS = ("_test_set", "_questions", "_test")


@dataclass(frozen=True)
class Question:
    """One line of a question file."""

    id: int | str  # the line number, from 1, if the row has no id
    text: str
    input: str  # context of the question, as in instruction data; often empty
    record: dict[str, Any]  # the row, unchanged


def read_questions(path: Path) -> list[Question]:
    """All questions of a file, in its order; blank lines are skipped.

    The question is the first of `instruction`, `text`, `prompt`, `Instruction` and `question` that a row has (Alpaca's
    rows have the whole training text as `text`), its id the first of `question_id`, `id` and `idx`.

    Raises:
        InputError: the file is missing, empty or not UTF-8; or a line is not a JSON object, has none of these keys, an
            empty question, or the id of an earlier line (1 and "1" are the same). Names the file and the line.
    """
    questions, line_of_id = [], {}
    for number, record in parse_lines(path, read_text(path)):
        question = _question(path, number, record)
        before = line_of_id.setdefault(str(question.id), number)
        if before != number:
            raise InputError(f"{path}, line {number}: its id {shown(repr(question.id))} is that of line {before}, too")
        questions.append(question)
    return questions


def benchmark_name(path: Path) -> str:
    """The benchmark's name: vicuna of vicuna_test_set.jsonl, my of my.jsonl or my_questions.jsonl."""
    for ending in NAME_ENDINGS:
        if path.stem.endswith(ending) and path.stem != ending:
            return path.stem.removesuffix(ending)
    return path.stem


def _question(path: Path, number: int, record: dict[str, Any]) -> Question:
    location = f"{path}, line {number}"
    key = next((key for key in TEXT_KEYS if key in record), None)
    if key is None:
        keys = keys_of(record) or "none"
        raise InputError(f"{location}: expected the question under one of {', '.join(TEXT_KEYS)}; got keys {keys}")
    text = text_of(location, record, key)
    if not text.strip():
        raise InputError(f"{location}: the question is empty ('{key}')")
    id_key = next((key for key in ID_KEYS if key in record), None)
    return Question(
        id_of(location, record, id_key) if id_key else number,
        text,
        text_of(location, record, "input") if record.get("input") else "",
        record,
    )
