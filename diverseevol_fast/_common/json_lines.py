"""JSON lines: objects with their line numbers, which errors name."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError
from .messages import shown
from .reading import check_plain, parse_json


def parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object in a line of a file. Errors name `path` and the line's `number`, from 1.

    Raises:
        InputError: the line is not a JSON object (NaN and Infinity are not JSON), or check_plain refuses its value.
    """
    value = parse_json(line, str(path), number)
    check_plain(value, f"{path}, line {number}")
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: expected an object, got {type(value).__name__}")
    return value


def parse_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects in `text` with their line numbers, from 1; blank lines are skipped. Errors name `path`.

    Raises:
        InputError: as parse_line; the last line is cut off; all lines are blank.
    """
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, parse_line(path, number, line)))
        except InputError as error:
            if number == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                raise InputError(f"{path}, line {number}: cut off, so the file is not whole") from error
            raise
    if not rows:
        raise InputError(f"{path}: the file is empty; expected at least one line")
    return rows


def text_of(location: str, row: dict[str, Any], key: str) -> str:
    """The text under `key`. Errors name `location`, such as "file, line 3".

    Raises:
        InputError: the key is missing, or its value is not a text.
    """
    if key not in row:
        raise InputError(f"{location}: expected the key {key!r}, got {keys_of(row) or 'no keys'}")
    value = row[key]
    if not isinstance(value, str):
        raise InputError(f"{location}: {key!r}: expected a text, got {type(value).__name__}")
    return value


def id_of(location: str, row: dict[str, Any], key: str) -> str | int:
    """The question's id under `key`.

    Raises:
        InputError: the key is missing, or its value is neither a text nor a whole number.
    """
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else text_of(location, row, key)


def keys_of(row: dict[str, Any]) -> str:
    """The keys of a row, for a message."""
    return shown(", ".join(map(repr, row)), 80)


def listed(names: list[Any], limit: int = 8) -> str:
    """The first `limit` names, and the number of further ones."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 32) for name in names[:limit]) + more
