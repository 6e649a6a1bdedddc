"""A judge's replies as they come: one synced JSON line each, in a file that a killed command goes on from."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import InputError
from ...files import sync_folder
from ..json_lines import parse

MADE_FROM = {  # what a reply depends on, beside the question and the order: the key in files, and its name for people
    "model": "the judge",
    "prompt_sha256": "the prompt",
    "answers_sha256": "the answers",
    "reference_sha256": "the reference answers",
    "questions": "the number of questions",
}

Key = tuple[str, int]  # the question's, and the order: 0 shows the model's answer first, 1 the reference answer


@dataclass(frozen=True)
class Reply:
    """What came back for one question in one order."""

    text: str  # as it came
    endpoint: str  # the base URL asked
    served_by: str | None  # the model that the endpoint says it was
    finish_reason: str | None  # "length": cut at --max-tokens
    tokens: tuple[int, int] | None  # of the prompt and of the reply, as the endpoint counts


def reply_of(place: str, fields_of_it: Any) -> Reply:
    """A reply from its JSON object.

    Raises:
        InputError: it is none; `place` is what the error names.
    """
    names = {field.name for field in fields(Reply)}
    if not isinstance(fields_of_it, dict) or set(fields_of_it) != names or not isinstance(fields_of_it["text"], str):
        raise InputError(f"{place}: expected a reply with {', '.join(sorted(names))}")
    tokens = fields_of_it["tokens"]
    if tokens is not None and not (isinstance(tokens, list) and [type(count) for count in tokens] == [int, int]):
        raise InputError(f"{place}: tokens: expected two whole numbers or null, got {tokens!r:.40}")
    return Reply(**{**fields_of_it, "tokens": tokens and tuple(tokens)})


def partial_of(output: Path) -> Path:
    """Where the replies are kept until the judgements are written."""
    return output.with_name(output.name + ".partial")


def check_made_from(path: Path, before: Any, now: dict[str, Any]) -> None:
    """A file's replies were made from what is judged now.

    Raises:
        InputError: they were not; says what differs.
    """
    if not isinstance(before, dict) or set(before) != set(MADE_FROM):
        raise InputError(f"{path}: exists and was not written by this command; name another --output, or remove it")
    differing = [
        name if key.endswith("sha256") else f"{name} ({before[key]!r} there, {now[key]!r} now)"
        for key, name in MADE_FROM.items()
        if before[key] != now[key]
    ]
    if differing:
        raise InputError(
            f"{path}: holds judgements of something else, which differs in {', '.join(differing)}; "
            "name another --output, or remove it"
        )


def stored_replies(path: Path, made_from: dict[str, Any]) -> dict[Key, Reply]:
    """The replies in a partial file; none where there is no file. A last line that is cut off does not count.

    Raises:
        InputError: they were made from something else; a line is damaged.
    """
    return _read(path, path.read_bytes(), made_from) if path.exists() else {}


class ReplyFile:
    """A partial file, held by this process: `with ReplyFile(path, made_from) as file: file.add(key, reply)`.

    A reply is on the disk when add returns. `replies` are all, those of earlier commands too.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]):
        self.path, self.made_from = path, made_from
        self.replies: dict[Key, Reply] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ReplyFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()

    def add(self, key: Key, reply: Reply) -> None:
        """Keep a reply."""
        self._append({"question_id": key[0], "order": key[1], "reply": asdict(reply)})
        self.replies[key] = reply

    def _take_up(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{self.path}: another process is writing it") from error
        self._file.seek(0)
        content = self._file.read()
        self.replies = _read(self.path, content, self.made_from)
        whole = _whole_lines(content)
        self._file.truncate(len(whole))
        if not whole:
            self._append({"made_from": self.made_from})
            sync_folder(self.path.parent)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _whole_lines(content: bytes) -> bytes:
    """What a crash in the middle of a line leaves of use."""
    return content[: content.rfind(b"\n") + 1]


def _read(path: Path, content: bytes, made_from: dict[str, Any]) -> dict[Key, Reply]:
    whole = _whole_lines(content)
    if not whole:
        return {}
    (_, header), *lines = parse(path, whole.decode(errors="replace"))
    check_made_from(path, header.get("made_from"), made_from)
    replies = {}
    for number, line in lines:
        place = f"{path}, line {number}"
        if not isinstance(line.get("question_id"), str) or line.get("order") not in (0, 1):
            raise InputError(f"{place}: expected a question_id and an order, 0 or 1; remove the line to ask again")
        replies[line["question_id"], line["order"]] = reply_of(place, line.get("reply"))
    return replies


def unfinished(path: Path, text: str) -> str | None:
    """How far a partial file has come, as a sentence; None where `text` is not one."""
    first, *lines = text.split("\n")
    if not first.startswith('{"made_from": '):
        return None
    try:
        questions = json.loads(first)["made_from"]["questions"]
        keys = {(line["question_id"], line["order"]) for line in map(json.loads, filter(None, lines[:-1]))}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: a damaged file of unfinished judgements") from error
    both = sum((key, 1) in keys for key, order in keys if order == 0)
    return (
        f"{path}: unfinished judgements, {len(keys)} of {2 * questions} replies: of {questions - both} questions an "
        "order is missing; give the judge command again, it goes on from there"
    )
