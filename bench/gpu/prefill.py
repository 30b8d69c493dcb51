"""Wall-clock time of the language model's prefill, and the share that a method itself takes."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from adatp.evaluation.comparison import quartiles
from adatp.methods import AdaTP, Method
from bench.e2e.models import Build, given_states, make, prompt
from bench.e2e.prefill import Contender, causal, contenders, settled
from bench.gpu.runner import Runner
from bench.inputs import DEVICE, DTYPE
from bench.record import Record

ON_GPU = DEVICE.type == "cuda"
BUILDS = (
    [Build("onevision-0.5b", 24), Build("onevision-7b", 28)]
    if ON_GPU
    else [Build("onevision-0.5b", 3, tower_layers=1, text_layers=1)]
)
FRAMES, ROUNDS = (32, 7) if ON_GPU else (1, 1)
ENTERED = None if ON_GPU else ("unpruned", "AdaTP p=1")  # None: all
RECOMPILE_LIMIT = 512  # layers that are compiled one by one are compiled anew for each one's number


@torch.no_grad()
def measure(record: Record) -> None:
    """Measure every model eager, then every model compiled, because the compiler may use up the remaining time."""
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    for compiled in (False, True) if ON_GPU else (False,):
        for build in BUILDS:
            before = record.found.get("rows", [])
            race = Race(build, compiled)
            with given_states(race.loaded, FRAMES):
                for rows in race.run():
                    record.put(rows=[*before, *({"model": str(build), "compiled": compiled, **row} for row in rows)])
            del race
            gc.collect()
            torch.cuda.empty_cache()


class Race:
    """Rounds of all contenders on one model, each beside a prefill of the same widths without scoring.

    If layers are compiled, there is no such second prefill, because compiling it too would take too long.

    Args:
        build: the model.
        compiled: whether decoder layers are compiled.

    Attributes:
        loaded: the model; its tower's states must be given before it runs, see `given_states`.
    """

    def __init__(self, build: Build, compiled: bool) -> None:
        self.loaded = make(build, DEVICE, DTYPE)
        self._compiled = compiled
        shape = build.shape
        self._inputs = prompt(self.loaded, FRAMES, shape.text_tokens, shape.tokens_per_frame)
        self._text = shape.text_tokens
        method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
        entered = contenders(method, others=("fastv",), is_triton=False)
        self._entered = [own for own in entered if not own.is_eager and (ENTERED is None or own.name in ENTERED)]
        self._methods, self._refused = settled(self.loaded, self._inputs, self._entered)
        self._runners: dict[str, Runner] = {}
        self._forced: dict[str, Runner] = {}
        self._inspected: dict[str, dict[str, Any]] = {}

    def run(self) -> Iterator[list[dict[str, Any]]]:
        """Warm up all contenders, time them in rounds, and trace one prefill of each. Yield rows after every step."""
        for own in self._entered:
            if own.name not in self._refused:
                self._enter(own, self._methods[own.name])
                yield self._rows()
        for _ in range(ROUNDS):
            for name, runner in self._runners.items():
                runner.time()
                if name in self._forced:
                    self._forced[name].time()
            yield self._rows()
        for name, runner in self._runners.items():
            self._inspected[name] = {"trace": runner.trace(), "cuts": runner.cuts()}
            yield self._rows()

    def _enter(self, own: Contender, method: Method | None) -> None:
        loaded = self.loaded if own.compares else replace(self.loaded, relevance=None)
        try:
            runner = Runner(loaded, self._inputs, method=method, asked_before=own.asked_before, compiled=self._compiled)
            if not self._compiled:
                self._forced[own.name] = Runner(loaded, self._inputs, widths=self._widths(runner))
            self._runners[own.name] = runner
        except Exception as error:  # a failure of one must not stop the others
            self._refused[own.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"

    def _widths(self, runner: Runner) -> list[int]:
        """Return the tokens at every layer's input."""
        if runner.report is None:
            return [self._inputs["input_ids"].shape[1]] * self.loaded.model.config.text_config.num_hidden_layers
        return [kept + self._text for kept in runner.report.samples[0].kept]

    def _rows(self) -> list[dict[str, Any]]:
        """Return the results so far of each contender."""
        return [self._row(own.name) for own in self._entered]

    def _row(self, name: str) -> dict[str, Any]:
        runner = self._runners.get(name)
        if runner is None:
            return {"name": name, "refused": self._refused.get(name, "not reached")}
        row: dict[str, Any] = {"name": name, "refused": "", "warm_up": runner.warm_up, "widths": self._widths(runner)}
        if runner.report is not None:
            row["ratio_causal"] = causal(runner.report.flops)
        if not runner.seconds:
            return row
        row |= {"seconds": runner.seconds, "quartiles": quartiles(runner.seconds)}
        unpruned, forced = self._runners.get(self._entered[0].name), self._forced.get(name)
        if unpruned is not None and unpruned.seconds:
            pairs = zip(runner.seconds, unpruned.seconds, strict=True)
            row["to_unpruned"] = quartiles([took / whole for took, whole in pairs])
        if forced is not None:
            cost = median(took - other for took, other in zip(runner.seconds, forced.seconds, strict=True))
            row |= {"forced_seconds": forced.seconds, "own_cost": cost, "own_share": cost / median(runner.seconds)}
        return {**row, **self._inspected.get(name, {})}
