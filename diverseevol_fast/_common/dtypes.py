"""The floating-point dtypes of embeddings and weights, by name."""

import torch

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name without "torch.", such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
