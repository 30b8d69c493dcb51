"""What a launch has to know of the machine."""

from functools import cache

import torch

INTERPRETED_PROCESSORS = 4  # so that the interpreter, which has none, still splits work as a GPU does


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of a GPU. Asked for once: it is a driver call."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
