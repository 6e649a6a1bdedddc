"""Instruction data: rows in, rows out, in the format and schema they came in.

Formats: a JSON list, JSON lines, both gzipped; parquet and a saved Hugging Face `datasets` folder (with the
`data` extra). Schemas: alpaca (`instruction`, `input`, `output`), `messages`, ShareGPT `conversations`.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .data_summary import log_rows
from .errors import InputError
from .files import atomic_path

QUICKSTART = "builtin:quickstart"
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
    path: str, columns: dict[str, str] | None = None, text_column: str | None = None
) -> tuple[Data, list[int]]:
    """Read a data set and check every row. Returns it and the rows with an empty instruction or output, or text.

    Args:
        path: a file, a saved `datasets` folder, or "builtin:quickstart".
        columns: other names for our columns, {"instruction": "question", ...}.
        text_column: rows are of any kind, and this key's value is their text.

    Raises:
        InputError: no such file, a broken line (file, line, what), a missing key, an unknown schema, no rows.
    """
    unknown = set(columns or {}) - set(COLUMNS)
    if unknown:
        raise InputError(f"columns: expected names out of {', '.join(COLUMNS)}, got {', '.join(sorted(unknown))}")
    names = {name: name for name in COLUMNS} | (columns or {})
    if path == QUICKSTART:
        from .quickstart import generate_rows

        rows, kind = generate_rows(), "generated rows"
    else:
        rows, kind = _read(Path(path))
    if not rows:
        raise InputError(f"{path}: no rows; expected at least one")
    if text_column is None:
        schema = _schema(rows[0], names, path)
    elif columns:
        raise InputError("columns: name parts of a row, of which a text column takes none; give one of the two")
    else:
        schema, names = "text", {"text": text_column}
    data = Data(rows, schema, names, str(path))
    empty = [index for index in range(len(rows)) if _check_row(data, index)]
    log_rows(data, kind, empty)
    return data, empty


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
            _check_text(f"rows, row {index}", text)
        return Data([{"text": text} for text in rows], "text", {"text": "text"}, "rows")
    names = {name: name for name in COLUMNS}
    data = Data(rows, _schema(rows[0], names, "rows"), names, "rows")
    for index in range(len(rows)):
        _check_row(data, index)
    return data


def _read(path: Path) -> tuple[list[dict], str]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix == ".parquet":
        return _read_datasets(path)
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") if zipped else open(path, encoding="utf-8") as file:
            text = file.read()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not readable as {'gzipped ' if zipped else ''}UTF-8 text: {error}") from error
    suffix = " (gzip)" if zipped else ""
    if text.lstrip()[:1] == "[":
        return _parse_list(path, text), "JSON list" + suffix
    return _parse_lines(path, text), "JSON lines" + suffix


def _parse_list(path: Path, text: str) -> list[dict]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
    return rows


def _parse_lines(path: Path, text: str) -> list[dict]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _read_datasets(path: Path) -> tuple[list[dict], str]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{path}: needs the datasets package; pip install 'datasets>=3'") from error
    try:
        if path.is_dir():
            loaded, kind = datasets.load_from_disk(str(path)), "datasets folder"
        else:
            loaded, kind = datasets.Dataset.from_parquet(str(path), keep_in_memory=True), "parquet"
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"{path}: not a parquet file or a saved datasets folder: {error}") from error
    if not isinstance(loaded, datasets.Dataset):
        raise InputError(f"{path}: expected one split, got {', '.join(loaded)}; name one: {path}/{next(iter(loaded))}")
    return loaded.to_list(), kind


def _schema(row: dict, names: dict[str, str], path: str) -> str:
    for schema, key in (("messages", "messages"), ("sharegpt", "conversations"), ("alpaca", "instruction")):
        if names[key] in row:
            return schema
    raise InputError(
        f"{path}, row 0: expected '{names['instruction']}', '{names['messages']}' or '{names['conversations']}', "
        f"got keys {', '.join(map(repr, row))}; other names: columns: {{instruction: NAME, output: NAME}}"
    )


def _check_row(data: Data, index: int) -> bool:
    """Raises on a malformed row; True when its instruction or its output, or its text, is empty."""
    where = f"{data.source}, row {index}"
    row = data.rows[index]
    if data.schema in ("alpaca", "text"):
        names = ("instruction", "input", "output") if data.schema == "alpaca" else ("text",)
        for name in names:
            key = data.columns[name]
            if name != "input" and key not in row:
                raise InputError(f"{where}: key '{key}' is missing; got {', '.join(map(repr, row))}")
            if not isinstance(row.get(key) or "", str):
                raise InputError(f"{where}: '{key}' expected text, got {type(row[key]).__name__}")
            _check_text(where, row.get(key) or "")
        return not all(data.field(index, name).strip() for name in names if name != "input")
    try:
        turns = data.conversation(index)
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: not a {data.schema} conversation: {error!r}") from error
    for turn in turns:
        if not isinstance(turn["content"], str):
            raise InputError(f"{where}: expected text turns, got {type(turn['content']).__name__}")
        _check_text(where, turn["content"])
    said = {role: "".join(t["content"] for t in turns if t["role"] == role).strip() for role in ("user", "assistant")}
    return not (said["user"] and said["assistant"])


def _check_text(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair at character {error.start}; expected Unicode text") from error


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
                json.dump(list(rows), file, ensure_ascii=False, indent=1, default=str)
            else:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_parquet(path: Path, rows: Iterable[dict]) -> None:
    try:
        import datasets
    except ImportError as error:
        raise InputError("parquet output needs the datasets package; pip install 'datasets>=3'") from error
    datasets.Dataset.from_list(list(rows)).to_parquet(os.fspath(path))
