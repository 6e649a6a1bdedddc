"""The file of one model's answers to one question file, saved batch by batch and given its name when complete."""

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

MOST_SECONDS = 1e9  # a batch that claims to have taken longer is damaged


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer of a model."""

    text: str
    tokens: int  # generated ones, an end token included
    ended: bool  # whether the model ended it; otherwise it was cut at the maximum number of tokens


class AnswerFile:
    """`<path>`: the questions' records in their order, each with its `answer`.

    Until the answers are complete, `<path>.partial` holds a line for each finished batch, which is on the disk before
    the next batch begins. `<path>.json` holds the finished file's provenance and metrics.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]):
        self.path, self.provenance = path, provenance
        self.record = path.with_name(path.name + ".json")
        self.answers: dict[int, GeneratedAnswer] = {}  # by the question's index
        self.seconds = 0.0
        self._partial = ResumableLines(path.with_name(path.name + ".partial"), provenance)

    def is_finished(self) -> bool:
        """Whether the file is complete.

        Raises:
            InputError: the file, or the partial one, has another provenance; the partial one is damaged.
        """
        if self.path.exists():
            if not self.record.exists():
                raise InputError(f"{self.path}: exists, and not from here; name another output or remove it")
            check_provenance(self.path, provenance_of(self.record.read_bytes()), self.provenance)
            self._partial.remove()  # finish removes it last, so a crash may have kept it
            return True
        read_lines(self._partial.path, self.provenance)
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the partial file against other processes, and load its answers.

        The caller checks is_finished again inside: another process may have finished the file before the lock.

        Raises:
            InputError: another process has the lock; the partial file has another provenance, or is damaged.
        """
        with self._partial:
            for number, line in self._partial.lines:
                self._load_batch(line, number)
            yield

    def append(self, answers: dict[int, GeneratedAnswer], seconds: float) -> None:
        """Save a batch's answers, by their questions' indices, and its duration; they are on the disk on return."""
        batch = {index: astuple(answer) for index, answer in answers.items()}
        self._partial.append({"answers": batch, "seconds": seconds})
        self.answers |= answers
        self.seconds += seconds

    def finish(self, questions: list[Question]) -> dict[str, Any]:
        """Write the finished file; returns its metrics."""
        answers = [self.answers[index] for index in range(len(questions))]
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
        rows = (_identified(q) | {"answer": answer.text} for q, answer in zip(questions, answers, strict=True))
        write_rows(self.path, rows)
        self._partial.remove()
        return metrics

    def metrics(self) -> dict[str, Any]:
        """The metrics that finish returned, of a finished file."""
        return read_record(self.record, "metrics", older_names={"figures": "metrics"})["metrics"]

    def _load_batch(self, batch: dict[str, Any], number: int) -> None:
        """Take over the answers of line `number`."""
        try:
            answers = {int(index): GeneratedAnswer(*fields) for index, fields in batch["answers"].items()}
            if not all(map(_is_whole, answers.values())):
                raise ValueError("other types than append writes")
            self.answers |= answers
            self.seconds += _seconds(batch["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self._partial.path}, line {number}: not a batch of answers; remove the file to begin again"
            ) from error


def _is_whole(answer: GeneratedAnswer) -> bool:
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
    """The question's record, with the id where it has none."""
    own = any(key in question.record for key in ID_KEYS)
    return question.record if own else {"id": question.id} | question.record
