"""Rows in the formats that TRL, LLaMA-Factory and axolotl read."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .._common.errors import InputError
from .._common.files import write_json
from .._common.messages import shown
from .._common.reading import parse_json, read_text
from .dataset import Data
from .schemas import Alpaca, ResponseSchema
from .templates import prompt_of

TRAINERS = ("trl", "llama-factory", "axolotl")
DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's list of data sets by name


def check_trainer(trainer: str | None, output: Path) -> None:
    """
    Raises:
        InputError: there is no such trainer; it does not read such a file; the dataset_info.json beside it is not one.
    """
    if trainer not in (None, *TRAINERS):
        raise InputError(f"trainer: expected {', '.join(TRAINERS[:-1])} or {TRAINERS[-1]}, got {shown(trainer)}")
    if trainer != "llama-factory":
        return
    if output.suffix == ".gz" or output.name == DATASET_INFO:
        raise InputError(
            f"output {output}: LLaMA-Factory needs a .json, .jsonl or .parquet file that is not {DATASET_INFO}"
        )
    _dataset_info(output)


def check_responses(trainer: str | None, data: Data) -> None:
    """
    Raises:
        InputError: the rows are texts, which a trainer does not read.
    """
    if trainer:
        _schema(trainer, data)


def rows_for(trainer: str | None, data: Data, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """The rows in the trainer's format; None: unchanged.

    TRL: `prompt` and `completion` with our training text (TRL adds the end token), or `messages`. LLaMA-Factory:
    unchanged, and dataset_info.json names their keys. axolotl: alpaca's own keys for instructions, else unchanged.
    """
    rows = (data.rows[index] for index in indices)
    if trainer not in ("trl", "axolotl"):
        yield from rows
        return
    schema = _schema(trainer, data)
    for row in rows:
        if trainer == "axolotl":
            yield schema.axolotl_row(row, data.columns)
        elif isinstance(schema, Alpaca):
            fields = schema.fields(row, data.columns)
            yield {"prompt": prompt_of(fields["instruction"], fields["input"]), "completion": fields["output"]}
        else:
            yield schema.trl_row(row, data.columns)


def describe(trainer: str | None, data: Data, indices: Iterable[int], output: Path) -> list[str]:
    """How to name the rows to the trainer, as lines for the user; LLaMA-Factory's dataset_info.json is written, too."""
    if trainer is None:
        return []
    schema, kind = _schema(trainer, data), "parquet" if output.suffix == ".parquet" else "json"
    if trainer == "trl":
        return [f'TRL: train_dataset=load_dataset("{kind}", data_files="{output}", split="train")']
    if trainer == "llama-factory":
        info = output.with_name(DATASET_INFO)
        entry = schema.llama_factory_entry((data.rows[index] for index in indices), data.columns)
        write_json(info, _dataset_info(output) | {output.stem: {"file_name": output.name} | entry})
        return [f"{info}: LLaMA-Factory finds the rows by dataset: {output.stem}, dataset_dir: {output.parent}"]
    entry = {"path": str(output), "ds_type": kind} | schema.axolotl_entry(data.columns)
    return ["axolotl, in its config:", yaml.safe_dump({"datasets": [entry]}, sort_keys=False).rstrip()]


def _schema(trainer: str, data: Data) -> ResponseSchema:
    if not isinstance(data.schema, ResponseSchema):
        raise InputError(f"trainer {trainer}: trains on responses, which rows of the {data.schema.name} schema lack")
    return data.schema


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
