"""Times what runs within other things, each without what of it is timed as something else."""

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
    """How time is taken at a border.

    Attributes:
        mark: takes it.
        between: seconds between an earlier and a later mark, once all is done: a later mark less an earlier one.
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
HOST = Clock(time.perf_counter, sub)  # wall clock of the host alone: what it takes to queue the work
EVENTS = Clock(_event, _elapsed)  # the device's time, its idle time included


class Exclusive(ExitStack):
    """Seconds of whatever is watched while it is open.

    Args:
        clock: at the borders.

    Attributes:
        seconds: by name, once it is closed; all runs of it are added up.
    """

    def __init__(self, clock: Clock = WAITING) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._running: list[str] = []
        self._borders: list[tuple[str | None, Any]] = []  # what runs from there on, and when that is

    def watch(self, name: str, owner: Any, method: str = "forward") -> None:
        """Time `owner.method` as `name`."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return function(*args, **kwargs)

        self.enter_context(mock.patch.object(owner, method, timed))

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Time what is within as `name`."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """From here on `name` runs, until the next `end`."""
        self._running.append(name)
        self._border()

    def end(self) -> None:
        """What has begun last has ended, and what it ran within goes on."""
        self._running.pop()
        self._border()

    def _border(self) -> None:
        self._borders.append((self._running[-1] if self._running else None, self._clock.mark()))

    def __exit__(self, *error: Any) -> bool | None:
        for (name, begin), (_, end) in zip(self._borders, self._borders[1:], strict=False):
            if name is not None:
                self.seconds[name] += self._clock.between(end, begin)
        return super().__exit__(*error)
