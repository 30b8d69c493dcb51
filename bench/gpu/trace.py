"""Traces of a call on the device, by PyTorch's profiler: its kernels, and the gaps between them."""

import os
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.inputs import DEVICE
from bench.timing import synchronize

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from printing to stderr
TOP = 12


def trace(run: Callable[[], object]) -> dict[str, Any]:
    """Trace one call after a first one.

    Returns:
        `kernels`, their number; `kernel_seconds`, the sum of their seconds; `span`, the seconds from the begin of the
        first kernel to the end of the last one; `gaps`, the seconds of the span without a kernel; and `top`, name,
        calls and seconds of the longest kernels. On a CPU, PyTorch's operations are counted instead of kernels.
    """
    ran = _ran(run)
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, begin, end in ran:
        by_name[name].append(end - begin)
    busy, until = 0.0, 0.0
    for _, begin, end in sorted(ran, key=lambda own: own[1]):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    span = max((end for *_, end in ran), default=0.0) - min((begin for _, begin, _ in ran), default=0.0)
    top = sorted(by_name.items(), key=lambda own: -sum(own[1]))[:TOP]
    return {
        "kernels": len(ran),
        "kernel_seconds": sum(map(sum, by_name.values())),
        "span": span,
        "gaps": span - busy,
        "top": [{"name": name[:100], "calls": len(took), "seconds": sum(took)} for name, took in top],
    }


def kernel_seconds(run: Callable[[], object], calls: int = 20) -> dict[str, float]:
    """Return the median seconds of each kernel that a call launches once."""

    def again() -> None:
        for _ in range(calls):
            run()

    by_name: dict[str, list[float]] = defaultdict(list)
    for name, begin, end in _ran(again):
        by_name[name].append(end - begin)
    return {name[:100]: median(took) for name, took in by_name.items()}


def _ran(run: Callable[[], object]) -> list[tuple[str, float, float]]:
    """Return (name, begin, end) of all work on the device, in seconds."""
    on_gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    run()
    synchronize()
    with profile(activities=activities, acc_events=True) as profiled:
        run()
        synchronize()
    found = []
    for event in profiled.events():
        if on_gpu:
            # the profiler shows compiled regions on the device, too, but they are no kernels
            if event.device_type.name != "CUDA" or getattr(event, "is_user_annotation", False):
                continue
        elif event.cpu_children:  # on a CPU, only operations that call no others count
            continue
        found.append((event.name, event.time_range.start / 1e6, event.time_range.end / 1e6))
    return found
