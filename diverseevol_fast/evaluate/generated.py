"""The file of one model's answers to one question file: kept batch by batch, named when all are there."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..data import write_rows
from ..errors import InputError
from ..files import sync_folder, write_json
from ..preparation import versions
from .questions import ID_KEYS, Question


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    text: str
    tokens: int  # generated, an end token included
    ended: bool  # by the model; otherwise it was cut at the most tokens that it may have


class GeneratedFile:
    """`<path>`: the questions' records in their order, each with its `answer`.

    Until all are there, `<path>.partial`: a first line that says what the answers are made from, and a line for each
    finished batch, on the disk before the next is begun. `<path>.json` keeps what the finished file was made from, and
    its figures.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]):
        self.path, self.made_from = path, made_from
        self.partial = path.with_name(path.name + ".partial")
        self.record = path.with_name(path.name + ".json")
        self.answers: dict[int, Generated] = {}  # by the question's place
        self.seconds = 0.0
        self._file: BinaryIO | None = None

    def is_finished(self) -> bool:
        """Whether all answers are there.

        Raises:
            InputError: finished or begun, but made from something else.
        """
        if self.path.exists():
            if not self.record.exists():
                raise InputError(f"{self.path}: exists, and not from here; name another --output or remove it")
            self._compare(self.path, _made_from(self.record.read_bytes()))
            self.partial.unlink(missing_ok=True)  # a crash just before may have left it
            return True
        if self.partial.exists():
            begun = _lines(self.partial.read_bytes())
            if begun:
                self._compare(self.partial, _made_from(begun[0]))
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take up what is there of an unfinished file, and let no other process write to it.

        Raises:
            InputError: another process has it; it is damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.partial, "a+b") as self._file:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.path}: another process is writing it") from error
            self._file.seek(0)
            lines = _lines(self._file.read())
            self._file.truncate(sum(len(line) + 1 for line in lines))  # a line that a crash cut short is dropped
            if not lines:
                self._append({"made_from": self.made_from})
                sync_folder(self.path.parent)
            for number, line in enumerate(lines[1:], start=2):
                self._take_up(line, number)
            yield

    def append(self, answers: dict[int, Generated], seconds: float) -> None:
        """Keep a batch's answers, by their questions' places, and how long they took: on the disk when this returns."""
        self._append({"answers": {place: astuple(answer) for place, answer in answers.items()}, "seconds": seconds})
        self.answers |= answers
        self.seconds += seconds

    def finish(self, questions: list[Question]) -> dict[str, Any]:
        """Write the finished file; returns its figures."""
        answers = [self.answers[place] for place in range(len(questions))]
        tokens = sum(answer.tokens for answer in answers)
        figures = {
            "questions": len(questions),
            "tokens": tokens,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "empty": [q.id for q, answer in zip(questions, answers, strict=True) if not answer.text],
            "cut": [q.id for q, answer in zip(questions, answers, strict=True) if not answer.ended],
        }
        write_json(self.record, {"made_from": self.made_from, "figures": figures, "versions": versions()})
        write_rows(
            self.path,
            (_identified(q) | {"answer": answer.text} for q, answer in zip(questions, answers, strict=True)),
        )
        self.partial.unlink()
        return figures

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take_up(self, line: bytes, number: int) -> None:
        try:
            batch = json.loads(line)
            self.answers |= {int(place): Generated(*fields) for place, fields in batch["answers"].items()}
            self.seconds += batch["seconds"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.partial}, line {number}: not a batch of answers; remove the file to begin again"
            ) from error

    def _compare(self, path: Path, before: Any) -> None:
        if not isinstance(before, dict):
            raise InputError(f"{path}: does not say what it was made from; name another --output or remove it")
        differing = [
            f"{key}: there {_short(before.get(key))}, now {_short(self.made_from.get(key))}"
            for key in sorted(before.keys() | self.made_from.keys())
            if before.get(key) != self.made_from.get(key)
        ]
        if differing:
            raise InputError(
                f"{path}: answers of something else; name another --output or remove it. {'; '.join(differing)}"
            )


def _identified(question: Question) -> dict[str, Any]:
    """The question's record, which says its id."""
    own = any(key in question.record for key in ID_KEYS)
    return question.record if own else {"id": question.id} | question.record


def _lines(content: bytes) -> list[bytes]:
    """Whole lines."""
    return content.split(b"\n")[:-1]


def _made_from(record: bytes) -> Any:
    """None when it does not say."""
    try:
        return json.loads(record)["made_from"]
    except (ValueError, KeyError, TypeError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else text[:21] + "..."
