"""A file of JSON lines that an interrupted command resumes: a header with its provenance, then a line for each part."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from .._common.errors import InputError
from .._common.files import sync_folder
from .._common.json_lines import parse_line, parse_lines
from .._common.messages import shown
from .._common.provenance import differences, recorded

DIFFERENCES_LIMIT = 240  # characters of a message that list the differences

Lines = list[tuple[int, dict[str, Any]]]  # line numbers and objects


class ResumableLines:
    """`with ResumableLines(path, provenance) as file: file.append({...})` locks the file against other processes."""

    lines: Lines  # of the file when it was opened, without the header
    _file: BinaryIO  # only inside the `with` block

    def __init__(self, path: Path, provenance: dict[str, Any]):
        self.path, self.provenance = path, provenance

    def __enter__(self) -> "ResumableLines":
        """
        Raises:
            InputError: another process has the file open; the file has another provenance, or is damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self.path)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        """Write a line; it is on the disk when this returns."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the file, once its content is complete in another file."""
        self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        self._file.seek(0)
        content = _complete_lines(self._file.read())
        self.lines = _parsed(self.path, content, self.provenance)
        self._file.truncate(len(content))
        if not content:
            self.append({"provenance": self.provenance})
            sync_folder(self.path.parent)


def check_folder(folder: Path) -> None:
    """
    Raises:
        InputError: `folder` is not a folder and cannot become one, because it or a parent of it is a file.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"output: expected {folder} to be a folder, but {existing} is a file; name another")


def read_lines(path: Path, provenance: dict[str, Any]) -> Lines:
    """The lines of a file, read without opening it for writing; none if there is no file.

    A last line that was cut off is skipped.

    Raises:
        InputError: the file has another provenance; a line is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return _parsed(path, _complete_lines(content), provenance)


def check_provenance(path: Path, before: Any, now: dict[str, Any]) -> None:
    """
    Raises:
        InputError: `before`, the provenance that the file at `path` records, is not `now`; names the differences.
    """
    if not isinstance(before, dict):
        raise InputError(f"{path}: does not say what it was made from; name another output or remove it")
    differing = differences(before, now, "the file")
    if differing:
        raise InputError(
            f"{path}: was made from something else; name another output or remove it. "
            f"{shown('; '.join(differing), DIFFERENCES_LIMIT)}"
        )


def provenance_of(record: bytes) -> Any:
    """The provenance in a JSON object; None if there is none, or the record is not a JSON object."""
    try:
        return recorded(parse_line(Path("provenance"), 1, record.decode()))
    except ValueError:
        return None


def _open_locked(path: Path) -> BinaryIO:
    """The file, created if it is missing, open and locked against other processes."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115 (ResumableLines closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"{path}: another process is writing it") from error
        if _is_at(path, file):
            return file
        file.close()  # another process removed the file between the open and the lock: writes to it would be lost


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete_lines(content: bytes) -> bytes:
    """`content` without a last line that a crash cut off."""
    return content[: content.rfind(b"\n") + 1]


def _parsed(path: Path, content: bytes, provenance: dict[str, Any]) -> Lines:
    if not content:
        return []
    header = content[: content.index(b"\n")]
    check_provenance(path, provenance_of(header), provenance)
    try:
        remaining = content[len(header) :].decode()  # begins with a line break, so that line numbers count the header
        return parse_lines(path, remaining) if remaining.strip() else []
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, not UTF-8 text ({error.reason}); remove it to begin again") from error
    except InputError as error:
        raise InputError(f"{error}; remove the line, and what it held is made again") from error
