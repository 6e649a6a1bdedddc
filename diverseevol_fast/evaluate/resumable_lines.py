"""A file of JSON lines that a stopped command goes on from: what it is made from, then a synced line for each part."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from .._common.errors import InputError
from .._common.files import sync_folder
from .._common.json_lines import parse
from .._common.messages import shown
from .._common.provenance import recorded
from .._common.reading import check_plain, parse_json

MOST_DIFFERING = 240  # characters about what differs, in a message

Lines = list[tuple[int, dict[str, Any]]]  # each with its number in the file


class ResumableLines:
    """`with ResumableLines(path, provenance) as file: file.append({...})`: held by this process, closed to others.

    `lines` are those that were there, without the first, which says what all of them are made from.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]):
        self.path, self.provenance = path, provenance
        self.lines: Lines = []
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ResumableLines":
        """
        Raises:
            InputError: another process holds it; it is of something else, or damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(self.path)
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        """Keep a part: it is on the disk when this returns."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Take the file away, once what it was for is whole somewhere else."""
        self.path.unlink(missing_ok=True)

    def _take_up(self) -> None:
        self._file.seek(0)
        whole = _whole_lines(self._file.read())
        self.lines = _read(self.path, whole, self.provenance)
        self._file.truncate(len(whole))
        if not whole:
            self.append({"provenance": self.provenance})
            sync_folder(self.path.parent)


def check_folder(folder: Path) -> None:
    """A folder for the output is there, or can be made.

    Raises:
        InputError: it, or what it is in, is a file.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--output: expected {folder} to be a folder, but {there} is a file; name another")


def read_lines(path: Path, provenance: dict[str, Any]) -> Lines:
    """The lines of a file that nobody need hold; none where there is no file. A last one that is cut off is left out.

    Raises:
        InputError: they are of something else; one is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return _read(path, _whole_lines(content), provenance)


def check_provenance(path: Path, before: Any, now: dict[str, Any]) -> None:
    """A file was made from what is at hand now.

    Raises:
        InputError: it was not; says what differs.
    """
    if not isinstance(before, dict):
        raise InputError(f"{path}: does not say what it was made from; name another --output or remove it")
    differing = [
        f"{shown(key.removesuffix('_sha256'), 32)}: other content" if key.endswith("_sha256")
        else f"{shown(key, 32)}: there {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]  # fmt: skip
    if differing:
        raise InputError(
            f"{path}: was made from something else; name another --output or remove it. "
            f"{shown('; '.join(differing), MOST_DIFFERING)}"
        )


def provenance_of(record: str | bytes) -> Any:
    """What a JSON object says that it was made from; None where it is none, or does not say."""
    try:
        value = parse_json(record if isinstance(record, str) else record.decode(), "provenance")
        check_plain(value, "provenance")
        return recorded(value)
    except (ValueError, KeyError, TypeError):
        return None


def _locked(path: Path) -> BinaryIO:
    """The file, open, with no other process in it; made where there is none."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115 (it stays open as long as it is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"{path}: another process is writing it") from error
        if _is_at(path, file):
            return file
        file.close()  # the process that held it has removed it since it was opened here: what is written would be lost


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _whole_lines(content: bytes) -> bytes:
    """What a crash in the middle of a line leaves of use."""
    return content[: content.rfind(b"\n") + 1]


def _read(path: Path, whole: bytes, provenance: dict[str, Any]) -> Lines:
    if not whole:
        return []
    first = whole[: whole.index(b"\n")]
    check_provenance(path, provenance_of(first), provenance)
    try:
        rest = whole[len(first) :].decode()  # begins with the first line's end, so that lines keep their numbers
        return parse(path, rest) if rest.strip() else []
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, not UTF-8 text ({error.reason}); remove it to begin again") from error
    except InputError as error:
        raise InputError(f"{error}; remove the line, and what it held is made again") from error


def _short(value: Any) -> str:
    return shown(repr(value), 24)
