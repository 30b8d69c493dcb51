"""Tools that turn cases and providers into the rows of a table."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from adatp.evaluation.machine import compute, gpu, processor
from adatp_kernels.dispatch import interpreted
from bench.costs import Cost, Roofs
from bench.inputs import DEVICE, DTYPE
from bench.timing import CLOCKS

# Largest number of FLOPs of a call on a CPU, so that the whole run takes only minutes on two cores.
CPU_FLOPS = 100e9
# Share of the free memory that one call may take.
MEMORY = 0.8


@dataclass(frozen=True)
class Row:
    """A line of the table: a result in seconds, or the reason why there is none.

    Attributes:
        group: the operation and its case.
        provider: the implementation.
        cache: state of the cache ("cold" or "warm"); empty on a CPU.
        baseline: whether the ratios of the group refer to this row.
        reason: why there is no result; empty if there is one.
        median, q1, q3: median and quartiles of the seconds.
        rounds: number of timed calls.
        cost: the least work, if there is a cost model.
    """

    group: str
    provider: str
    cache: str = ""
    baseline: bool = False
    reason: str = ""
    median: float = 0.0
    q1: float = 0.0
    q3: float = 0.0
    rounds: int = 0
    cost: Cost | None = None

    @property
    def name(self) -> str:
        return f"{self.provider} {self.cache}".strip()

    def achieved(self, roofs: Roofs) -> dict[str, float]:
        """Return the rates, and the distance from the roof."""
        if self.reason or self.cost is None:
            return {}
        return {
            "gb_per_s": self.cost.bytes / self.median / 1e9,
            "share_of_copy": self.cost.bytes / self.median / roofs.copy,
            "tflop_per_s": self.cost.flops / self.median / 1e12,
            "share_of_matmul": self.cost.flops / self.median / roofs.matmul,
            "roof_s": roofs.seconds(self.cost),
            "times_roof": self.median / roofs.seconds(self.cost),
        }


class Measure(Protocol):
    """A function that runs a provider once, checks the result and times it, or notes why it does not run."""

    def __call__(
        self,
        run: Callable[[], Any],
        provider: str,
        cache: str = "",
        *,
        baseline: bool = False,
        reason: str = "",
        check: Callable[[Any], None] = lambda result: None,
        cost: Cost | None = None,
    ) -> None: ...


def grid(cases: Mapping[str, Any], providers: Iterable[str]) -> list[Any]:
    """Return the parameters (group, case, provider, cache) of every case with every provider and every clock."""
    return [
        pytest.param(
            group, case, provider, cache,
            id=f"{group}, {provider}, {cache}".removesuffix(", "),
            marks=pytest.mark.benchmark(group=group, timer=clock),
        )
        for group, case in cases.items()
        for provider in providers
        for cache, clock in CLOCKS.items()
    ]  # fmt: skip


def too_much(memory: float, flops: float = 0) -> str:
    """Return why this machine does not run a call that needs so many bytes and FLOPs; empty if it does."""
    free = free_memory()
    if memory > MEMORY * free:
        return f"needs {memory / 1e9:.0f} GB, free {free / 1e9:.0f}"
    if DEVICE.type == "cpu" and flops > CPU_FLOPS:
        return f"{flops / 1e9:.0f} GFLOP, limit {CPU_FLOPS / 1e9:.0f}"
    return ""


def free_memory() -> int:
    """Return the free bytes on the device that runs the calls."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(DEVICE)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        (line,) = [line for line in info.read_text().splitlines() if line.startswith("MemAvailable")]
        return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def no_triton() -> str:
    """Return why the kernels are not timed here; empty if they are."""
    if DEVICE.type != "cuda":
        return "no GPU"
    return "Triton's interpreter is on" if interpreted() else ""


@cache
def no_compile() -> str:
    """Return why torch.compile is not timed here; empty if it is."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=DEVICE))
    except Exception as error:
        return f"torch.compile: {str(error).strip().splitlines()[0]}"
    return ""


@lru_cache(maxsize=1)
def compiled(function: Callable[..., Any], case: Any) -> Callable[..., Any]:
    """Compile `function` by torch.compile, only for the shapes of one case."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


@cache
def machine() -> dict[str, Any]:
    """Describe the machine for readers of the results, without anything that identifies it."""
    return {
        "gpu": gpu(DEVICE),
        "cpu": processor(),
        **compute(DTYPE),
        **{name: _version(name) for name in ("torch", "triton")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
