"""Reading, checking and writing the rows of a data set.

Formats: a JSON list, JSON lines, both gzipped; parquet and a saved Hugging Face `datasets` folder (with the
`data` extra). Schemas: alpaca (`instruction`, `input`, `output`), `messages`, ShareGPT `conversations`.
"""

import gzip
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .._common.errors import InputError
from .._common.files import atomic_path
from .._common.json_lines import parse_line
from .._common.messages import reason, shown
from .._common.reading import check_file, check_plain, flaw_of, is_folder, parse_json, read_text
from .schemas import COLUMNS, TEXT, Alpaca, Conversation, Parts, ResponseSchema, RowError, Schema, Turns, schema_of

log = logging.getLogger("diverseevol_fast")

QUICKSTART, PYTHON_DOCS = BUILTIN = ("builtin:quickstart", "builtin:python-docs")
MOST_NAMED = 20  # maximum number of broken lines that one message lists


@dataclass(frozen=True)
class Data:
    """All rows of a data set, with the schema that takes them apart."""

    rows: Sequence[Mapping[str, Any]]
    schema: Schema
    columns: Mapping[str, str]  # our name -> the row's key
    source: str

    def sha256(self) -> str:
        """Digest of the rows' content and order; the file format does not change it."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def parts(self, index: int) -> Parts:
        """The texts of row `index` in their order, each with whether it is a response."""
        return self.schema.parts(self.rows[index], self.columns)

    def fields(self, index: int) -> dict[str, str]:
        """`instruction`, `input` and `output` of row `index`, of the Alpaca schema alone."""
        return cast(Alpaca, self.schema).fields(self.rows[index], self.columns)

    def turns(self, index: int) -> Turns:
        """Row `index` as [{"role": ..., "content": ...}, ...]; texts have no turns."""
        return cast(ResponseSchema, self.schema).turns(self.rows[index], self.columns)


def load_data(
    data: Any, columns: Mapping[str, str] | None = None, *, text_column: str | None = None, skip_broken: bool = False
) -> tuple[Data, list[int]]:
    """Read a data set and check every row.

    Args:
        data: the name of a file or of a saved `datasets` folder, "builtin:quickstart" or "builtin:python-docs"; a list
            of rows (dicts) or of texts; a Hugging Face `datasets.Dataset`; or the `Data` that an earlier call returned.
        columns: the data set's names for our columns, {"instruction": "question", ...}.
        text_column: the key whose value is a row's text; the rows may then have any schema.
        skip_broken: leave out broken lines and malformed rows; indices count the remaining rows.

    Returns:
        The data set, and the indices of the rows with an empty instruction or output, or text.

    Raises:
        InputError: there is no such file, it has no rows or an unknown schema, or lines are broken or rows malformed
            (the message says where and how, for the first 20 of them).
    """
    if isinstance(data, Data):
        return data, [index for index, row in enumerate(data.rows) if data.schema.check(row, data.columns)]
    names = _names(columns, text_column)
    if isinstance(data, str | os.PathLike):
        source = os.fspath(data)
        raw, kind = _made(source) if source in BUILTIN else _read(source)
    else:
        source = "rows"
        if isinstance(data, list) and data and isinstance(data[0], str):
            return _texts(data, columns, text_column)
        raw, kind = _in_memory(data)
    loaded, empty = _checked(raw, names, source, skip_broken)
    log_rows(loaded, kind, empty)
    return loaded, empty


def _names(columns: Mapping[str, str] | None, text_column: str | None) -> dict[str, str]:
    """Our name for each part of a row -> the row's key."""
    unknown = set(columns or {}) - set(COLUMNS)
    if unknown:
        names = shown(", ".join(sorted(map(str, unknown))))
        raise InputError(f"columns: expected names out of {', '.join(COLUMNS)}, got {names}")
    for name, key in (columns or {}).items():
        if not isinstance(key, str):
            raise InputError(f"columns: expected the name of a key for '{name}', got {shown(repr(key))}")
    if text_column is None:
        return {name: name for name in COLUMNS} | dict(columns or {})
    if columns:
        raise InputError("columns: name parts of a row, of which a text column takes none; give one of the two")
    return {"text": text_column}


def _made(source: str) -> tuple["RawRows", str]:
    """The rows of a built-in data set.

    Raises:
        InputError: this Python has no sources of its standard library.
    """
    if source == QUICKSTART:
        from ..demo.rows import generate_rows

        return _raw_rows(generate_rows()), "generated rows"
    from ..demo.python_docs import python_docs_rows

    rows = python_docs_rows()
    if not rows:
        raise InputError(f"{source}: this Python has no sources of its standard library; name another data set")
    return _raw_rows(rows), "docstrings"


def _in_memory(rows: Any) -> tuple["RawRows", str]:
    """The rows of a list or of a datasets.Dataset."""
    if hasattr(rows, "column_names") and hasattr(rows, "to_list"):
        return _raw_rows(rows.to_list()), "datasets.Dataset"
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f"rows: expected a file's name, a list of texts or of rows, at least one, or a datasets.Dataset, got "
            f"{type(rows).__name__ if rows != [] else 'an empty list'}"
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            wanted = "dict, as row 0" if index else "a text or a dict"
            raise InputError(f"rows, row {index}: expected {wanted}, got {type(row).__name__}")
    return _raw_rows(rows), "a list"


def _texts(texts: list[str], columns: Mapping[str, str] | None, text_column: str | None) -> tuple[Data, list[int]]:
    if columns or text_column:
        raise InputError("columns: the rows are texts, which have no keys; leave columns and text_column out")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"rows, row {index}: expected str, as row 0, got {type(text).__name__}")
        check_plain(text, f"rows, row {index}")
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    return Data([{"text": text} for text in texts], TEXT, {"text": "text"}, "rows"), empty


@dataclass
class RawRows:
    """JSON objects before a schema has checked them, and the lines or rows that are no such objects."""

    unit: str  # "line" (numbers from 1) or "row" (indices from 0)
    rows: list[tuple[int, dict]] = field(default_factory=list)  # the number of each row in the file, and the row
    broken: list[tuple[int, str]] = field(default_factory=list)  # the number of each broken row, and its flaw


def _checked(raw: RawRows, names: dict[str, str], path: str, skip_broken: bool) -> tuple[Data, list[int]]:
    """The data set of all valid rows, and the indices of the empty ones among them. Raises as load_data does."""
    if not raw.rows and not raw.broken:
        raise InputError(f"{path}: no rows; expected at least one")
    rows, empty, broken, schema = [], [], list(raw.broken), None
    for number, row in raw.rows:
        try:
            schema = schema or (TEXT if "text" in names else schema_of(row, names))
            is_empty = schema.check(row, names)
        except RowError as error:
            broken.append((number, str(error)))
            continue
        if is_empty:
            empty.append(len(rows))
        rows.append(row)
    if schema is None and raw.rows:  # all rows lack the same keys, so the message names the first row alone
        raise InputError(_broken(path, raw.unit, [broken[len(raw.broken)]]))
    if broken and not skip_broken:
        raise InputError(_broken(path, raw.unit, sorted(broken)))
    if not rows or schema is None:
        raise InputError(f"{path}: no rows are left; all {len(broken)} are broken")
    if broken:
        first = raw.unit, raw.unit, *min(broken)
        log.warning("%s: %d broken %ss are left aside, the first is %s %d: %s", path, len(broken), *first)
    return Data(rows, schema, names, path), empty


def _broken(path: str, unit: str, broken: list[tuple[int, str]]) -> str:
    """The message about broken rows: a line for each, below a summary where there are several."""
    lines = [f"{path}, {unit} {number}: {flaw}" for number, flaw in broken[:MOST_NAMED]]
    if len(broken) == 1:
        return lines[0]
    more = f", the first {MOST_NAMED}" if len(broken) > MOST_NAMED else ""
    summary = f"{path}: {len(broken)} broken {unit}s{more}; mend them, or leave them out: skip_broken=True"
    return "\n".join([summary, *lines])


def _read(name: str) -> tuple[RawRows, str]:
    """The rows of a file or folder, and its kind in words."""
    if not name.strip():
        raise InputError(f"data: expected the name of a file or folder, got {name!r}")
    path = Path(name)
    if is_folder(path) or path.suffix == ".parquet":
        rows, kind = _read_arrow(path)
        return _raw_rows(rows), kind
    text = read_text(path)
    suffix = " (gzip)" if path.suffix == ".gz" else ""
    if text.lstrip()[:1] == "[":
        return _raw_rows(parse_json(text, str(path))), "JSON list" + suffix
    return _parse_lines(path, text), "JSON lines" + suffix


def _parse_lines(path: Path, text: str) -> RawRows:
    raw = RawRows("line")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw.rows.append((number, parse_line(path, number, line)))
        except InputError as error:
            raw.broken.append((number, str(error).removeprefix(f"{path}, line {number}: ")))
    return raw


def _raw_rows(rows: Iterable[Any]) -> RawRows:
    """The rows of a list; one that is no object, or that JSON cannot hold, is broken."""
    raw = RawRows("row")
    for index, row in enumerate(rows):
        flaw = flaw_of(row) if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"
        if flaw:
            raw.broken.append((index, flaw))
        else:
            raw.rows.append((index, row))
    return raw


def _read_arrow(path: Path) -> tuple[list[dict], str]:
    """The rows of a parquet file or a saved `datasets` folder, and which of the two it is."""
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
    except Exception as error:  # damaged files make these libraries raise exceptions of many types
        raise InputError(
            f"{shown(path, 200)}: not a whole parquet file or saved datasets folder: {reason(error)}"
        ) from error
    if not isinstance(loaded, datasets.Dataset):
        splits = shown(", ".join(map(str, loaded)))
        raise InputError(f"{path}: expected one split, got {splits}; name one: {path}/{next(iter(loaded))}")
    try:
        loaded.data.validate(full=True)  # without it, damaged offsets would be read beyond the buffers
        return loaded.to_list(), kind
    except Exception as error:
        raise InputError(f"{shown(path, 200)}: its columns are damaged: {reason(error)}") from error


def log_rows(data: Data, kind: str, empty: Collection[int]) -> None:
    """Log how many rows there are, are duplicates, and are empty. `kind`: the file's format in words."""
    counts = len(data.rows), duplicates(data), len(empty), data.schema.required
    source = f"{data.source}, {kind}, {data.schema.name} schema"
    log.info("data: %s, %d rows: %d repeat an earlier one, %d have an empty %s", source, *counts)


def refuse_empty(data: Data, empty: Sequence[int]) -> None:
    """
    Raises:
        InputError: there are empty rows.
    """
    if empty:
        required = f"'{data.columns['text']}'" if "text" in data.columns else data.schema.required
        raise InputError(
            f"{data.source}: {len(empty)} rows have an empty {required}, the first is row {empty[0]}; "
            "remove them, or leave them out: skip_empty=True"
        )


def duplicates(data: Data) -> int:
    """The number of rows with the same texts as an earlier row; other keys, such as an id, may differ."""
    schema, columns = data.schema, data.columns
    read = schema.turns if isinstance(schema, Conversation) else schema.parts
    return len(data.rows) - len({json.dumps(read(row, columns)) for row in data.rows})


def check_row_file(path: Path) -> str:
    """The format that a file's name stands for: ".json", ".jsonl" or ".parquet".

    Raises:
        InputError: another ending.
    """
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    kind = suffixes[0] if suffixes else ""
    if kind not in (".json", ".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name ending in .json, .jsonl, .json.gz, .jsonl.gz or .parquet")
    return kind


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically, in the format of the name: .json (a list), .jsonl, either with .gz, or .parquet.

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


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        import datasets
    except ImportError as error:
        raise InputError("parquet output needs the datasets package; pip install 'datasets>=3'") from error
    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(os.fspath(path))
