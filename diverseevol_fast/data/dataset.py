"""Instruction data: rows in, rows out, in the format and schema they came in.

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
from typing import Any

from .._common.errors import InputError
from .._common.files import atomic_path
from .._common.messages import reason, shown
from .._common.reading import check_file, check_plain, flaw_of, is_folder, parse_json, read_text
from .schemas import COLUMNS, TEXT, Parts, RowError, Schema, Turns, schema_of

log = logging.getLogger("diverseevol_fast")

QUICKSTART = "builtin:quickstart"
MOST_NAMED = 20  # broken lines in one message


@dataclass(frozen=True)
class Data:
    """All rows of a data set, and how to read them."""

    rows: Sequence[Mapping[str, Any]]
    schema: Schema
    columns: Mapping[str, str]  # our name -> the row's key
    source: str

    def sha256(self) -> str:
        """Digest of the rows' content and order, whatever file format they came in."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def parts(self, index: int) -> Parts:
        """Row `index`'s own texts in their order, and whether each is a response."""
        return self.schema.parts(self.rows[index], self.columns)

    def fields(self, index: int) -> dict[str, str]:
        """`instruction`, `input` and `output` of row `index`, of a schema that has_fields."""
        return self.schema.fields(self.rows[index], self.columns)

    def turns(self, index: int) -> Turns:
        """Row `index` as [{"role": ..., "content": ...}, ...]; not of texts."""
        return self.schema.turns(self.rows[index], self.columns)


def load_data(
    data: Any, columns: Mapping[str, str] | None = None, *, text_column: str | None = None, skip_broken: bool = False
) -> tuple[Data, list[int]]:
    """Read a data set and check every row.

    Args:
        data: the name of a file or of a saved `datasets` folder, "builtin:quickstart"; a list of rows (dicts) or of
            texts; a Hugging Face `datasets.Dataset`; or what an earlier call returned.
        columns: other names for our columns, {"instruction": "question", ...}.
        text_column: rows are of any kind, and this key's value is their text.
        skip_broken: leave broken lines and malformed rows aside; row numbers count the rows that are left.

    Returns:
        The data set, and the indices of the rows with an empty instruction or output, or text.

    Raises:
        InputError: no such file, broken lines or malformed rows (file, line, what; the first 20 of them), an unknown
            schema, no rows.
    """
    if isinstance(data, Data):
        return data, [index for index, row in enumerate(data.rows) if data.schema.check(row, data.columns)]
    names = _names(columns, text_column)
    if isinstance(data, str | os.PathLike):
        source = os.fspath(data)
        found, kind = _generated() if source == QUICKSTART else _read(source)
    else:
        source = "rows"
        if isinstance(data, list) and data and isinstance(data[0], str):
            return _texts(data, columns, text_column)
        found, kind = _in_memory(data)
    loaded, empty = _checked(found, names, source, skip_broken)
    log_rows(loaded, kind, empty)
    return loaded, empty


def _names(columns: Mapping[str, str] | None, text_column: str | None) -> dict[str, str]:
    """Our name of each part of a row -> the row's key."""
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


def _generated() -> tuple["Found", str]:
    from ..demo.rows import generate_rows

    return Found(generate_rows(), "row"), "generated rows"


def _in_memory(rows: Any) -> tuple["Found", str]:
    """Rows out of a list or of a datasets.Dataset."""
    if hasattr(rows, "column_names") and hasattr(rows, "to_list"):
        return Found(rows.to_list(), "row"), "datasets.Dataset"
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f"rows: expected a file's name, a list of texts or of rows, at least one, or a datasets.Dataset, got "
            f"{type(rows).__name__ if rows != [] else 'an empty list'}"
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            wanted = "dict, as row 0" if index else "a text or a dict"
            raise InputError(f"rows, row {index}: expected {wanted}, got {type(row).__name__}")
    return Found(rows, "row"), "a list"


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
class Found:
    """What a file holds: rows, where they stand in it, and what is broken."""

    rows: list[dict]
    unit: str  # "line" or "row": what the places count
    places: list[int] = field(default_factory=list)  # of the rows; empty: 0, 1, 2, ...
    broken: list[tuple[int, str]] = field(default_factory=list)  # places, and what is wrong there

    def place(self, index: int) -> int:
        """Where row `index` stands in the file."""
        return self.places[index] if self.places else index


def _checked(found: Found, names: dict[str, str], path: str, skip_broken: bool) -> tuple[Data, list[int]]:
    """The rows that are whole as a data set, and the empty ones among them. Raises as load_data does."""
    if not found.rows and not found.broken:
        raise InputError(f"{path}: no rows; expected at least one")
    rows, empty, broken, schema = [], [], list(found.broken), None
    for index, row in enumerate(found.rows):
        try:
            schema = schema or (TEXT if "text" in names else schema_of(row, names))
            _check_values(row)
            is_empty = schema.check(row, names)
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
    if not rows or schema is None:
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
            f"{path}: {len(broken)} broken {unit}s{more}; mend them, or leave them out: skip_broken=True",
            *lines,
        ]
    )


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
    found = Found([], "row")
    for number, row in enumerate(parse_json(text, str(path))):
        _take(found, number, row)
    return found


def _parse_lines(path: Path, text: str) -> Found:
    found = Found([], "line")
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
        splits = shown(", ".join(map(str, loaded)))
        raise InputError(f"{path}: expected one split, got {splits}; name one: {path}/{next(iter(loaded))}")
    try:
        loaded.data.validate(full=True)  # damaged offsets would be followed out of the file
        return loaded.to_list(), kind
    except Exception as error:
        raise InputError(f"{shown(path, 200)}: its columns are damaged: {reason(error)}") from error


def _check_values(row: Mapping[str, Any]) -> None:
    """Raises RowError for a row that cannot be written as JSON."""
    flaw = flaw_of(row)
    if flaw:
        raise RowError(flaw)


def log_rows(data: Data, kind: str, empty: Collection[int]) -> None:
    """Rows, exact duplicates, and rows with an empty instruction or output, or text. kind: of the file, for people."""
    log.info("data: %s, %s, %s schema, %d rows: %d repeat an earlier one, %d have an empty %s",
             data.source, kind, data.schema.name, len(data.rows), duplicates(data), len(empty),
             data.schema.required)  # fmt: skip


def duplicates(data: Data) -> int:
    """How many rows have the same texts as an earlier row; other keys, such as an id, do not count."""
    schema, columns = data.schema, data.columns
    read = schema.turns if schema.is_conversation else schema.parts
    return len(data.rows) - len({json.dumps(read(row, columns)) for row in data.rows})


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


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
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


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        import datasets
    except ImportError as error:
        raise InputError("parquet output needs the datasets package; pip install 'datasets>=3'") from error
    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(os.fspath(path))
