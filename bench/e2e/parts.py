"""Where a prefill's time goes, on a GPU by the device's clock and by the host's.

Borders wait for the device on a CPU alone: so many waits would take longer than what lies between them on a GPU.
"""

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch

import adatp.engine.cuts
from adatp.engine.cuts import Cuts
from adatp.evaluation.measure import applied, prefill
from adatp.evaluation.session import Loaded
from adatp.hf.prompt_prefill import PromptPrefill
from adatp.methods import Method
from adatp.models import family_of
from adatp.relevance import Questions, Relevance
from bench.e2e.exclusive import EVENTS, HOST, WAITING, Clock, Exclusive
from bench.timing import keep_busy

PARTS = {  # of the pruning, by what computes it
    "question": (Questions, "features"),
    "relevance": (Relevance, "forward"),
    "text queries": (PromptPrefill, "project"),
    "scoring": (Cuts, "_scores"),
    "selection": (Cuts, "_keep"),
    "compaction": (adatp.engine.cuts, "compact"),
    "synchronisation": (Cuts, "_read"),
}
BUSY = "kept busy"  # what is queued so that the device never waits for the host, and not counted


def parts(loaded: Loaded, inputs: Mapping[str, Any], method: Method | None) -> dict[str, Any]:
    """Seconds of one prefill: `total`; `pruning` by part, `other` being what is neither a layer nor a part of it; and
    `layers`, one by one, without what a part did within them.

    On a GPU these are the device's, which does not wait for the host in between. Beside them are the `wall` clock's
    seconds of a prefill that nothing is timed within, and `host`: what each part of the pruning takes the host, whose
    wait for the device is in `synchronisation`.
    """
    if loaded.model.device.type == "cpu":
        return _parts(loaded, inputs, method, WAITING)
    host = _parts(loaded, inputs, method, HOST)
    device = _parts(loaded, inputs, method, EVENTS, busy=lambda: keep_busy(2 * host["total"]))
    return {**device, "wall": prefill(loaded, inputs, method).seconds, "host": host["pruning"]}


@torch.inference_mode()
def _parts(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    method: Method | None,
    clock: Clock,
    busy: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    decoder = family_of(loaded.model).decoder
    with Exclusive(clock) as spent:
        for part, (owner, name) in PARTS.items():
            spent.watch(part, owner, name)
        _then(spent, Cuts, "_read", busy)  # the host begins anew there, with nothing queued
        for i, layer in enumerate(decoder.layers):
            # hooks run around its forward, so a cut in front of it is not in its time
            spent.watch(f"layer {i}", layer)

        def begin(*_: Any) -> None:
            busy()
            spent.begin("other")

        def end(*_: Any) -> None:
            spent.end()

        for handle in (decoder.register_forward_pre_hook(begin), decoder.register_forward_hook(end)):
            spent.callback(handle.remove)
        with applied(loaded, method):
            loaded.model(**inputs, logits_to_keep=1)
    of_layers = [spent.seconds[f"layer {i}"] for i in range(len(decoder.layers))]
    pruning = {name: spent.seconds[name] for name in (*PARTS, "other")}
    return {"total": sum(of_layers) + sum(pruning.values()), "pruning": pruning, "layers": of_layers}


def _then(spent: Exclusive, owner: Any, method: str, busy: Callable[[], None]) -> None:
    """After each `owner.method`, keep the device busy."""
    function = getattr(owner, method)

    def followed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        with spent.running(BUSY):
            busy()
        return result

    spent.enter_context(mock.patch.object(owner, method, followed))
