"""Clocks, and the roofs of the machine.

On a GPU a call is timed by events on the device. Before each one the device is kept busy for a millisecond, in which
the host queues the call: what is measured is the device's time, without the host's launches, unless the call itself
waits for the device or takes longer than that to queue. "cold" has the L2 overwritten before every call, "warm" leaves
it as the last call did. Where calls are shorter than their launches, `replayed` puts many into a CUDA graph. On a CPU
calls are timed by the wall clock, one after the other.
"""

import time
from collections.abc import Callable

import torch

from bench.costs import Roofs
from bench.inputs import DEVICE, DTYPE

CYCLES_PER_SECOND = 2e9  # of a GPU, about
TURNS = 512  # exponentials of each value, of 4 million on an H100: half a millisecond


def keep_busy(seconds: float = 1e-3) -> None:
    """Queue what keeps the GPU busy for about that long, in which the host queues what is to be timed."""
    torch.cuda._sleep(int(CYCLES_PER_SECOND * seconds))


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


def device_seconds(run: Callable[[], object], *, cold: bool = False, rounds: int = 30) -> list[float]:
    """Seconds of each of several calls once warm: the device's on a GPU, from a cold or a warm L2; else wall clock."""
    clock = CLOCKS["cold" if cold else "warm"] if DEVICE.type == "cuda" else time.perf_counter
    run()
    took = []
    for _ in range(rounds):
        begin = clock()
        run()
        took.append(clock() - begin)
    return took


def replayed(run: Callable[[], object], *, calls: int = 10, rounds: int = 30) -> tuple[list[float], str]:
    """Device seconds of one call, of each of several replays of a CUDA graph of `calls` of them, from a warm L2.

    No launch of the host lies between them. What cannot be captured, because it waits for the device, is timed by
    `device_seconds`.

    Returns:
        The seconds; and how they were taken: "graph replay", or "queue" or "wall clock" with the reason.
    """
    if DEVICE.type != "cuda":
        return device_seconds(run, rounds=rounds), "wall clock: no GPU"
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and allocates what it keeps
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
    """Seconds that the host takes to queue a call, of several of them; nothing is waited for that the call does not."""
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
    """Copy and matrix product, both far larger than any cache, and exponentials, which touch no memory."""
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
    """exp2 of fp32 values a second: of values in registers on a GPU, of values in the first cache on a CPU."""
    if DEVICE.type == "cuda":
        from bench.exponentials_triton import exponentials

        return TURNS * exponentials(DEVICE, TURNS).numel() / best(lambda: exponentials(DEVICE, TURNS), clock)
    values = torch.rand(1 << 12)
    result = torch.empty_like(values)

    def run() -> None:
        for _ in range(100):
            torch.exp2(values, out=result)

    return 100 * values.numel() / best(run, clock)
