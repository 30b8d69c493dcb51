"""Copies from the host to a device that the host does not wait for."""

import torch
from torch import Tensor

PAGEABLE = 64 << 10  # bytes; the host waits for CUDA's copies from pageable memory that are larger than this


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`. The host does not wait for the copy if the tensor is in host memory."""
    if tensor.is_cpu and device.type == "cuda" and tensor.nbytes > PAGEABLE:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
