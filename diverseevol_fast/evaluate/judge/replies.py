"""A judge's replies, and the partial file that holds them, a line each, until the judgements are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

from ..._common.errors import InputError
from ..._common.json_lines import parse_line
from ..._common.messages import shown
from ..._common.provenance import recorded
from ..resumable_lines import Lines, ResumableLines, read_lines

PROVENANCE = (  # keys of what a reply depends on, beside the question and the order
    "model",  # the judge
    "prompt_sha256",
    "answers_sha256",
    "reference_sha256",
    "questions",  # how many
)

MOST_TOKENS = 10**12  # of a prompt or a reply

Key = tuple[str, int]  # the question's, and the order: 0 shows the model's answer first, 1 the reference answer


@dataclass(frozen=True)
class Reply:
    """A judge's reply about one question in one order."""

    text: str
    endpoint: str  # the base URL
    served_by: str | None  # the model's name, as the endpoint reports it
    finish_reason: str | None  # "length": cut at max_tokens
    tokens: tuple[int, int] | None  # of the prompt and of the reply, as the endpoint counts them
    temperature: float | None  # of the request; None: not sent, because the judge does not accept one


def reply_of(location: str, value: Any) -> Reply:
    """A reply from its JSON object.

    Raises:
        InputError: `value` is not a reply's object; names `location`.
    """
    names = {field.name for field in fields(Reply)}
    if not isinstance(value, dict) or set(value) != names or not isinstance(value["text"], str):
        raise InputError(f"{location}: expected a reply with {', '.join(sorted(names))}")
    tokens = value["tokens"]
    if tokens is not None and not (isinstance(tokens, list) and len(tokens) == 2 and all(map(is_count, tokens))):
        raise InputError(f"{location}: tokens: expected two whole numbers or null, got {shown(tokens, 40)}")
    kinds = {"endpoint": str, "served_by": str | None, "finish_reason": str | None, "temperature": int | float | None}
    for name, kind in kinds.items():
        if not isinstance(value[name], kind):
            raise InputError(f"{location}: {name}: expected what judge writes, got {type(value[name]).__name__}")
    return Reply(**{**value, "tokens": tokens and tuple(tokens)})


def is_count(value: Any) -> TypeGuard[int]:
    """Whether `value` can be a number of tokens."""
    return type(value) is int and 0 <= value <= MOST_TOKENS


def partial_of(output: Path) -> Path:
    """The path of the partial file."""
    return output.with_name(output.name + ".partial")


def stored_replies(path: Path, provenance: dict[str, Any]) -> dict[Key, Reply]:
    """The replies in a partial file; none if there is no file. A last line that was cut off is skipped.

    Raises:
        InputError: the file has another provenance; a line is damaged.
    """
    return _replies(path, read_lines(path, provenance))


@contextmanager
def held_replies(path: Path, provenance: dict[str, Any]) -> Iterator["ReplyFile"]:
    """A partial file, created if there is none, and locked against other processes.

    Raises:
        InputError: as stored_replies; another process has it open.
    """
    with ResumableLines(path, provenance) as lines:
        yield ReplyFile(lines)


class ReplyFile:
    """An open partial file. `replies` includes those of earlier calls."""

    def __init__(self, lines: ResumableLines):
        self.path = lines.path
        self.replies = _replies(lines.path, lines.lines)
        self._lines = lines

    def add(self, key: Key, reply: Reply) -> None:
        """Write a reply; it is on the disk when this returns."""
        self._lines.append({"question_id": key[0], "order": key[1], "reply": asdict(reply)})
        self.replies[key] = reply

    def remove(self) -> None:
        """Delete the file, once the judgements are written."""
        self._lines.remove()


def _replies(path: Path, lines: Lines) -> dict[Key, Reply]:
    replies = {}
    for number, line in lines:
        location = f"{path}, line {number}"
        if not isinstance(line.get("question_id"), str) or line.get("order") not in (0, 1):
            raise InputError(f"{location}: expected a question_id and an order, 0 or 1; remove the line to ask again")
        replies[line["question_id"], line["order"]] = reply_of(location, line.get("reply"))
    return replies


def unfinished(path: Path, text: str) -> str | None:
    """A sentence about what a partial file lacks; None if `text` is not the content of one."""
    first, *lines = text.split("\n")
    if not first.startswith(('{"provenance": ', '{"made_from": ')):
        return None
    try:
        questions = recorded(parse_line(path, 1, first))["questions"]
        if not is_count(questions):
            raise ValueError("no number of questions")
        rows = (parse_line(path, number, line) for number, line in enumerate(lines[:-1], start=2) if line)
        keys = {(row["question_id"], row["order"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: a damaged file of unfinished judgements; remove it to begin again") from error
    both = sum((key, 1) in keys for key, order in keys if order == 0)
    return (
        f"{path}: unfinished judgements, {len(keys)} of {2 * questions} replies: of {questions - both} questions an "
        "order is missing; judge into it again, which goes on from there"
    )
