"""Locks, and atomic writes: a reader sees the old file or the new one, never half of it, also after a crash."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError
from .reading import parse_json

DAMAGED = "the file was damaged after it was written, restore it from a copy"


def as_paths(names: Any) -> list[Path]:
    """The paths of one file name or of a list of names."""
    return [Path(name) for name in (names if isinstance(names, list | tuple) else [names])]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` if the block succeeds, removed if it raises.

    Of a symbolic link the target is replaced. A device or a pipe is written to directly.

    Raises:
        InputError: `path` is a folder.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write to, got a folder; name a file in it")
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock `path` against other processes that call this, by a hidden file beside it, which is removed at the end.

    Raises:
        InputError: another process has the lock.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # two writers cannot damage a device or a pipe
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, name):
                break
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(f"{path}: another process is writing it; wait for it, or name another file") from error
        os.close(descriptor)  # the last holder removed the file after this process had opened it
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def build_folder(folder: Path, build: Callable[[Path], Any]) -> Any:
    """Let `build` fill a partial folder, then rename it to `folder`, so that `folder` is whole or not there."""
    partial = empty_beside(folder)
    try:
        result = build(partial)
        rename_synced(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # still there only if the build failed
    return result


def empty_beside(folder: Path) -> Path:
    """A new, empty folder beside `folder`, to be renamed to it; what an earlier call left there is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def rename_synced(partial: Path, folder: Path) -> None:
    """Rename a folder so that after a power cut its files are whole or it is not there."""
    for path in partial.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    os.replace(partial, folder)
    sync_folder(folder.parent)


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_text(value: Any) -> str:
    """What write_json writes."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(json_text(value))


def read_record(path: Path, *keys: str, older_names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a dictionary that write_json wrote, and that has these keys.

    older_names: an earlier version's name of a key, at any depth -> its name now.

    Raises:
        InputError: the file was damaged; the message says where.
        FileNotFoundError: there is no file.
    """
    record = _renamed(read_json(path), older_names or {})
    if not isinstance(record, dict) or not set(keys) <= set(record):
        raise InputError(f"{path}: expected an object{' with ' * bool(keys)}{', '.join(keys)}; {DAMAGED}")
    return record


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if not (names and isinstance(value, dict)):
        return value
    return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}


def read_json(path: Path) -> Any:
    """Read what write_json wrote. Raises InputError and FileNotFoundError as read_record."""
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; {DAMAGED}") from error
    except InputError as error:
        raise InputError(f"{error}; {DAMAGED}") from error


def user_cache(name: str) -> Path:
    """The folder of this name in diverseevol_fast, in the user's cache folder; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diverseevol_fast" / name
