"""Rows in the formats that TRL, LLaMA-Factory and axolotl read."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .._common.errors import InputError
from .._common.files import write_json
from .._common.reading import parse_json, read_text
from .dataset import Data
from .templates import prompt_of

DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's list of data sets by name


def check_trainer(trainer: str | None, output: Path) -> None:
    """
    Raises:
        InputError: the trainer does not read such a file, or the dataset_info.json beside it is not one.
    """
    if trainer != "llama-factory":
        return
    if output.suffix == ".gz" or output.name == DATASET_INFO:
        raise InputError(
            f"output {output}: LLaMA-Factory needs a .json, .jsonl or .parquet file that is not {DATASET_INFO}"
        )
    _dataset_info(output)


def rows_for(trainer: str | None, data: Data, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """The rows in the trainer's format; None: unchanged.

    TRL: `prompt` and `completion` with our training text (TRL adds the end token), or `messages`. LLaMA-Factory:
    unchanged, and dataset_info.json names their keys. axolotl: alpaca's own keys for instructions, else unchanged.
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
    """How to name the rows to the trainer, as lines for the user; LLaMA-Factory's dataset_info.json is written, too."""
    schema, kind = data.schema, "parquet" if output.suffix == ".parquet" else "json"
    if trainer == "trl":
        return [f'TRL: train_dataset=load_dataset("{kind}", data_files="{output}", split="train")']
    if trainer == "llama-factory":
        info = output.with_name(DATASET_INFO)
        entry = schema.llama_factory_entry((data.rows[index] for index in indices), data.columns)
        write_json(info, _dataset_info(output) | {output.stem: {"file_name": output.name} | entry})
        return [f"{info}: LLaMA-Factory finds the rows by dataset: {output.stem}, dataset_dir: {output.parent}"]
    if trainer == "axolotl":
        entry = {"path": str(output), "ds_type": kind} | schema.axolotl_entry(data.columns)
        return ["axolotl, in its config:", yaml.safe_dump({"datasets": [entry]}, sort_keys=False).rstrip()]
    return []


def _dataset_info(output: Path) -> dict[str, Any]:
    """The entries of the dataset_info.json beside the output; none if there is no such file."""
    path = output.with_name(DATASET_INFO)
    try:
        entries = parse_json(read_text(path), str(path)) if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; mend it, or write the rows to another folder") from error
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object of data sets, got {type(entries).__name__}")
    return entries
