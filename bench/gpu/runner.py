"""A way to run the prefill, in a model of its own that shares its weights with the others'."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import adatp
from adatp.methods import Method
from adatp.models import family_of
from adatp.patch import Pruned
from adatp.prefill import Prefill
from adatp.relevance import NoRelevanceWarning
from adatp.report import PruningReport
from adatp.run import Loaded
from adatp.stopwatch import Stopwatch
from bench.e2e.exclusive import HOST, Exclusive
from bench.e2e.forced import forced_widths
from bench.e2e.twin import twin


class Runner(ExitStack):
    """Times a prefill by the wall clock. It is warm from the start, and leaves nothing behind when it is closed.

    Args:
        loaded: the model, its tower given; it is left alone.
        inputs: of the prompt.
        method: in the model; None for none.
        widths: tokens that each layer sees, where there is no method; None for all of them.
        asked_before: whether every prompt asks the same question, so that its features are remembered.
        compiled: whether decoder layers are compiled one by one.

    Attributes:
        report: of the method; None without one.
        warm_up: seconds of its first prefill, compilers among them.
        seconds: of every timed one.
    """

    def __init__(
        self,
        loaded: Loaded,
        inputs: Mapping[str, Any],
        *,
        method: Method | None = None,
        widths: Sequence[int] | None = None,
        asked_before: bool = False,
        compiled: bool,
    ) -> None:
        super().__init__()
        own = twin(loaded)
        self._model, self._decoder, self._inputs = own.model, family_of(own.model).decoder, inputs
        self.report: PruningReport | None = None
        self.seconds: list[float] = []
        self._pruned: Pruned | None = None
        self._asked_before, self._asked = asked_before, 0
        if method is None and compiled:
            for layer in self._decoder.layers:
                layer.compile(dynamic=True)
        if widths is not None:
            self.enter_context(forced_widths(own, widths))
        if method is not None:
            options: dict[str, Any] = {"compile_layers": True} if compiled else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoRelevanceWarning)  # it is left out on purpose
                self._pruned = self.enter_context(
                    adatp.apply(own.model, own.processor, method, relevance=own.relevance, **options)
                )
        self.warm_up = self.once()
        self.once()
        if self._pruned is not None:
            self.report = self._pruned.report

    def once(self) -> float:
        """Seconds of the decoder and of all that the method computes, waited for before and after."""
        stages: dict[str, list[Any]] = {"decoder": [self._decoder]}
        if self._pruned is not None and self._pruned.relevance is not None:
            stages["question"] = [self._pruned.relevance.text_model]
        with Stopwatch(stages) as watch:
            self.run()
        return sum(watch.seconds.values())

    def time(self) -> None:
        """Time one more prefill."""
        self.seconds.append(self.once())

    def run(self) -> None:
        """One prefill, which nothing waits for. It asks something new, unless the question shall have been asked."""
        if self._pruned is not None and not self._asked_before:
            self._asked += 1
            self._pruned.question = f"Which animal is number {self._asked}?"
        self._model(**self._inputs, logits_to_keep=1)

    def cuts(self) -> dict[str, Any]:
        """Seconds that the cuts of a prefill take the host, and how long it waits for the device within them."""
        with Exclusive(HOST) as spent:
            spent.watch("host", Prefill, "cut")
            spent.watch("waiting", Prefill, "_read")
            self.run()
        return {"host": spent.seconds["host"], "waiting": spent.seconds["waiting"]}
