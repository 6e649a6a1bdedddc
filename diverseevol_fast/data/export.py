"""Selected rows as other trainers read them: TRL, LLaMA-Factory and axolotl."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from .._common.errors import InputError
from .._common.files import write_json
from .._common.reading import parse_json, read_text
from .dataset import Data
from .templates import prompt_of

DATASET_INFO = "dataset_info.json"  # where LLaMA-Factory looks names of data sets up


def check_trainer(trainer: str | None, output: Path) -> None:
    """
    Raises:
        InputError: a file that the trainer does not read, or a dataset_info.json that is none.
    """
    if trainer != "llama-factory":
        return
    if output.suffix == ".gz" or output.name == DATASET_INFO:
        raise InputError(
            f"--output {output}: LLaMA-Factory needs a .json, .jsonl or .parquet file that is not {DATASET_INFO}"
        )
    _dataset_info(output)


def rows_for(trainer: str | None, data: Data, rows: Iterable[int]) -> Iterator[dict]:
    """The rows as the trainer reads them; None: as they came.

    TRL: `prompt` and `completion` with our training text (no end token, which TRL adds), or `messages`. LLaMA-Factory:
    as they came, dataset_info.json says what their keys are. axolotl: alpaca's own keys, or as they came.
    """
    for row in rows:
        if trainer == "trl":
            yield _trl_row(data, int(row))
        elif trainer == "axolotl" and data.schema == "alpaca":
            yield {name: data.field(int(row), name) for name in ("instruction", "input", "output")}
        else:
            yield data.rows[row]


def describe(trainer: str | None, data: Data, rows: Iterable[int], output: Path) -> list[str]:
    """What the trainer is to be told, as lines for the user; for LLaMA-Factory also written beside the rows."""
    if trainer == "trl":
        kind = "parquet" if output.suffix == ".parquet" else "json"
        return [f'TRL: train_dataset=load_dataset("{kind}", data_files="{output}", split="train")']
    if trainer == "llama-factory":
        info = output.with_name(DATASET_INFO)
        write_json(info, _dataset_info(output) | {output.stem: _llama_factory_entry(data, rows, output)})
        return [f"{info}: LLaMA-Factory finds the rows by dataset: {output.stem}, dataset_dir: {output.parent}"]
    if trainer == "axolotl":
        stanza = yaml.safe_dump({"datasets": [_axolotl_entry(data, output)]}, sort_keys=False).rstrip()
        return ["axolotl, in its config:", stanza]
    return []


def _trl_row(data: Data, row: int) -> dict[str, Any]:
    if data.schema != "alpaca":
        return {"messages": data.conversation(row)}
    prompt = prompt_of(data.field(row, "instruction"), data.field(row, "input"))
    return {"prompt": prompt, "completion": data.field(row, "output")}


def _dataset_info(output: Path) -> dict[str, Any]:
    """The entries that are there already."""
    path = output.with_name(DATASET_INFO)
    try:
        entries = parse_json(read_text(path), str(path)) if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; mend it, or write the rows to another folder") from error
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object of data sets, got {type(entries).__name__}")
    return entries


def _llama_factory_entry(data: Data, rows: Iterable[int], output: Path) -> dict[str, Any]:
    names = data.columns
    if data.schema == "alpaca":
        columns = {"prompt": names["instruction"], "response": names["output"]}
        if any(names["input"] in data.rows[row] for row in rows):  # it must not ask for a column that is not there
            columns["query"] = names["input"]
        return {"file_name": output.name, "formatting": "alpaca", "columns": columns}
    key = "messages" if data.schema == "messages" else "conversations"
    entry = {"file_name": output.name, "formatting": "sharegpt", "columns": {"messages": names[key]}}
    if data.schema == "messages":  # its defaults are ShareGPT's words
        entry["tags"] = {
            "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system",
        }  # fmt: skip
    return entry


def _axolotl_entry(data: Data, output: Path) -> dict[str, Any]:
    entry = {"path": str(output), "ds_type": "parquet" if output.suffix == ".parquet" else "json"}
    if data.schema == "alpaca":
        return entry | {"type": "alpaca"}
    key, role, content = (
        ("messages", "role", "content") if data.schema == "messages" else ("conversations", "from", "value")
    )
    return entry | {
        "type": "chat_template",
        "field_messages": data.columns[key],
        "message_property_mappings": {"role": role, "content": content},
    }
