"""What the selection functions accept, checked."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]I?)?B?", re.IGNORECASE)


def as_rows(x: Any, name: str = "x") -> torch.Tensor:
    """x, which messages call `name`, as a tensor [N, D] on its own memory.

    Raises:
        TypeError: not an array, or not float32, bfloat16 or float16.
        ValueError: not two-dimensional, or empty.
    """
    if isinstance(x, np.ndarray):
        if x.dtype not in (np.float32, np.float16):
            raise TypeError(f"{name}: expected float32, bfloat16 or float16, got {x.dtype}; convert it first")
        if any(stride < 0 for stride in x.strides):
            raise ValueError(f"{name}: expected a view with positive strides, got a reversed one; copy it first")
        with warnings.catch_warnings():  # a read-only memory map is fine: nothing here writes to x
            warnings.filterwarnings("ignore", message=".*not writable.*")
            x = torch.from_numpy(x)
    elif not isinstance(x, torch.Tensor) and hasattr(x, "__dlpack__"):
        x = torch.from_dlpack(x)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a numpy array, a torch tensor or a DLPack object, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, bfloat16 or float16, got {x.dtype}; convert it first")
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"{name}: expected shape [N, D] with N and D at least 1, got {tuple(x.shape)}")
    return x.detach()


def as_row_numbers(centers: Sequence[int] | np.ndarray | torch.Tensor, n: int, name: str = "centers") -> list[int]:
    """centers, which messages call `name`, as distinct row numbers in [0, n).

    Raises:
        TypeError: neither integers nor a boolean mask.
        ValueError: out of range, repeated, or a mask of another length.
    """
    array = np.asarray(centers.cpu() if isinstance(centers, torch.Tensor) else centers)
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise ValueError(f"{name}: expected a mask of shape ({n},), got {array.shape}")
        array = np.flatnonzero(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: expected row numbers or a boolean mask, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    outside = array[(array < 0) | (array >= n)]
    if outside.size:
        raise ValueError(f"{name}: expected row numbers from 0 to {n - 1}, got {outside[0]}")
    numbers, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        mask = "; a mask must be boolean" if len(array) == n and set(numbers.tolist()) <= {0, 1} else ""
        raise ValueError(f"{name}: row {numbers[counts > 1][0]} is given more than once{mask}")
    return [int(number) for number in array]


def as_count(k: int | None, available: int, radius: float | None) -> int:
    """How many rows to pick at most.

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
        raise ValueError(f"k: expected 0 to {available}, the rows that are not centers, got {k}")
    return int(k)


def as_radius(radius: float | None) -> float:
    """The squared radius at which to stop; negative for none.

    Raises:
        ValueError: negative, or not finite.
    """
    if radius is None:
        return -1.0
    if not 0.0 <= float(radius) < float("inf"):
        raise ValueError(f"radius: expected a finite distance of at least 0, got {radius!r}")
    return float(radius) ** 2


def as_device(device: Any, present: torch.device) -> torch.device:
    """Where the work on x, which is on `present`, is done; None: there.

    Raises:
        ValueError: not a device, not there, or not one that x's rows can be brought to.
    """
    if device is None:
        return present
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected None, 'cpu', 'cuda' or 'cuda:1', got {device!r}") from error
    if wanted.type == present.type and (wanted.type == "cpu" or wanted.index in (None, present.index)):
        return present
    if present.type != "cpu" or wanted.type != "cuda":
        raise ValueError(f"device: x is on {present} and can only be worked on there, got {device!r}")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected a GPU that is here, of which there are {torch.cuda.device_count()}, "
                         f"got {device!r}")  # fmt: skip
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def as_bytes(limit: int | str | None) -> int | None:
    """max_gpu_memory, an integer or a text such as "2GB" or "500 MiB", in bytes; None stays.

    Raises:
        TypeError: neither.
        ValueError: another text, or not positive.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer | str):
        raise TypeError(f"max_gpu_memory: expected bytes or a text such as '2GB', got {type(limit).__name__}")
    number = int(limit) if not isinstance(limit, str) else 0
    if isinstance(limit, str) and (found := SIZE.fullmatch(limit.strip())):
        unit = (found[2] or "").upper()
        number = int(float(found[1]) * (1024 if "I" in unit else 1000) ** " KMGT".index(unit[:1] or " "))
    if number < 1:
        raise ValueError(f"max_gpu_memory: expected bytes or a text such as '2GB', got {limit!r}")
    return number
