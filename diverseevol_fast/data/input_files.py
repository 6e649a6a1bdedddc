"""The files that a user gives beside the data set: embeddings, and indices of rows."""

import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .._common.errors import InputError
from .._common.messages import reason, shown
from .._common.reading import check_file, parse_json, read_text

NUMPY_LOAD_ERRORS = (ValueError, TypeError, EOFError, OSError, OverflowError, MemoryError, SyntaxError, RecursionError)
NUMPY_LOAD_ERRORS += (tokenize.TokenError, zipfile.BadZipFile)


def load_embeddings(path: Path) -> np.ndarray:
    """The embeddings in a .npy file: [N, D] float32 or float16, memory-mapped and read without pickle.

    Raises:
        InputError: the file is missing, not .npy, cut short, or not such a matrix.
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
    """The indices in a JSON list, picks.json or selected.json, or .npy file (indices, or a mask of n rows).

    Raises:
        InputError: the file is none of these, or holds something else than whole numbers.
    """
    check_file(path)
    if path.suffix == ".npy":
        array = _load_array(path, "row numbers or a mask")
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            shape = array.shape if isinstance(array, np.ndarray) else "an archive"
            raise InputError(f"{path}: expected a flat array of row numbers or a mask, got {shown(shape)}")
        is_mask = array.dtype == np.bool_ and len(array) == n
        indices = (np.flatnonzero(array) if is_mask else array).tolist()
    else:
        try:
            value = parse_json(read_text(path), str(path))
        except InputError as error:
            raise InputError(f"{error}; expected a JSON list of rows, a picks.json or a .npy file") from error
        indices = value.get("indices") if isinstance(value, dict) else value
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):
        raise InputError(f"{path}: expected a flat list of row numbers, or a record with such a list as 'indices'")
    return indices


def _load_array(path: Path, what: str) -> Any:
    """The array of a .npy file, read without pickle. Mapped, so that a false size in its header reserves no memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of a garbled header, which is an error below
            return np.load(path, allow_pickle=False, mmap_mode="r")
    except NUMPY_LOAD_ERRORS as error:
        why = "" if "pickle" in str(error) else f": {reason(error)}"
        raise InputError(f"{path}: not a whole .npy array of {what}{why}; write one with numpy.save") from error
