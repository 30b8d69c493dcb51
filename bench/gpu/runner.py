"""A timed way to run the prefill, by the wall clock."""

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
    """A timer of a prefill. It warms up by a first prefill.

    Args:
        loaded: the model, with given states of the tower. It is unchanged between prefills.
        inputs: inputs of the prompt.
        method: the method to prune with; None for no pruning.
        widths: without a method, the number of tokens that each layer sees; None for all tokens.
        asked_before: whether the question was asked before, so that its features are remembered.
        compiled: whether decoder layers are compiled. With a method, `adatp.apply` compiles them. Without one, they are
            compiled one by one, in a second model that shares the weights.

    Attributes:
        report: the method's report; None without a method.
        warm_up: seconds of the first prefill, including compilation.
        seconds: seconds of every timed prefill.
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
        """Return the seconds of the decoder and of the method's own work, with waits before and after."""
        stages: dict[str, list[Any]] = {"decoder": [family_of(self._loaded.model).decoder]}
        if self._method is not None and isinstance(self._loaded.relevance, Relevance):
            stages["question"] = [self._loaded.relevance.text_model]
        with self._ready() as run, Stopwatch(stages) as watch:
            run()
        return sum(watch.seconds.values())

    def trace(self) -> dict[str, Any]:
        """Trace the work of one prefill on the device."""
        with self._ready() as run:
            return trace(run)

    def cuts(self) -> dict[str, float]:
        """Return the host's seconds in the cuts of a prefill, and the part of them in which it waits for the device."""
        with self._ready() as run, Exclusive(HOST) as spent:
            spent.watch("host", Cuts, "cut")
            spent.watch("waiting", Cuts, "_read")
            run()
        return {name: spent.seconds[name] for name in ("host", "waiting")}

    @contextmanager
    def _ready(self) -> Iterator[Callable[[], Any]]:
        """Prepare the model, and yield a function that runs one prefill."""
        model, own = self._loaded.model, self._loaded

        def run() -> None:
            model(**self._inputs, logits_to_keep=1)

        if self._widths is not None:
            with forced_widths(own, self._widths):
                yield run
        elif self._method is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoRelevanceWarning)  # relevance is left out on purpose
                pruned = adatp.apply(model, own.processor, self._method, relevance=own.relevance, **self._options)
                with pruned:
                    # work that a method does only once: it records a graph of its last layers, and remembers questions
                    pruned.question = None if self._asked_before else OTHER
                    run()
                    pruned.question = None
                    yield run
                    self.report = pruned.report
        else:
            yield run
