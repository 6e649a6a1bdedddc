"""Files that a function takes beside the data set: embeddings, and indices of rows."""

import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .._common.errors import InputError
from .._common.messages import reason, shown
from .._common.reading import check_file, parse_json, read_text


def load_embeddings(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, without pickle.

    Raises:
        InputError: not there, not .npy, cut short, or not a float32 or float16 matrix.
    """
    check_file(path)
    x = _load_array(path, "numbers")
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype not in (np.float32, np.float16):
        shape = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else "an archive"
        raise InputError(
            f"{path}: expected one float32 or float16 array [N, D], got {shown(shape)}; convert it with astype and "
            "numpy.save"
        )
    return x


def load_row_numbers(path: Path, n: int) -> list[int]:
    """Rows already selected: a JSON list, picks.json or selected.json, or .npy (numbers, or a mask of n rows).

    Raises:
        InputError: none of these, or numbers that are not rows.
    """
    check_file(path)
    if path.suffix == ".npy":
        numbers = _load_array(path, "row numbers or a mask")
        if not isinstance(numbers, np.ndarray) or numbers.ndim != 1:
            shape = numbers.shape if isinstance(numbers, np.ndarray) else "an archive"
            raise InputError(f"{path}: expected a flat array of row numbers or a mask, got {shown(shape)}")
        numbers = np.flatnonzero(numbers) if numbers.dtype == np.bool_ and len(numbers) == n else numbers
        numbers = numbers.tolist()
    else:
        try:
            numbers = parse_json(read_text(path), str(path))
        except InputError as error:
            raise InputError(f"{error}; expected a JSON list of rows, a picks.json or a .npy file") from error
        numbers = numbers.get("indices") if isinstance(numbers, dict) else numbers
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise InputError(f"{path}: expected a flat list of row numbers, or a record with such a list as 'indices'")
    return numbers


def _load_array(path: Path, what: str) -> Any:
    """What numpy maps, so that a size that is claimed is not reserved; without pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a garbled header, which is an error below
            return np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, TypeError, EOFError, OSError, OverflowError, MemoryError, SyntaxError, RecursionError,
            tokenize.TokenError, zipfile.BadZipFile) as error:  # fmt: skip
        why = "" if "pickle" in str(error) else f": {reason(error)}"
        raise InputError(f"{path}: not a whole .npy array of {what}{why}; write one with numpy.save") from error
