"""Versions of the software, and the roofs of the device."""

import os
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from bench.record import Record
from bench.timing import measure_roofs

PACKAGES = (
    "torch", "triton", "transformers", "numpy", "pytest", "pytest-benchmark", "hypothesis", "psutil", "accelerate",
    "matplotlib", "scikit-learn", "rich", "torchvision", "flash-attn", "av", "kernels", "scikit-video", "selenium",
)  # fmt: skip
TOOLS = ("ncu", "compute-sanitizer")


def measure(record: Record) -> None:
    """Record the versions of packages, the tools that are found, and the three roofs."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    record.put(
        packages={name: installed.get(name, "not installed") for name in PACKAGES},
        tools={name: tool(name) is not None for name in TOOLS},
    )
    record.put(roofs=asdict(measure_roofs()))


def tool(name: str) -> str | None:
    """Return the path of one of NVIDIA's tools, which may be outside the PATH, or None if there is none."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return shutil.which(name) or shutil.which(name, path=str(home / "bin"))
