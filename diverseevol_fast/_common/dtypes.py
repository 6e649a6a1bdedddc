"""The dtypes that embeddings are stored in, and the names that files, messages and kernels have for dtypes."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of any dtype, such as "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
