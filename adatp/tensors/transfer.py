"""Host values on their way to a device, without the host waiting for it."""

import torch
from torch import Tensor

PAGEABLE = 64 << 10  # bytes of pageable memory that CUDA copies aside at once; for more the host would wait


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to `device`. The host does not wait for the copy of one that it holds itself."""
    if tensor.is_cpu and device.type == "cuda" and tensor.nbytes > PAGEABLE:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
