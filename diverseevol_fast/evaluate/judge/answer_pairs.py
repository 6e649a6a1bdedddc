"""Answers to judge: the lines of an answer file, and those of two answer files question by question."""

from dataclasses import dataclass
from pathlib import Path

from ..._common.errors import InputError
from ..._common.json_lines import listed
from ..._common.messages import shown
from ..questions import read_questions


@dataclass(frozen=True)
class Answer:
    """One line of an answer file."""

    question_id: str | int
    question: str  # with its input, where it has one
    text: str

    @property
    def key(self) -> str:
        """The id's text: 1 and "1" are the same question."""
        return str(self.question_id)

    @property
    def length(self) -> dict[str, int]:
        """Of the answer: characters, and words between white space."""
        return {"characters": len(self.text), "words": len(self.text.split())}


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers of a file by their keys, in the file's order: a question file whose lines have an `answer` each.

    An answer may be empty.

    Raises:
        InputError: as read_questions; a line without an answer, or with one that is not a text.
    """
    answers = {}
    for question in read_questions(path):
        text = question.record.get("answer")
        if not isinstance(text, str):
            got = "none" if "answer" not in question.record else type(text).__name__
            raise InputError(f"{path}, question {shown(question.id)}: expected a text under 'answer', got {got}")
        asked = f"{question.text}\n\n{question.input}" if question.input else question.text
        answers[str(question.id)] = Answer(question.id, asked, text)
    return answers


def pair_answers(answers_file: Path, reference_file: Path) -> list[tuple[Answer, Answer]]:
    """Each question's answer and reference answer, in the order of `answers_file`.

    Raises:
        InputError: as read_answers; an id that one side lacks; two question texts under one id (white space at the ends
            aside).
    """
    answers, reference = read_answers(answers_file), read_answers(reference_file)
    check_same_questions(
        answers_file, {key: answer.question for key, answer in answers.items()},
        reference_file, {key: answer.question for key, answer in reference.items()},
    )  # fmt: skip
    return [(answer, reference[key]) for key, answer in answers.items()]


def check_same_questions(one_file: Path, one: dict[str, str], other_file: Path, other: dict[str, str]) -> None:
    """Both files ask the same: their questions' texts by key.

    Raises:
        InputError: a key that one side lacks, or two texts under one key (white space at the ends aside); names them.
    """
    for whole_file, whole, part_file, part in ((one_file, one, other_file, other), (other_file, other, one_file, one)):
        missing = [key for key in whole if key not in part]
        if missing:
            raise InputError(
                f"{part_file}: {len(missing)} of the {len(whole)} questions of {whole_file} are missing, "
                f"their ids: {listed(missing)}"
            )
    for key, text in one.items():
        if text.strip() != other[key].strip():
            raise InputError(
                f"{other_file}, question {shown(key)}: expected '{shown(text, 40)}' as in {one_file}, got "
                f"'{shown(other[key], 40)}'; "
                "one id must mean one question"
            )
