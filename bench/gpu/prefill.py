"""The language model's prefill by wall clock, and what a method itself costs of it."""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from adatp.methods import AdaTP, Method
from adatp.run import Loaded
from adatp.study.comparison import quartiles
from bench.e2e.models import Build, given_states, make, prompt
from bench.e2e.prefill import Contender, causal, contenders, settled
from bench.gpu.runner import Runner
from bench.gpu.trace import trace
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
RECOMPILE_LIMIT = 64  # a layer that is compiled by itself is compiled anew for every layer's number


@torch.no_grad()
def measure(record: Record) -> None:
    """Every model eager; then, since a compiler may take what is left of the time, every one compiled."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for compiled in (False, True) if ON_GPU else (False,):
        for build in BUILDS:
            before = record.found.get("rows", [])
            names = {"model": str(build), "compiled": compiled}

            def put(race: Race, before: list[Any] = before, names: dict[str, Any] = names) -> None:
                record.put(rows=[*before, *({**names, **row} for row in race.rows())])

            with ExitStack() as stack:
                Race(stack, build, compiled).run(put)
            gc.collect()
            torch.cuda.empty_cache()


class Race:
    """All contenders on one model in rounds, each beside a prefill of its widths that scores nothing.

    Args:
        stack: what is to be undone in the end.
        build: the model.
        compiled: whether decoder layers are compiled one by one.
    """

    def __init__(self, stack: ExitStack, build: Build, compiled: bool) -> None:
        self._stack, self._compiled = stack, compiled
        self._loaded = make(build, DEVICE, DTYPE)
        stack.enter_context(given_states(self._loaded, FRAMES))
        shape = build.shape
        self._inputs = prompt(self._loaded, FRAMES, shape.text_tokens, shape.tokens_per_frame)
        self._other = shape.text_tokens
        method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
        entered = contenders(method, others=("fastv",), is_triton=False)
        self._entered = [own for own in entered if not own.is_eager and (ENTERED is None or own.name in ENTERED)]
        self._methods, self._refused = settled(self._loaded, self._inputs, self._entered)
        self._pairs: dict[str, tuple[Runner, Runner]] = {}
        self._inspected: dict[str, dict[str, Any]] = {}

    def run(self, put: Callable[["Race"], None]) -> None:
        """Warm all of them, time them in rounds, and look into one prefill of each; `put` after every step."""
        for own in self._entered:
            if own.name not in self._refused:
                self._enter(own, self._methods[own.name])
                put(self)
        for _ in range(ROUNDS):
            for pair in self._pairs.values():
                for runner in pair:
                    runner.time()
            put(self)
        for name, (runner, _) in self._pairs.items():
            self._inspected[name] = {"trace": trace(runner.run), "cuts": runner.cuts()}
            put(self)

    def _enter(self, own: Contender, method: Method | None) -> None:
        loaded: Loaded = self._loaded if own.compares else replace(self._loaded, relevance=None)
        try:
            runner = self._stack.enter_context(
                Runner(loaded, self._inputs, method=method, asked_before=own.asked_before, compiled=self._compiled)
            )
            forced = Runner(loaded, self._inputs, widths=self._widths(runner), compiled=self._compiled)
            self._pairs[own.name] = runner, self._stack.enter_context(forced)
        except Exception as error:  # one that cannot run is no reason to lose the others
            self._refused[own.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"

    def _widths(self, runner: Runner) -> list[int]:
        """Tokens at every layer's input."""
        if runner.report is None:
            return [self._inputs["input_ids"].shape[1]] * self._loaded.model.config.text_config.num_hidden_layers
        return [kept + self._other for kept in runner.report.samples[0].kept]

    def rows(self) -> list[dict[str, Any]]:
        """What has been found so far of each contender."""
        return [self._row(own.name) for own in self._entered]

    def _row(self, name: str) -> dict[str, Any]:
        if name not in self._pairs:
            return {"name": name, "refused": self._refused.get(name, "not reached")}
        runner, forced = self._pairs[name]
        row: dict[str, Any] = {"name": name, "refused": "", "warm_up": runner.warm_up, "widths": self._widths(runner)}
        if runner.report is not None:
            row["ratio_causal"] = causal(runner.report.flops)
        unpruned = self._pairs.get(self._entered[0].name)
        if runner.seconds:
            own = [took - other for took, other in zip(runner.seconds, forced.seconds, strict=True)]
            row |= {"seconds": runner.seconds, "forced_seconds": forced.seconds, "own_cost": median(own)}
            row["own_share"] = median(own) / median(runner.seconds)
            row["quartiles"] = quartiles(runner.seconds)
            if unpruned is not None:
                pairs = zip(runner.seconds, unpruned[0].seconds, strict=True)
                row["to_unpruned"] = quartiles([took / whole for took, whole in pairs])
        return {**row, **self._inspected.get(name, {})}
