"""Copies between the host and a device, neither of which waits for a GPU."""

import torch


def copy_to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values`, in host memory, on the device; a GPU copies from pinned memory once its stream comes to it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def copy_to_host(values: torch.Tensor) -> torch.Tensor:
    """`values`, on a GPU, in pinned host memory; they may be read once the stream has come this far."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
