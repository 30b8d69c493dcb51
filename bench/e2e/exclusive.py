"""Timing of nested work: the time of each part excludes the parts within it that are timed themselves."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import sub
from typing import Any
from unittest import mock

import torch

from adatp.hf.stopwatch import now


@dataclass(frozen=True)
class Clock:
    """A way to take the time at a border between two parts.

    Attributes:
        mark: takes the time.
        between: called with a later and an earlier mark after all work; returns the seconds between them.
    """

    mark: Callable[[], Any]
    between: Callable[[Any, Any], float]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _elapsed(end: torch.cuda.Event, begin: torch.cuda.Event) -> float:
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


WAITING = Clock(now, sub)  # wall clock at borders that wait for the device, so that nothing overlaps
HOST = Clock(time.perf_counter, sub)  # wall clock of the host alone: the time to queue the work
EVENTS = Clock(_event, _elapsed)  # the device's time, including its idle time


class Exclusive(ExitStack):
    """A context that times the watched parts while it is open.

    Args:
        clock: the clock for the borders.

    Attributes:
        seconds: sum of the seconds of each part, by name; filled when the context closes.
    """

    def __init__(self, clock: Clock = WAITING) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._running: list[str] = []
        self._borders: list[tuple[str | None, Any]] = []  # the part that runs from there on, and the time

    def watch(self, name: str, owner: Any, method: str = "forward") -> None:
        """Time `owner.method` as `name`."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return function(*args, **kwargs)

        self.enter_context(mock.patch.object(owner, method, timed))

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Time the work within the `with` block as `name`."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Begin the part `name`. It runs until the next `end`."""
        self._running.append(name)
        self._border()

    def end(self) -> None:
        """End the part that began last. The part around it goes on."""
        self._running.pop()
        self._border()

    def _border(self) -> None:
        self._borders.append((self._running[-1] if self._running else None, self._clock.mark()))

    def __exit__(self, *error: Any) -> bool | None:
        for (name, begin), (_, end) in zip(self._borders, self._borders[1:], strict=False):
            if name is not None:
                self.seconds[name] += self._clock.between(end, begin)
        return super().__exit__(*error)
