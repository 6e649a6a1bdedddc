"""The answers of a report: some questions of each test, and what the runs' models wrote, below each other."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from ..judge.answer_pairs import Answer
from .page import render

QUESTIONS = 10  # of each test
LONGEST = 1500  # characters of an answer that are shown


class Answers(NamedTuple):
    """One model's answers to one test."""

    test: str  # the name of the question file
    model: str  # the run's name in the report, and the round
    answers: dict[str, Answer]  # by question


def answers_section(files: Sequence[Answers]) -> Markup:
    """The first questions of each test, with every model's answer."""
    tests = {file.test: [other for other in files if other.test == file.test] for file in files}
    return render("answers", tests=[(test, _questions(models)) for test, models in tests.items()], longest=LONGEST)


def _questions(models: Sequence[Answers]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The questions that the first file begins with: each one's text, and (model, answer) of those that have it."""
    return [
        (answer.question, [(model.model, model.answers[key].text) for model in models if key in model.answers])
        for key, answer in list(models[0].answers.items())[:QUESTIONS]
    ]
