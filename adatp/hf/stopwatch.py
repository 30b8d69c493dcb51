"""Where the time to the first token goes, measured on any model, pruned or not."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer


class Stopwatch(AbstractContextManager["Stopwatch"]):
    """Times the first run of each stage's modules while it is open, in seconds.

    Work queued on a GPU is waited for at the borders of every stage, so stages do not overlap as they otherwise could.

    Args:
        stages: the modules of each stage; a stage with several is their sum. Hooks that run before these modules
            and were registered earlier are not counted.
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
    """A streamer that notes when the first generated token arrives."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._calls = 0

    def put(self, value: Any) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call brings the prompt
            self.at = now()

    def end(self) -> None:
        pass


def now() -> float:
    """Seconds on a monotonic clock, once the GPU, if there is one, has done what was queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
