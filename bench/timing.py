"""Clocks, and the two roofs of the machine.

On a GPU a call is timed by events on the device. Before each one the device is kept busy for a millisecond, in which
the host queues the call: what is measured is the device's time, without the host's launches, unless the call itself
waits for the device or takes longer than that to queue. "cold" has the L2 overwritten before every call, "warm" leaves
it as the last call did. On a CPU calls are timed by the wall clock, one after the other.
"""

import time
from collections.abc import Callable

import torch

from bench.costs import Roofs
from bench.inputs import DEVICE, DTYPE

BUSY_CYCLES = 2_000_000  # about a millisecond


class DeviceClock:
    """A timer for pytest-benchmark, which reads it right before and right after each call: seconds of device time.

    Every second reading ends what the one before has begun, and only what lies between the two is counted.
    """

    def __init__(self, cold: bool) -> None:
        self.cold = cold
        self._seconds = 0.0
        self._start: torch.cuda.Event | None = None
        self._flush: torch.Tensor | None = None

    def __call__(self) -> float:
        if self._start is None:
            if self.cold:
                self._flush_cache()
            torch.cuda._sleep(BUSY_CYCLES)
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            end.synchronize()
            self._seconds += self._start.elapsed_time(end) / 1e3
            self._start = None
        return self._seconds

    def reset(self) -> None:
        """Forget a beginning whose call has failed."""
        self._start = None

    def _flush_cache(self) -> None:
        if self._flush is None:
            size = max(256 << 20, 2 * torch.cuda.get_device_properties(DEVICE).L2_cache_size)
            self._flush = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        self._flush.zero_()


Clock = Callable[[], float]
CLOCKS: dict[str, Clock]
if DEVICE.type == "cuda":
    CLOCKS = {"cold": DeviceClock(cold=True), "warm": DeviceClock(cold=False)}
else:
    CLOCKS = {"": time.perf_counter}


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, for an estimate."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def best(run: Callable[[], object], clock: Clock, rounds: int = 10) -> float:
    """Seconds of the fastest of several calls: a roof is what can be reached."""
    run()
    times = []
    for _ in range(rounds):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def measure_roofs() -> Roofs:
    """Copy and matrix product, both far larger than any cache."""
    clock = list(CLOCKS.values())[-1]
    on_gpu = DEVICE.type == "cuda"
    source = torch.ones((1 << 30) if on_gpu else (1 << 28), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / best(lambda: target.copy_(source), clock)
    n = 8192 if on_gpu else 2048
    a, b = torch.randn(2, n, n, device=DEVICE).to(DTYPE)
    return Roofs(copy=copy, matmul=2 * n**3 / best(lambda: a @ b, clock))
