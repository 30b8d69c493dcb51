"""Where a pruned prefill's time goes. Its borders wait for the device, so this run is not the one that is timed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import adatp.prefill
from adatp.methods import Method
from adatp.models import family_of
from adatp.prefill import Prefill
from adatp.prompt import PrunedPrompt
from adatp.relevance import Relevance
from adatp.run import Loaded
from adatp.stopwatch import now
from adatp.study.measure import prefill

PARTS = {  # of the pruning, by what computes it
    "relevance": (Relevance, "forward"),
    "text queries": (PrunedPrompt, "project"),
    "scoring": (Prefill, "_scores"),
    "selection": (Prefill, "_keep"),
    "compaction": (adatp.prefill, "compact"),
    "synchronisation": (Prefill, "_read"),
}


def parts(loaded: Loaded, inputs: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Seconds of one prefill: `total`; `pruning` by part, `other` being what is neither a layer nor a part of it; and
    `layers`, one by one, without what a part did within them.
    """
    spent: Counter[str] = Counter()
    with _timed_layers(loaded, spent), _timed_parts(spent):
        total = prefill(loaded, inputs, method).seconds
    count = len(family_of(loaded.model).decoder.layers)
    layers = [spent.pop(f"layer {i}") for i in range(count)]
    layers = [own - spent.pop(f"text queries in layer {i}", 0.0) for i, own in enumerate(layers)]
    pruning = {name: spent[name] for name in PARTS}
    pruning["other"] = total - sum(layers) - sum(pruning.values())
    return {"total": total, "pruning": pruning, "layers": layers}


@contextmanager
def _timed_parts(spent: Counter[str]) -> Iterator[None]:
    """Adds up what each part takes, and what of it is within a layer."""
    patches = [mock.patch.object(owner, name, _clocked(getattr(owner, name), part, spent))
               for part, (owner, name) in PARTS.items()]  # fmt: skip
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def _clocked(function: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = function(*args, **kwargs)
        took = now() - begin
        spent[part] += took
        if part == "text queries":
            spent[f"{part} in layer {args[1]}"] += took
        return result

    return clocked


@contextmanager
def _timed_layers(loaded: Loaded, spent: Counter[str]) -> Iterator[None]:
    """Times every decoder layer, from the end of its other hooks on."""
    handles = []
    for i, layer in enumerate(family_of(loaded.model).decoder.layers):
        handles.append(_time_layer(layer, f"layer {i}", spent))
    try:
        yield
    finally:
        for handle in handles:
            handle()


def _time_layer(layer: Any, name: str, spent: Counter[str]) -> Callable[[], None]:
    forward = layer.forward  # hooks run around it, so a cut in front of it is not in its time

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = forward(*args, **kwargs)
        spent[name] += now() - begin
        return result

    layer.__dict__["forward"] = timed

    def restore() -> None:
        del layer.__dict__["forward"]

    return restore
