"""Which implementation of an operation runs: the one place where `impl` is understood."""

import importlib.util
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line starts without it
    import torch

Impl = Literal["auto", "reference", "triton"]
INSTALLED = importlib.util.find_spec("triton") is not None


def resolve(impl: Impl, device: "torch.device") -> Literal["reference", "triton"]:
    """The implementation that `impl` stands for on `device`.

    `"auto"` takes the Triton kernels on a GPU and the PyTorch reference, which defines the results, elsewhere. A
    requested implementation never becomes another.

    Raises:
        ValueError: `impl` is none of the three names.
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
    """Whether Triton's interpreter runs the kernels, on the host's memory, instead of a GPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as Triton reads it
