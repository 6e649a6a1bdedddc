"""Small files that a command is given beside the data set: embeddings, row numbers; and names of columns."""

from pathlib import Path

import numpy as np
import yaml

from .errors import InputError
from .files import read_json


def load_embeddings(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, without pickle.

    Raises:
        InputError: not there, not .npy, cut short, or not a float32 or float16 matrix.
    """
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, EOFError, OSError) as error:
        reason = "" if "pickle" in str(error) else f": {error}"
        raise InputError(f"{path}: not a whole .npy array of numbers{reason}; write one with numpy.save") from error
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype not in (np.float32, np.float16):
        shape = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else "an archive"
        raise InputError(
            f"{path}: expected one float32 or float16 array [N, D], got {shape}; convert it with astype and numpy.save"
        )
    return x


def load_row_numbers(path: Path, n: int) -> list[int]:
    """Rows already selected: a JSON list, picks.json or selected.json, or .npy (numbers, or a mask of n rows).

    Raises:
        InputError: none of these, or numbers that are not rows.
    """
    try:
        if path.suffix == ".npy":
            numbers = np.load(path, allow_pickle=False)
            numbers = np.flatnonzero(numbers) if numbers.dtype == np.bool_ and len(numbers) == n else numbers
            numbers = numbers.tolist()
        else:
            numbers = read_json(path)
            numbers = numbers.get("indices") if isinstance(numbers, dict) else numbers
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON list of rows, a picks.json or a .npy file: {error}") from error
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise InputError(f"{path}: expected a flat list of row numbers, or a record with such a list as 'indices'")
    return numbers


def columns_of(text: str | None) -> dict[str, str] | None:
    """--columns as a mapping.

    Raises:
        InputError: it is none.
    """
    try:
        columns = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise InputError(f"--columns: not a YAML mapping: {text!r}") from error
    if columns is not None and not isinstance(columns, dict):
        raise InputError(f"--columns: expected a mapping such as '{{instruction: question}}', got {text!r}")
    return columns
