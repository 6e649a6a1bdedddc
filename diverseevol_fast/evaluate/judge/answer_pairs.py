"""The answers that a judge compares: those in an answer file, and pairs of two files' answers to the same questions."""

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
    question: str  # with its input, if it has one
    text: str

    @property
    def key(self) -> str:
        """The id as a text: 1 and "1" are the same question."""
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
        whole_question = f"{question.text}\n\n{question.input}" if question.input else question.text
        answers[str(question.id)] = Answer(question.id, whole_question, text)
    return answers


def pair_answers(answers_file: Path, reference_file: Path) -> list[tuple[Answer, Answer]]:
    """Each question's answer and reference answer, in the order of `answers_file`.

    Raises:
        InputError: as read_answers and check_same_questions.
    """
    answers, reference = read_answers(answers_file), read_answers(reference_file)
    questions, others = ({key: one.question for key, one in side.items()} for side in (answers, reference))
    check_same_questions(answers_file, questions, reference_file, others)
    return [(answer, reference[key]) for key, answer in answers.items()]


def check_same_questions(one_file: Path, one: dict[str, str], other_file: Path, other: dict[str, str]) -> None:
    """
    Args:
        one, other: the texts of the files' questions by key.

    Raises:
        InputError: a key is missing in one file, or has two texts (white space at the ends aside); names it.
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
                f"'{shown(other[key], 40)}'; one id must mean one question"
            )
