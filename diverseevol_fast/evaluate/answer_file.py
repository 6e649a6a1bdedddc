"""The file of one model's answers to one question file: kept batch by batch, named when all are there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from .._common.errors import InputError
from .._common.files import read_record, write_json
from .._common.provenance import versions
from ..data.dataset import write_rows
from .questions import ID_KEYS, Question
from .resumable_lines import ResumableLines, check_provenance, provenance_of, read_lines

MOST_SECONDS = 1e9  # of a batch


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    text: str
    tokens: int  # generated, an end token included
    ended: bool  # by the model; otherwise it was cut at the most tokens that it may have


class GeneratedFile:
    """`<path>`: the questions' records in their order, each with its `answer`.

    Until all are there, `<path>.partial`: a line for each finished batch, on the disk before the next is begun.
    `<path>.json` keeps what the finished file was made from, and its metrics.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]):
        self.path, self.provenance = path, provenance
        self.record = path.with_name(path.name + ".json")
        self.answers: dict[int, Generated] = {}  # by the question's place
        self.seconds = 0.0
        self._partial = ResumableLines(path.with_name(path.name + ".partial"), provenance)

    def is_finished(self) -> bool:
        """Whether all answers are there.

        Raises:
            InputError: finished or begun, but made from something else; begun, and damaged.
        """
        if self.path.exists():
            if not self.record.exists():
                raise InputError(f"{self.path}: exists, and not from here; name another output or remove it")
            check_provenance(self.path, provenance_of(self.record.read_bytes()), self.provenance)
            self._partial.remove()  # a crash just before may have left it
            return True
        read_lines(self._partial.path, self.provenance)
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take up what is there of an unfinished file, and let no other process write to it.

        Whether it is finished is to be asked again inside: another process may have been faster.

        Raises:
            InputError: another process has it; it is made from something else, or damaged.
        """
        with self._partial:
            for number, line in self._partial.lines:
                self._take_up(line, number)
            yield

    def append(self, answers: dict[int, Generated], seconds: float) -> None:
        """Keep a batch's answers, by their questions' places, and how long they took: on the disk when this returns."""
        self._partial.append(
            {"answers": {place: astuple(answer) for place, answer in answers.items()}, "seconds": seconds}
        )
        self.answers |= answers
        self.seconds += seconds

    def finish(self, questions: list[Question]) -> dict[str, Any]:
        """Write the finished file; returns its metrics."""
        answers = [self.answers[place] for place in range(len(questions))]
        tokens = sum(answer.tokens for answer in answers)
        metrics = {
            "questions": len(questions),
            "tokens": tokens,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "empty": [q.id for q, answer in zip(questions, answers, strict=True) if not answer.text],
            "cut": [q.id for q, answer in zip(questions, answers, strict=True) if not answer.ended],
        }
        write_json(self.record, {"provenance": self.provenance, "metrics": metrics, "versions": versions()})
        write_rows(
            self.path,
            (_identified(q) | {"answer": answer.text} for q, answer in zip(questions, answers, strict=True)),
        )
        self._partial.remove()
        return metrics

    def metrics(self) -> dict[str, Any]:
        """What finish returned for the finished file."""
        return read_record(self.record, "metrics", older_names={"figures": "metrics"})["metrics"]

    def _take_up(self, batch: dict[str, Any], number: int) -> None:
        try:
            answers = {int(place): Generated(*fields) for place, fields in batch["answers"].items()}
            if not all(map(_is_whole, answers.values())):
                raise ValueError("other types than append writes")
            self.answers |= answers
            self.seconds += _seconds(batch["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self._partial.path}, line {number}: not a batch of answers; remove the file to begin again"
            ) from error


def _is_whole(answer: Generated) -> bool:
    return isinstance(answer.text, str) and type(answer.tokens) is int and type(answer.ended) is bool


def _seconds(value: Any) -> float:
    """
    Raises:
        ValueError: not a duration.
    """
    if type(value) not in (int, float) or not 0 < value < MOST_SECONDS:
        raise ValueError("not a duration")
    return value


def _identified(question: Question) -> dict[str, Any]:
    """The question's record, which says its id."""
    own = any(key in question.record for key in ID_KEYS)
    return question.record if own else {"id": question.id} | question.record
