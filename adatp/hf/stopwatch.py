"""Measure how the time to the first token splits into stages, on any model, pruned or not."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer


class Stopwatch(AbstractContextManager["Stopwatch"]):
    """A context manager that times the first run of each stage's modules, in seconds.

    At the start and the end of every stage it waits for the work queued on a GPU. So stages do not overlap, although
    they could without this measurement.

    Args:
        stages: the modules of each stage. The time of a stage is the sum over its modules. It does not include hooks
            that run before a module and were registered earlier.
    """

    def __init__(self, stages: dict[str, list[nn.Module]]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self._started: dict[nn.Module, float] = {}
        self._done: set[nn.Module] = set()
        self._handles = []
        for stage, modules in stages.items():
            for module in modules:
                self._handles += [
                    module.register_forward_pre_hook(self._start),
                    module.register_forward_hook(self._stop(stage)),
                ]

    def _start(self, module: nn.Module, _: Any) -> None:
        self._started[module] = now()

    def _stop(self, stage: str) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            if module not in self._done:
                self._done.add(module)
                self.seconds[stage] += now() - self._started[module]

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class FirstToken(BaseStreamer):
    """A streamer that stores the time of the first generated token.

    Attributes:
        at: time of the first token, from `now`; None before it.
    """

    def __init__(self) -> None:
        self.at: float | None = None
        self._calls = 0

    def put(self, value: Any) -> None:
        """Store the time of the first token."""
        self._calls += 1
        if self._calls == 2:  # the first call has the prompt
            self.at = now()

    def end(self) -> None:
        """Do nothing."""


def now() -> float:
    """Return the seconds of a monotonic clock, after waiting for the work queued on the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
