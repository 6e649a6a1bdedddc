"""Selected rows as other trainers read them: TRL, LLaMA-Factory and axolotl."""

from collections.abc import Iterable, Iterator, Mapping
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
            f"output {output}: LLaMA-Factory needs a .json, .jsonl or .parquet file that is not {DATASET_INFO}"
        )
    _dataset_info(output)


def rows_for(trainer: str | None, data: Data, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """The rows as the trainer reads them; None: as they came.

    TRL: `prompt` and `completion` with our training text (no end token, which TRL adds), or `messages`. LLaMA-Factory:
    as they came, dataset_info.json says what their keys are. axolotl: alpaca's own keys, or as they came.
    """
    for index in indices:
        row = data.rows[index]
        if trainer == "trl" and data.schema.has_fields:
            fields = data.fields(index)
            prompt = prompt_of(fields["instruction"], fields["input"])
            yield {"prompt": prompt, "completion": fields["output"]}
        elif trainer == "trl":
            yield data.schema.trl_row(row, data.columns)
        elif trainer == "axolotl":
            yield data.schema.axolotl_row(row, data.columns)
        else:
            yield row


def describe(trainer: str | None, data: Data, indices: Iterable[int], output: Path) -> list[str]:
    """What the trainer is to be told, as lines for the user; for LLaMA-Factory also written beside the rows."""
    schema = data.schema
    if trainer == "trl":
        kind = "parquet" if output.suffix == ".parquet" else "json"
        return [f'TRL: train_dataset=load_dataset("{kind}", data_files="{output}", split="train")']
    if trainer == "llama-factory":
        info = output.with_name(DATASET_INFO)
        entry = schema.llama_factory_entry((data.rows[index] for index in indices), data.columns)
        write_json(info, _dataset_info(output) | {output.stem: {"file_name": output.name} | entry})
        return [f"{info}: LLaMA-Factory finds the rows by dataset: {output.stem}, dataset_dir: {output.parent}"]
    if trainer == "axolotl":
        kind = "parquet" if output.suffix == ".parquet" else "json"
        entry = {"path": str(output), "ds_type": kind} | schema.axolotl_entry(data.columns)
        return ["axolotl, in its config:", yaml.safe_dump({"datasets": [entry]}, sort_keys=False).rstrip()]
    return []


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
