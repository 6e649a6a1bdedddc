"""JSON lines: read whole, each object with the number of its line, so that errors can name it."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError
from .messages import shown
from .reading import check_file, check_plain, parse_json


def read_text(path: Path) -> str:
    """A file's text, without the byte order mark that some editors begin it with.

    Raises:
        InputError: there is no such file, it is no regular one, or it is not UTF-8.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def parse(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of `text`; blank lines are passed over. `path` is what errors name.

    Raises:
        InputError: a line that is not a JSON object (NaN and Infinity are no JSON), or that could not be written as one
            again (numbers that are not finite, too many levels, half a surrogate pair); a last line that is cut off, no
            line at all.
    """
    rows = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, str(path), number)
        except InputError as error:
            if number == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                raise InputError(f"{path}, line {number}: cut off, so the file is not whole") from error
            raise
        check_plain(row, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise InputError(f"{path}: the file is empty; expected at least one line")
    return rows


def text_of(place: str, row: dict[str, Any], key: str) -> str:
    """The text under `key`; `place` ("file, line 3") is what errors name.

    Raises:
        InputError: the key is missing, or its value is not a text.
    """
    if key not in row:
        raise InputError(f"{place}: expected the key {key!r}, got {keys_of(row) or 'no keys'}")
    value = row[key]
    if not isinstance(value, str):
        raise InputError(f"{place}: {key!r}: expected a text, got {type(value).__name__}")
    return value


def id_of(place: str, row: dict[str, Any], key: str) -> str | int:
    """The question's id under `key`.

    Raises:
        InputError: it is missing, or neither a text nor a whole number.
    """
    if isinstance(row.get(key), int) and not isinstance(row[key], bool):
        return row[key]
    return text_of(place, row, key)


def keys_of(row: dict[str, Any]) -> str:
    """The keys of a row, for a message."""
    return shown(", ".join(map(repr, row)), 80)


def listed(names: list[Any], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 32) for name in names[:most]) + rest
