"""Users' text and JSON, read within limits: reading never blocks, and every mistake is an InputError."""

import gzip
import json
import math
import os
import re
import stat
import zlib
from pathlib import Path
from typing import Any

from .errors import InputError
from .messages import shown

MOST_LEVELS = 100  # of nested lists and objects
MOST_DIGITS = 4300  # in a whole number: Python's own limit
NO_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
LONG_NUMBER = re.compile(rf'"(?:[^"\\]|\\.)*"|(\d{{{MOST_DIGITS + 1},}})')
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; if not, it is a regular file.

    Raises:
        InputError: it is neither, is not there, or may not be accessed.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{shown(path, 200)}: no such file or folder") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise InputError(f"{shown(path)}: {_why(error)}") from error
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return stat.S_ISDIR(mode)
    raise InputError(f"{shown(path, 200)}: expected a file, got {KINDS[stat.S_IFMT(mode)]}; save its content first")


def check_file(path: Path) -> None:
    """
    Raises:
        InputError: `path` is no regular file that can be opened.
    """
    if is_folder(path):
        raise InputError(f"{shown(path, 200)}: expected a file, got a folder")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path, 200)}: Permission denied")


def read_text(path: Path) -> str:
    """The text of a regular file, gzipped where its name ends in .gz, without a byte order mark.

    Raises:
        InputError: no such file, not readable, not UTF-8, not gzip.
    """
    check_file(path)
    zipped = path.suffix == ".gz"
    kind = "gzipped UTF-8 text" if zipped else "UTF-8 text"
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as {kind}: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
        raise InputError(f"{path}: not readable as {kind}: {_why(error)}") from error


def parse_json(text: str, location: str, line: int | None = None) -> Any:
    """The value of a JSON text. Errors name `location`, and `line` where `text` is one line of a file.

    Raises:
        InputError: not JSON; numbers that are not finite or have more than MOST_DIGITS digits; more than MOST_LEVELS
            levels; half a surrogate pair.
    """

    def refuse(reason: str, error: Exception | None, line_in_text: int) -> None:
        raise InputError(f"{location}, line {line or line_in_text}: {reason}") from error

    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        refuse(f"not JSON: {error.msg} (column {error.colno})", error, error.lineno)
    except RecursionError as error:
        raise InputError(f"{location}{f', line {line}' if line else ''}: {_too_deep()}") from error
    except _ConstantError as error:
        refuse(f"not JSON: {error} is no number; expected null or a finite one", error, _line_of(NO_NUMBER, text))
    except ValueError as error:
        refuse(f"a number of more than {MOST_DIGITS} digits", error, _line_of(LONG_NUMBER, text))
    return value


def check_plain(value: Any, location: str) -> None:
    """
    Raises:
        InputError: JSON cannot hold `value`, as flaw_of says; the message names `location`.
    """
    flaw = flaw_of(value)
    if flaw:
        raise InputError(f"{location}: {flaw}")


def flaw_of(value: Any, levels: int = 0) -> str | None:
    """Why a value cannot be written as JSON in UTF-8; None where it can."""
    if isinstance(value, str):
        return _flaw_of_text(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"the number {value}; expected a finite one, or null"
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = value
    else:
        return None
    if levels == MOST_LEVELS:
        return _too_deep()
    return next((flaw for part in parts if (flaw := flaw_of(part, levels + 1))), None)


class _ConstantError(ValueError):
    """NaN or an infinity, by name."""


def _refuse_constant(name: str) -> None:
    raise _ConstantError(name)


def _flaw_of_text(text: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at character {error.start}; expected Unicode text"
    return None


def _too_deep() -> str:
    return f"more than {MOST_LEVELS} levels of lists and objects in each other"


def _line_of(pattern: re.Pattern, text: str) -> int:
    """The line, from 1, where the pattern's group first matches outside of strings."""
    start = next(match.start() for match in pattern.finditer(text) if match[1])
    return text.count("\n", 0, start) + 1


def _why(error: Exception) -> str:
    return shown(getattr(error, "strerror", None) or error)
