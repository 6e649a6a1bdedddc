"""Copies between the host and a device, neither of which waits for a GPU."""

import torch


def copy_to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device of `values` in host memory; a GPU makes it later, in the order of its stream."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def copy_to_host(values: torch.Tensor) -> torch.Tensor:
    """A copy in pinned host memory of `values` on a GPU; it may be read once the stream has done the copy."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
