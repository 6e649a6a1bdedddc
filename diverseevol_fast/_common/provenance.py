"""Provenance: what a file was made from, and in what two provenances differ.

A provenance is a dictionary. The files of `embed` and `select` share the keys "data_sha256" (Data.sha256), "data_rows"
(the number of rows of the whole data set) and "model_sha256" (models.folder_sha256). To check_same_data a key that is
missing or None is unknown, and differs from nothing.
"""

import platform
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import read_json
from .messages import shown

DATA_KEYS = {"data_sha256": "content (SHA-256)", "data_rows": "number of rows"}


def sidecar_of(path: Path) -> Path:
    """The JSON file beside `path` with its provenance."""
    return path.with_name(path.name + ".json")


def versions() -> dict[str, str]:
    """The versions of this package, of the packages that decide its results, and of Python."""
    names = ("diverseevol_fast", "torch", "transformers", "tokenizers", "numpy")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


def of_embeddings(path: Path, rows: int) -> dict[str, Any]:
    """The provenance of a .npy file of `rows` embeddings, from the <path>.json that `embed` writes beside it.

    Raises:
        InputError: <path>.json is about another number of embeddings, or about some of a data set's rows; or rows are
            predicted, not embedded by the model.
    """
    sidecar = sidecar_of(path)
    provenance = of_file(sidecar)
    if "rows" in provenance and provenance["rows"] != rows:
        raise InputError(
            f"{sidecar}: is about {provenance['rows']} embeddings, but {path.name} has {rows}: that is another file; "
            "remove the .json file if the embeddings are right"
        )
    if "lazy" in provenance:
        raise InputError(
            f"{path}: was made by a run with lazy_rounds, and holds predicted embeddings of the rows that were not "
            "embedded; embed all rows with diverseevol embed"
        )
    if provenance.get("data_rows", rows) != rows:
        raise InputError(
            f"{path}: holds {rows} of the data set's {provenance['data_rows']} rows, those that skip_empty left; "
            "expected all of them, as diverseevol embed writes them"
        )
    return {"data_rows": rows} | provenance


def recorded(record: dict[str, Any]) -> Any:
    """The provenance in a record, which version 0.1 called "made_from"; None where there is none."""
    return record.get("provenance", record.get("made_from"))


def of_picks(path: Path) -> dict[str, Any]:
    """The provenance of a file of picks: a record of `select`, or a run's state/rd_<r>/selected.json."""
    if path.suffix == ".npy":
        return {}
    if path.name == "selected.json" and path.absolute().parent.parent.name == "state":
        return of_file(path.absolute().parent.parent / "run.json")
    return of_file(path).get("provenance") or {}


def output_of_picks(path: Path) -> str | None:
    """The name of the output that a record of `select` belongs to; None where the record has none."""
    return of_file(path).get("output")


def check_same_data(of: dict[str, dict[str, Any]], override: str) -> None:
    """Raises InputError unless all are of one data set, as far as is known.

    Args:
        of: the name of a file in messages -> its provenance.
        override: the keyword that accepts other data, for the message.
    """
    for key, meaning in DATA_KEYS.items():
        known = [(name, each[key]) for name, each in of.items() if each.get(key) is not None]
        for name, value in known[1:]:
            if value != known[0][1]:
                raise InputError(
                    f"{name}: is of other data than {known[0][0]}: its {meaning} is {_short(value)}, not "
                    f"{_short(known[0][1])}; give what belongs together, or {override} if the row numbers are right"
                )


def differences(before: dict[str, Any], now: dict[str, Any], owner: str, ignored: Collection[str] = ()) -> list[str]:
    """A text for each key that differs: "key: <owner> has x, now y"; of a digest "key_sha256", "key: other content".

    A key of a dictionary inside is "outer.inner". Keys in `ignored` may differ.
    """
    before, now = _flat(before, ignored), _flat(now, ignored)
    return [
        f"{shown(key.removesuffix('_sha256'), 40)}: other content"
        if key.endswith("_sha256")
        else f"{shown(key, 40)}: {owner} has {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def of_file(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty where there is no such file or it holds no dictionary."""
    if not path.is_file():  # reading a pipe could block for ever
        return {}
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(provenance: dict[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in provenance.items():
        if key not in ignored:
            flat |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    return shown(repr(value), 30)
