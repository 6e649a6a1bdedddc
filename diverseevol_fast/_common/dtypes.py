"""The dtypes that embeddings are stored in, by the names that settings, files, messages and kernels have for them.

The module does not import torch until a dtype is needed: the config is checked against these names without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name, such as torch.float32 of "float32"."""
    import torch

    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of any dtype, such as "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
