"""A judge's replies as they come: one synced JSON line each, in a file that a killed command goes on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..._common.errors import InputError
from ..._common.messages import shown
from ..._common.provenance import recorded
from ..._common.reading import parse_json
from ..resumable_lines import Lines, ResumableLines, read_lines

PROVENANCE = (  # what a reply depends on, beside the question and the order
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
    """What came back for one question in one order."""

    text: str  # as it came
    endpoint: str  # the base URL asked
    served_by: str | None  # the model that the endpoint says it was
    finish_reason: str | None  # "length": cut at --max-tokens
    tokens: tuple[int, int] | None  # of the prompt and of the reply, as the endpoint counts
    temperature: float | None  # as it was sent; None: the judge takes none, and its own holds


def reply_of(place: str, fields_of_it: Any) -> Reply:
    """A reply from its JSON object.

    Raises:
        InputError: it is none; `place` is what the error names.
    """
    names = {field.name for field in fields(Reply)}
    if not isinstance(fields_of_it, dict) or set(fields_of_it) != names or not isinstance(fields_of_it["text"], str):
        raise InputError(f"{place}: expected a reply with {', '.join(sorted(names))}")
    tokens = fields_of_it["tokens"]
    if tokens is not None and not (isinstance(tokens, list) and len(tokens) == 2 and all(map(is_count, tokens))):
        raise InputError(f"{place}: tokens: expected two whole numbers or null, got {shown(tokens, 40)}")
    for name, kinds in (("endpoint", str), ("served_by", str | None), ("finish_reason", str | None),
                        ("temperature", int | float | None)):  # fmt: skip
        if not isinstance(fields_of_it[name], kinds):
            raise InputError(f"{place}: {name}: expected what judge writes, got {type(fields_of_it[name]).__name__}")
    return Reply(**{**fields_of_it, "tokens": tokens and tuple(tokens)})


def is_count(value: Any) -> bool:
    """Whether it can be a number of tokens."""
    return type(value) is int and 0 <= value <= MOST_TOKENS


def partial_of(output: Path) -> Path:
    """Where the replies are kept until the judgements are written."""
    return output.with_name(output.name + ".partial")


def stored_replies(path: Path, provenance: dict[str, Any]) -> dict[Key, Reply]:
    """The replies in a partial file; none where there is no file. A last line that is cut off does not count.

    Raises:
        InputError: they were made from something else; a line is damaged.
    """
    return _replies(path, read_lines(path, provenance))


@contextmanager
def held_replies(path: Path, provenance: dict[str, Any]) -> Iterator["ReplyFile"]:
    """A partial file, made where there is none, that no other process writes to meanwhile.

    Raises:
        InputError: as stored_replies; another process holds it.
    """
    with ResumableLines(path, provenance) as lines:
        yield ReplyFile(lines)


class ReplyFile:
    """A partial file. `replies` are all that it holds, those of earlier commands too."""

    def __init__(self, lines: ResumableLines):
        self.path = lines.path
        self.replies = _replies(lines.path, lines.lines)
        self._lines = lines

    def add(self, key: Key, reply: Reply) -> None:
        """Keep a reply: it is on the disk when this returns."""
        self._lines.append({"question_id": key[0], "order": key[1], "reply": asdict(reply)})
        self.replies[key] = reply

    def remove(self) -> None:
        """Take the file away, once the judgements are written."""
        self._lines.remove()


def _replies(path: Path, lines: Lines) -> dict[Key, Reply]:
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
    if not first.startswith(('{"provenance": ', '{"made_from": ')):
        return None
    try:
        questions = recorded(parse_json(first, str(path), 1))["questions"]
        if not is_count(questions):
            raise ValueError("no number of questions")
        whole = (parse_json(line, str(path)) for line in filter(None, lines[:-1]))
        keys = {(line["question_id"], line["order"]) for line in whole}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: a damaged file of unfinished judgements; remove it to begin again") from error
    both = sum((key, 1) in keys for key, order in keys if order == 0)
    return (
        f"{path}: unfinished judgements, {len(keys)} of {2 * questions} replies: of {questions - both} questions an "
        "order is missing; give the judge command again, it goes on from there"
    )
