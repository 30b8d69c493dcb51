"""A way to run the prefill, timed by the wall clock."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import adatp
from adatp.engine.cuts import Cuts
from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import Stopwatch
from adatp.methods import Method
from adatp.models import family_of
from adatp.relevance import NoRelevanceWarning, Relevance
from adatp.report import PruningReport
from bench.e2e.exclusive import HOST, Exclusive
from bench.e2e.forced import forced_widths
from bench.e2e.twin import twin
from bench.gpu.trace import trace

OTHER = "Who stands at the window?"  # a question


class Runner:
    """Times a prefill, from the first one on warm.

    Args:
        loaded: the model, its tower given. Between prefills it is as it was.
        inputs: of the prompt.
        method: in the model; None for none.
        widths: tokens that each layer sees, where there is no method; None for all of them.
        asked_before: whether the question has been asked before, so that its features are remembered.
        compiled: whether decoder layers are compiled, by `adatp.apply` where there is a method; else one by one, in a
            second model that shares the weights.

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
        compiled: bool = False,
    ) -> None:
        self._loaded, self._inputs, self._method, self._widths = loaded, inputs, method, widths
        self._asked_before = asked_before
        self._options: dict[str, Any] = {}
        if compiled and method is not None:
            self._options = {"compile_layers": True}
        elif compiled:
            self._loaded = twin(loaded)
            for layer in family_of(self._loaded.model).decoder.layers:
                layer.compile(dynamic=True)
        self.report: PruningReport | None = None
        self.seconds: list[float] = []
        self.warm_up = self._once()
        self._once()

    def time(self) -> None:
        """Time one more prefill."""
        self.seconds.append(self._once())

    def _once(self) -> float:
        """Seconds of the decoder and of all that the method computes, waited for before and after."""
        stages: dict[str, list[Any]] = {"decoder": [family_of(self._loaded.model).decoder]}
        if self._method is not None and isinstance(self._loaded.relevance, Relevance):
            stages["question"] = [self._loaded.relevance.text_model]
        with self._ready() as run, Stopwatch(stages) as watch:
            run()
        return sum(watch.seconds.values())

    def trace(self) -> dict[str, Any]:
        """What one prefill runs on the device."""
        with self._ready() as run:
            return trace(run)

    def cuts(self) -> dict[str, float]:
        """Seconds that the cuts of a prefill take the host, and how long it waits for the device within them."""
        with self._ready() as run, Exclusive(HOST) as spent:
            spent.watch("host", Cuts, "cut")
            spent.watch("waiting", Cuts, "_read")
            run()
        return {name: spent.seconds[name] for name in ("host", "waiting")}

    @contextmanager
    def _ready(self) -> Iterator[Callable[[], Any]]:
        """What runs one prefill, while the model is made ready for it."""
        model, own = self._loaded.model, self._loaded

        def run() -> None:
            model(**self._inputs, logits_to_keep=1)

        if self._widths is not None:
            with forced_widths(own, self._widths):
                yield run
        elif self._method is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoRelevanceWarning)  # it is left out on purpose
                pruned = adatp.apply(model, own.processor, self._method, relevance=own.relevance, **self._options)
                with pruned:
                    # what a method does once: it records the graph of its last layers, and remembers questions
                    pruned.question = None if self._asked_before else OTHER
                    run()
                    pruned.question = None
                    yield run
                    self.report = pruned.report
        else:
            yield run
