"""The parts of a prefill's time; on a GPU by the device's clock and by the host's.

The borders between parts do not wait for a GPU, because so many waits would take longer than the parts themselves.
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

PARTS = {  # the parts of the pruning, and the methods that compute them
    "question": (Questions, "features"),
    "relevance": (Relevance, "forward"),
    "text queries": (PromptPrefill, "project"),
    "scoring": (Cuts, "_scores"),
    "selection": (Cuts, "_keep"),
    "compaction": (adatp.engine.cuts, "compact"),
    "synchronisation": (Cuts, "_read"),
}
BUSY = "kept busy"  # extra work so that the device never waits for the host; it is not counted


def parts(loaded: Loaded, inputs: Mapping[str, Any], method: Method | None) -> dict[str, Any]:
    """Measure the parts of one prefill in seconds.

    Returns:
        `total`; `pruning` by part, where `other` is neither a layer nor another part; and `layers` one by one, without
        the parts within them. On a GPU these are device times, without waits for the host. There, `wall` is the
        wall-clock time of a prefill without timers inside, and `host` is the host's time for each part of the pruning,
        whose `synchronisation` includes the wait for the device.
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
        _then(spent, Cuts, "_read", busy)  # after this wait, nothing is queued
        for i, layer in enumerate(decoder.layers):
            # hooks run outside its forward, so its time does not include a cut before it
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
    """Keep the device busy after each `owner.method`."""
    function = getattr(owner, method)

    def followed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        with spent.running(BUSY):
            busy()
        return result

    spent.enter_context(mock.patch.object(owner, method, followed))
