"""Which implementation of an operation runs: the one place where `impl` is understood."""

from typing import Literal

Impl = Literal["auto", "reference", "triton"]


def resolve(impl: Impl) -> Literal["reference"]:
    """The implementation that `impl` stands for.

    `"auto"` takes the fastest one there is, `"reference"` the PyTorch one that defines the results. A requested
    implementation never becomes another.

    Raises:
        ValueError: `impl` is none of the three names.
        RuntimeError: `impl` cannot run here.
    """
    if impl == "triton":
        raise RuntimeError(
            "impl='triton' cannot run: this version has no Triton kernels yet. Use impl='auto' or impl='reference'."
        )
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl must be 'auto', 'reference' or 'triton', got {impl!r}")
    return "reference"
