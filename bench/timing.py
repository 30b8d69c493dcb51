"""Clocks, and the roofs of the machine.

On a GPU, events on the device time a call. Before each call the device is kept busy for a millisecond, in which the
host queues the call. So the time is that of the device, without the host's launches, unless the call waits for the
device or takes longer to queue. "cold" overwrites the L2 before every call, and "warm" does not. If calls are shorter
than their launches, `replayed` puts many of them into a CUDA graph. On a CPU, the wall clock times one call after the
other.
"""

import time
from collections.abc import Callable

import torch

from bench.costs import Roofs
from bench.inputs import DEVICE, DTYPE

CYCLES_PER_SECOND = 2e9  # of a GPU, roughly
TURNS = 512  # exponentials for each value; with 4 million values on an H100 they take half a millisecond


def keep_busy(seconds: float = 1e-3) -> None:
    """Keep the GPU busy for about that time, while the host queues the call to be timed."""
    torch.cuda._sleep(int(CYCLES_PER_SECOND * seconds))


class DeviceClock:
    """A timer for pytest-benchmark that returns seconds of device time.

    pytest-benchmark reads it right before and right after each call. Only the time between these two readings counts.
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
            keep_busy()
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
        """Forget the first reading of a call that has failed."""
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


def device_seconds(run: Callable[[], object], *, cold: bool = False, rounds: int = 30) -> list[float]:
    """Time several calls after a first one: device seconds on a GPU, from a cold or a warm L2, else wall clock."""
    clock = CLOCKS["cold" if cold else "warm"] if DEVICE.type == "cuda" else time.perf_counter
    run()
    took = []
    for _ in range(rounds):
        begin = clock()
        run()
        took.append(clock() - begin)
    return took


def replayed(run: Callable[[], object], *, calls: int = 10, rounds: int = 30) -> tuple[list[float], str]:
    """Time a call by replays of a CUDA graph with `calls` copies of it, from a warm L2.

    The host launches nothing between the copies. A call that waits for the device cannot be captured; `device_seconds`
    times it instead.

    Returns:
        The device seconds of one call, for each replay; and how they were taken: "graph replay", or "queue" or "wall
        clock" with the reason.
    """
    if DEVICE.type != "cuda":
        return device_seconds(run, rounds=rounds), "wall clock: no GPU"
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):  # to compile, and to allocate its memory
                run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                run()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return device_seconds(run, rounds=rounds), f"queue: {str(error).strip().splitlines()[0]}"
    return [own / calls for own in device_seconds(graph.replay, rounds=rounds)], "graph replay"


def host_seconds(run: Callable[[], object], *, rounds: int = 30) -> list[float]:
    """Time how long the host takes to queue a call, several times. Nothing waits for the device but the call itself."""
    run()
    took = []
    for _ in range(rounds):
        synchronize()
        begin = time.perf_counter()
        run()
        took.append(time.perf_counter() - begin)
    synchronize()
    return took


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call, for an estimate."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def best(run: Callable[[], object], clock: Clock, rounds: int = 10) -> float:
    """Return the seconds of the fastest of several calls, because a roof is the best rate."""
    run()
    times = []
    for _ in range(rounds):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def measure_roofs() -> Roofs:
    """Measure the roofs: a copy and a matrix product, both much larger than any cache, and exponentials."""
    clock = list(CLOCKS.values())[-1]
    on_gpu = DEVICE.type == "cuda"
    source = torch.ones((1 << 30) if on_gpu else (1 << 28), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / best(lambda: target.copy_(source), clock)
    n = 8192 if on_gpu else 2048
    a, b = torch.randn(2, n, n, device=DEVICE).to(DTYPE)
    matmul = 2 * n**3 / best(lambda: a @ b, clock)
    return Roofs(copy, matmul, measure_exponentials(clock))


def measure_exponentials(clock: Clock) -> float:
    """Measure exp2 of fp32 values a second: values in registers on a GPU, in the first-level cache on a CPU."""
    if DEVICE.type == "cuda":
        from bench.exponentials_triton import exponentials

        return TURNS * exponentials(DEVICE, TURNS).numel() / best(lambda: exponentials(DEVICE, TURNS), clock)
    values = torch.rand(1 << 12)
    result = torch.empty_like(values)

    def run() -> None:
        for _ in range(100):
            torch.exp2(values, out=result)

    return 100 * values.numel() / best(run, clock)
