"""The machine and the software of a measurement."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers


def describe_machine(model: Any, impl: str) -> dict[str, Any]:
    """Describe the machine and the software, as JSON-ready values.

    Args:
        model: a Hugging Face model, on its device.
        impl: implementation of the three operations, as `resolve` returns it.
    """
    return {
        "platform": platform.platform(),
        "processor": processor(),
        **compute(model.dtype),
        "device": gpu(model.device) or str(model.device),
        "attention": model.config._attn_implementation,
        "impl": impl,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def compute(dtype: torch.dtype) -> dict[str, Any]:
    """Return the number of cores and threads, and the data type."""
    return {"cores": cores(), "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch.")}


def gpu(device: torch.device) -> str | None:
    """Return the GPU's name, or None if the device is no GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
