"""The arguments of the selection functions, checked and converted."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..ops.checks import STORED

SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]I?)?B?", re.IGNORECASE)
LARGEST_MEMORY = 1 << 62
BOUND_BYTES = 16  # of a row: its bound, the centers applied to it, and a copy of each
SHOWN = 80  # characters of a wrong value in a message
# numpy and torch raise these, without the argument's name.
CONVERSION_ERRORS = (AttributeError, TypeError, ValueError, RuntimeError, OverflowError, BufferError)


def shown(value: Any) -> str:
    """The text of a wrong value for a message, at most SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def as_rows(x: Any, name: str = "x") -> torch.Tensor:
    """x, which messages call `name`, as a tensor [N, D] of float32, bfloat16 or float16.

    A numpy array, tensor or DLPack object of such a dtype is not copied. Other real numbers are rounded to float32 in a
    copy, where those beyond its range become infinite; lists and reversed views are copied.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: not two-dimensional, or empty.
    """
    if isinstance(x, list | tuple):
        x = _converted(np.asarray, x, name)
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        if x.dtype not in (np.float32, np.float16):
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
        elif any(stride < 0 for stride in x.strides):
            x = x.copy()
    tensor = _as_tensor(x, name)
    is_real = not (tensor.is_complex() or tensor.is_quantized or tensor.is_nested)
    if not is_real or tensor.layout != torch.strided or tensor.device.type == "meta":
        kind = "a nested tensor" if tensor.is_nested else f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {kind}")
    return _checked_shape(tensor if tensor.dtype in STORED else tensor.to(torch.float32), name)


def as_store(x: Any) -> torch.Tensor:
    """x, which messages call "store", as a writable tensor [n, D] that shares its memory.

    Raises:
        TypeError: not an array, or not float32, bfloat16 or float16.
        ValueError: not two-dimensional, empty, read-only, or rows that share memory.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        if not x.flags.writeable:
            raise ValueError("store: expected a writable array")
        if any(stride < 0 for stride in x.strides):
            raise ValueError("store: expected a view with positive strides, got a reversed one; copy it first")
    tensor = _as_tensor(x, "store")
    if tensor.dtype not in STORED or tensor.layout != torch.strided or tensor.device.type == "meta":
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise TypeError(f"store: expected dense float32, bfloat16 or float16, got {kind}")
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError("store: expected memory of its own for every value, got an expanded view; clone it first")
    return _checked_shape(tensor, "store")


def _as_tensor(x: Any, name: str) -> torch.Tensor:
    """x as a tensor that shares its memory.

    Raises:
        TypeError: x is no array or tensor.
    """
    if isinstance(x, np.ndarray):
        with warnings.catch_warnings():  # nothing here writes to x: a read-only memory map is fine
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return _converted(torch.from_numpy, x, name)
    if not isinstance(x, torch.Tensor) and hasattr(x, "__dlpack__"):
        return _converted(torch.from_dlpack, x, name)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected an array, a tensor or a list of rows of numbers, got {type(x).__name__}")
    return x


def _converted(convert: Callable[[Any], Any], x: Any, name: str) -> Any:
    """convert(x).

    Raises:
        TypeError: x cannot be converted.
    """
    try:
        return convert(x)
    except CONVERSION_ERRORS as error:
        kind = f"{type(x).__name__} of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        reason = shown(str(error).partition("\n")[0])
        raise TypeError(f"{name}: expected rows of numbers, all of one length, got {kind}: {reason}") from error


def _checked_shape(x: torch.Tensor, name: str) -> torch.Tensor:
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"{name}: expected shape [N, D] with N and D at least 1, got {tuple(x.shape)}")
    if len(x) * BOUND_BYTES > physical_memory():
        raise ValueError(f"{name}: {len(x)} rows need more memory than there is, for their bounds alone")
    return x.detach()


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def as_integers(values: Any, name: str, expected: str = "integers") -> np.ndarray:
    """values, which messages call `name` and describe as `expected`, as an array of integers or booleans.

    Raises:
        TypeError: values of another kind.
    """
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{name}: expected {expected}, got dtype {values.dtype}")
        values = values.detach().cpu()
    array = _converted(np.asarray, values, name)
    if array.size and array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected {expected}, got dtype {array.dtype}")
    return array


def as_indices(centers: Sequence[int] | np.ndarray | torch.Tensor, n: int, name: str = "centers") -> list[int]:
    """centers, which messages call `name`, as distinct indices in [0, n).

    Raises:
        TypeError: neither integers nor a boolean mask.
        ValueError: out of range, repeated, or a mask of another length.
    """
    array = as_integers(centers, name, "row numbers or a boolean mask")
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise ValueError(f"{name}: expected a mask of shape ({n},), got {array.shape}")
        array = np.flatnonzero(array)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    outside = array[(array < 0) | (array >= n)]
    if outside.size:
        raise ValueError(f"{name}: expected row numbers from 0 to {n - 1}, got {outside[0]}")
    distinct, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        mask = "; a mask must be boolean" if len(array) == n and set(distinct.tolist()) <= {0, 1} else ""
        raise ValueError(f"{name}: row {distinct[counts > 1][0]} is given more than once{mask}")
    return [int(index) for index in array]


def as_count(k: int | None, available: int, radius: float | None) -> int:
    """The largest number of rows to pick.

    Raises:
        TypeError: k is not an integer.
        ValueError: k is out of range, or None without a radius.
    """
    if k is None:
        if radius is None:
            raise ValueError("k: expected a number of rows, or None with a radius")
        return available
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k: expected an integer, got {type(k).__name__}")
    if not 0 <= k <= available:
        raise ValueError(f"k: expected 0 to {available}, the rows that are not centers, got {shown(k)}")
    return int(k)


def as_radius(radius: float | None) -> float:
    """The squared radius at which to stop; negative for none.

    Raises:
        TypeError: not a number.
        ValueError: negative, or not finite.
    """
    if radius is None:
        return -1.0
    if isinstance(radius, bool) or not isinstance(radius, int | float | np.integer | np.floating):
        raise TypeError(f"radius: expected a number, got {type(radius).__name__}")
    if not 0 <= radius <= sys.float_info.max:
        raise ValueError(f"radius: expected a finite distance of at least 0, got {shown(radius)}")
    return float(radius) * float(radius)


def as_seed(seed: Any) -> int:
    """
    Raises:
        TypeError: not an integer.
        ValueError: negative.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {shown(seed)}")
    return int(seed)


def as_device(device: Any, present: torch.device) -> torch.device:
    """The device that does the work on x, which is on `present`; None: `present`.

    Raises:
        ValueError: not a device, a GPU that this machine lacks, or one that x's rows cannot be copied to.
    """
    if device is None:
        return present
    try:
        wanted = torch.device(device)
    except CONVERSION_ERRORS as error:
        raise ValueError(f"device: expected None, 'cpu', 'cuda' or 'cuda:1', got {shown(device)}") from error
    if wanted.type == present.type and (wanted.type == "cpu" or wanted.index in (None, present.index)):
        return present
    if present.type != "cpu" or wanted.type != "cuda":
        raise ValueError(f"device: x is on {present} and can only be worked on there, got {shown(device)}")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected a GPU that is here, of which there are {torch.cuda.device_count()}, got {shown(device)}"
        )
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def as_bytes(limit: int | str | None) -> int | None:
    """max_gpu_memory, an integer or a text such as "2GB" or "500 MiB", in bytes; None stays None.

    Raises:
        TypeError: neither an integer nor a text.
        ValueError: another text, or not positive.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer | str):
        raise TypeError(f"max_gpu_memory: expected bytes or a text such as '2GB', got {type(limit).__name__}")
    number = int(limit) if not isinstance(limit, str) else 0
    if isinstance(limit, str) and (match := SIZE.fullmatch(limit.strip())):
        unit = (match[2] or "").upper()
        size = float(match[1]) * (1024 if "I" in unit else 1000) ** " KMGT".index(unit[:1] or " ")
        number = int(min(size, LARGEST_MEMORY))
    if not 1 <= number < LARGEST_MEMORY:
        raise ValueError(f"max_gpu_memory: expected bytes or a text such as '2GB', got {shown(limit)}")
    return number
