"""Instruction data: rows in, rows out, in the format and schema they came in.

Formats: a JSON list, JSON lines, both gzipped; parquet and a saved Hugging Face `datasets` folder (with the
`data` extra). Schemas: alpaca (`instruction`, `input`, `output`), `messages`, ShareGPT `conversations`.
"""

import gzip
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._common.errors import InputError
from .._common.files import atomic_path
from .._common.messages import reason, shown
from .._common.reading import check_file, check_plain, flaw_of, is_folder, parse_json, read_text
from .summary import log_rows

log = logging.getLogger("diverseevol_fast")

QUICKSTART = "builtin:quickstart"
MOST_NAMED = 20  # broken lines in one message
COLUMNS = ("instruction", "input", "output", "messages", "conversations")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                  "system": "system", "tool": "tool"}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """All rows of a data set, and how to read them."""

    rows: list[dict]
    schema: str  # "alpaca", "messages", "sharegpt" or, of plain texts, "text"
    columns: dict[str, str]  # our name -> the row's key
    source: str

    def sha256(self) -> str:
        """Digest of the rows' content and order, whatever file format they came in."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def conversation(self, index: int) -> list[dict[str, str]]:
        """Row `index` of a messages or ShareGPT data set as [{"role": ..., "content": ...}, ...]."""
        turns = self.rows[index][self.columns["messages" if self.schema == "messages" else "conversations"]]
        if self.schema == "messages":
            return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]

    def field(self, index: int, name: str) -> str:
        """`instruction`, `input` or `output` of row `index` of an alpaca data set; a missing input is empty."""
        return self.rows[index].get(self.columns[name]) or ""


def load_data(
    path: str, columns: dict[str, str] | None = None, *, text_column: str | None = None, skip_broken: bool = False
) -> tuple[Data, list[int]]:
    """Read a data set and check every row. Returns it and the rows with an empty instruction or output, or text.

    Args:
        path: a file, a saved `datasets` folder, or "builtin:quickstart".
        columns: other names for our columns, {"instruction": "question", ...}.
        text_column: rows are of any kind, and this key's value is their text.
        skip_broken: leave broken lines and malformed rows aside; row numbers count the rows that are left.

    Raises:
        InputError: no such file, broken lines or malformed rows (file, line, what; the first 20 of them), an unknown
            schema, no rows.
    """
    unknown = set(columns or {}) - set(COLUMNS)
    if unknown:
        names = shown(", ".join(sorted(map(str, unknown))))
        raise InputError(f"columns: expected names out of {', '.join(COLUMNS)}, got {names}")
    for name, key in (columns or {}).items():
        if not isinstance(key, str):
            raise InputError(f"columns: expected the name of a key for '{name}', got {shown(repr(key))}")
    names = {name: name for name in COLUMNS} | (columns or {})
    if path == QUICKSTART:
        from ..demo.rows import generate_rows

        found, kind = Found(generate_rows(), "row"), "generated rows"
    else:
        found, kind = _read(path)
    if text_column is not None:
        if columns:
            raise InputError("columns: name parts of a row, of which a text column takes none; give one of the two")
        names = {"text": text_column}
    data, empty = _checked(found, names, path, skip_broken)
    log_rows(data, kind, empty)
    return data, empty


@dataclass
class Found:
    """What a file holds: rows, where they stand in it, and what is broken."""

    rows: list[dict]
    unit: str  # "line" or "row": what the places count
    places: list[int] | None = None  # of the rows; None: 0, 1, 2, ...
    broken: list[tuple[int, str]] = field(default_factory=list)  # places, and what is wrong there

    def place(self, index: int) -> int:
        """Where row `index` stands in the file."""
        return index if self.places is None else self.places[index]


def _checked(found: Found, names: dict[str, str], path: str, skip_broken: bool) -> tuple[Data, list[int]]:
    """The rows that are whole as a data set, and the empty ones among them. Raises as load_data does."""
    if not found.rows and not found.broken:
        raise InputError(f"{path}: no rows; expected at least one")
    rows, empty, broken, schema = [], [], list(found.broken), None
    for index, row in enumerate(found.rows):
        try:
            schema = schema or _schema(row, names)
            is_empty = _check_row(Data([row], schema, names, path), 0)
        except RowError as error:
            broken.append((found.place(index), str(error)))
            continue
        if is_empty:
            empty.append(len(rows))
        rows.append(row)
    if schema is None and found.rows:  # the same is wrong with all of them
        raise InputError(_broken(path, found.unit, [(found.place(0), broken[len(found.broken)][1])]))
    if broken and not skip_broken:
        raise InputError(_broken(path, found.unit, sorted(broken)))
    if not rows:
        raise InputError(f"{path}: no rows are left; all {len(broken)} are broken")
    if broken:
        place, reason = min(broken)
        log.warning(
            "%s: %d broken %ss are left aside, the first is %s %d: %s",
            path, len(broken), found.unit, found.unit, place, reason,
        )  # fmt: skip
    return Data(rows, schema, names, path), empty


def _broken(path: str, unit: str, broken: list[tuple[int, str]]) -> str:
    """One flaw in one line; several in a line each, below a sentence on all of them."""
    lines = [f"{path}, {unit} {place}: {reason}" for place, reason in broken[:MOST_NAMED]]
    if len(broken) == 1:
        return lines[0]
    more = f", the first {MOST_NAMED}" if len(broken) > MOST_NAMED else ""
    return "\n".join(
        [
            f"{path}: {len(broken)} broken {unit}s{more}; mend them, or leave them aside: --skip-broken of select and "
            "embed, skip_broken of a run",
            *lines,
        ]
    )


class RowError(InputError):
    """What is wrong with a row; who raises it does not know where the row stands."""


def data_of(rows: list[str] | list[dict]) -> Data:
    """Texts, or rows in a schema that load_data knows, as a data set.

    Raises:
        InputError: no rows, rows of neither kind, a malformed row.
    """
    if not isinstance(rows, list) or not rows:
        raise InputError(f"rows: expected a list of texts or of rows, at least one, got {type(rows).__name__}")
    kind = str if isinstance(rows[0], str) else dict
    for index, row in enumerate(rows):
        if not isinstance(row, kind):
            wanted = f"{kind.__name__}, as row 0" if index else "a text or a dict"
            raise InputError(f"rows, row {index}: expected {wanted}, got {type(row).__name__}")
    if kind is str:
        for index, text in enumerate(rows):
            check_plain(text, f"rows, row {index}")
        return Data([{"text": text} for text in rows], "text", {"text": "text"}, "rows")
    return _checked(Found(rows, "row"), {name: name for name in COLUMNS}, "rows", skip_broken=False)[0]


def _read(name: str) -> tuple[Found, str]:
    if not name.strip():
        raise InputError(f"data: expected the name of a file or folder, got {name!r}")
    path = Path(name)
    if is_folder(path) or path.suffix == ".parquet":
        rows, kind = _read_arrow(path)
        return Found(rows, "row"), kind
    text = read_text(path)
    suffix = " (gzip)" if path.suffix == ".gz" else ""
    if text.lstrip()[:1] == "[":
        return _parse_list(path, text), "JSON list" + suffix
    return _parse_lines(path, text), "JSON lines" + suffix


def _parse_list(path: Path, text: str) -> Found:
    found = Found([], "row", [])
    for number, row in enumerate(parse_json(text, str(path))):
        _take(found, number, row)
    return found


def _parse_lines(path: Path, text: str) -> Found:
    found = Found([], "line", [])
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            _take(found, number, parse_json(line, str(path), number))
        except InputError as error:
            found.broken.append((number, str(error).removeprefix(f"{path}, line {number}: ")))
    return found


def _take(found: Found, place: int, row: Any) -> None:
    """A row, or what is wrong with it."""
    if isinstance(row, dict):
        found.rows.append(row)
        found.places.append(place)
    else:
        found.broken.append((place, f"expected an object, got {type(row).__name__}"))


def _read_arrow(path: Path) -> tuple[list[dict], str]:
    """Rows of a parquet file or a saved `datasets` folder."""
    try:
        import datasets
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: needs the datasets package; pip install 'datasets>=3'") from error
    try:
        if path.is_dir():
            loaded, kind = datasets.load_from_disk(os.fspath(path)), "datasets folder"
        else:
            check_file(path)
            loaded, kind = datasets.Dataset(pyarrow.parquet.ParquetFile(path).read()), "parquet"
    except InputError:
        raise
    except Exception as error:  # of damaged files these libraries raise whatever they stumble over
        raise InputError(
            f"{shown(path, 200)}: not a whole parquet file or saved datasets folder: {reason(error)}"
        ) from error
    if not isinstance(loaded, datasets.Dataset):
        splits = shown(", ".join(loaded))
        raise InputError(f"{path}: expected one split, got {splits}; name one: {path}/{next(iter(loaded))}")
    try:
        loaded.data.validate(full=True)  # damaged offsets would be followed out of the file
        return loaded.to_list(), kind
    except Exception as error:
        raise InputError(f"{shown(path, 200)}: its columns are damaged: {reason(error)}") from error


def _schema(row: dict, names: dict[str, str]) -> str:
    if "text" in names:
        return "text"
    for schema, key in (("messages", "messages"), ("sharegpt", "conversations"), ("alpaca", "instruction")):
        if names[key] in row:
            return schema
    raise RowError(
        f"expected '{shown(names['instruction'])}', '{shown(names['messages'])}' or '{shown(names['conversations'])}', "
        f"got keys {_keys(row)}; other names: columns: {{instruction: NAME, output: NAME}}"
    )


def _keys(row: dict) -> str:
    return shown(", ".join(map(repr, row)), 50)


def _check_row(data: Data, index: int) -> bool:
    """Raises on a malformed row; True when its instruction or its output, or its text, is empty."""
    row = data.rows[index]
    flaw = flaw_of(row)
    if flaw:
        raise RowError(flaw)
    if data.schema in ("alpaca", "text"):
        names = ("instruction", "input", "output") if data.schema == "alpaca" else ("text",)
        for name in names:
            key = data.columns[name]
            if name != "input" and key not in row:
                raise RowError(f"key '{shown(key)}' is missing; got {_keys(row)}")
            if not isinstance(row.get(key) or "", str):
                raise RowError(f"'{shown(key)}' expected text, got {type(row[key]).__name__}")
        return not all(data.field(index, name).strip() for name in names if name != "input")
    turns = _turns(data, index)
    said = {role: "".join(t["content"] for t in turns if t["role"] == role).strip() for role in ("user", "assistant")}
    return not (said["user"] and said["assistant"])


def _turns(data: Data, index: int) -> list[dict[str, str]]:
    """The conversation of a row. Raises RowError where it is none."""
    key = data.columns["messages" if data.schema == "messages" else "conversations"]
    role, content = ("role", "content") if data.schema == "messages" else ("from", "value")
    turns = data.rows[index].get(key)
    if not isinstance(turns, list):
        raise RowError(f"'{shown(key)}' expected a list of turns, got {type(turns).__name__}")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number}: expected an object, got {type(turn).__name__}")
        for name in (role, content):
            if not isinstance(turn.get(name), str):
                got = type(turn[name]).__name__ if name in turn else "no such key"
                raise RowError(f"turn {number}: expected text under '{name}', got {got}")
        if data.schema == "sharegpt" and turn[role] not in SHAREGPT_ROLES:
            raise RowError(f"turn {number}: expected from: {' or '.join(SHAREGPT_ROLES)}, got '{shown(turn[role])}'")
    return data.conversation(index)


def check_row_file(path: Path) -> str:
    """The kind of file that a name stands for: ".json", ".jsonl" or ".parquet".

    Raises:
        InputError: another ending.
    """
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    kind = suffixes[0] if suffixes else ""
    if kind not in (".json", ".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name ending in .json, .jsonl, .json.gz, .jsonl.gz or .parquet")
    return kind


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write rows whole or not at all; the name decides: .json (list), .jsonl, either with .gz, or .parquet.

    Raises:
        InputError: another ending.
    """
    kind = check_row_file(path)
    with atomic_path(path) as partial:
        if kind == ".parquet":
            _write_parquet(partial, rows)
            return
        with (
            gzip.open(partial, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else open(partial, "w", encoding="utf-8") as file
        ):
            if kind == ".json":
                json.dump(list(rows), file, ensure_ascii=False, indent=1, default=str, allow_nan=False)
            else:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def _write_parquet(path: Path, rows: Iterable[dict]) -> None:
    try:
        import datasets
    except ImportError as error:
        raise InputError("parquet output needs the datasets package; pip install 'datasets>=3'") from error
    datasets.Dataset.from_list(list(rows)).to_parquet(os.fspath(path))
