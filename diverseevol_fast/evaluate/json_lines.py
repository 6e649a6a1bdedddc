"""JSON lines: read whole, each object with the number of its line, so that errors can name it."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..messages import shown


def read_text(path: Path) -> str:
    """A file's text, without the byte order mark that some editors begin it with.

    Raises:
        InputError: there is no such file, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: expected a file of JSON lines, got a folder") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def parse(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of `text`; blank lines are passed over. `path` is what errors name.

    Raises:
        InputError: a line that is not a JSON object (NaN and Infinity are no JSON), a last line that is cut off, no
            line at all.
    """
    rows = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse)
        except RecursionError as error:
            raise InputError(f"{path}, line {number}: too many levels of lists and objects in each other") from error
        except ValueError as error:
            if number == len(lines):
                raise InputError(f"{path}, line {number}: cut off, so the file is not whole") from error
            raise InputError(f"{path}, line {number}: not JSON: {shown(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise InputError(f"{path}: the file is empty; expected at least one line")
    return rows


def text_of(place: str, row: dict[str, Any], key: str) -> str:
    """The text under `key`; `place` ("file, line 3") is what errors name.

    Raises:
        InputError: the key is missing, its value is not a text, or one that UTF-8 cannot hold (half a surrogate pair).
    """
    if key not in row:
        raise InputError(f"{place}: expected the key {key!r}, got {shown(', '.join(map(repr, row)) or 'no keys')}")
    value = row[key]
    if not isinstance(value, str):
        raise InputError(f"{place}: {key!r}: expected a text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: {key!r}: half a surrogate pair at character {error.start}") from error
    return value


def id_of(place: str, row: dict[str, Any], key: str) -> str | int:
    """The question's id under `key`.

    Raises:
        InputError: it is missing, or neither a text nor a whole number.
    """
    if isinstance(row.get(key), int) and not isinstance(row[key], bool):
        return row[key]
    return text_of(place, row, key)


def listed(names: list[Any], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 20) for name in names[:most]) + rest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")
