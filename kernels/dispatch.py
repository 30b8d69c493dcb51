"""The choice of the implementation of an operation. Only this module interprets `impl`."""

import importlib.util
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line starts without torch
    import torch

Impl = Literal["auto", "reference", "triton"]
INSTALLED = importlib.util.find_spec("triton") is not None


def resolve(impl: Impl, device: "torch.device") -> Literal["reference", "triton"]:
    """Return the implementation that `impl` stands for on `device`.

    `"auto"` takes the Triton kernels on a GPU, and the PyTorch reference on other devices. The reference defines the
    results. A request for `"reference"` or `"triton"` is never replaced by the other one.

    Raises:
        ValueError: `impl` is not one of the three names.
        RuntimeError: `impl` cannot run on `device`.
    """
    if impl == "reference":
        return "reference"
    if impl == "auto":
        return "triton" if device.type == "cuda" and INSTALLED else "reference"
    if impl != "triton":
        raise ValueError(f"impl must be 'auto', 'reference' or 'triton', got {impl!r}")
    if not INSTALLED:
        raise RuntimeError("impl='triton' cannot run: Triton is not installed. Install it, or use impl='auto'.")
    if device.type not in ("cuda", "meta") and not interpreted():
        raise RuntimeError(
            f"impl='triton' cannot run on device {str(device)!r}: it needs a GPU (CUDA or ROCm). Use impl='auto', or "
            "set TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter, slowly."
        )
    return "triton"


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels, in the host's memory and without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as Triton reads it
