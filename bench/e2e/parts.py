"""Where a prefill's time goes. Its borders wait for the device, so this run is not the one that is timed."""

from collections.abc import Mapping
from typing import Any

import adatp.prefill
from adatp.methods import Method
from adatp.models import family_of
from adatp.prefill import Prefill
from adatp.prompt import PrunedPrompt
from adatp.relevance import Relevance
from adatp.run import Loaded
from adatp.study.measure import prefill
from bench.e2e.exclusive import Exclusive

PARTS = {  # of the pruning, by what computes it
    "relevance": (Relevance, "forward"),
    "text queries": (PrunedPrompt, "project"),
    "scoring": (Prefill, "_scores"),
    "selection": (Prefill, "_keep"),
    "compaction": (adatp.prefill, "compact"),
    "synchronisation": (Prefill, "_read"),
}


def parts(loaded: Loaded, inputs: Mapping[str, Any], method: Method | None) -> dict[str, Any]:
    """Seconds of one prefill: `total`; `pruning` by part, `other` being what is neither a layer nor a part of it; and
    `layers`, one by one, without what a part did within them.
    """
    layers = family_of(loaded.model).decoder.layers
    with Exclusive() as spent:
        for part, (owner, name) in PARTS.items():
            spent.watch(part, owner, name)
        for i, layer in enumerate(layers):
            # hooks run around its forward, so a cut in front of it is not in its time
            spent.watch(f"layer {i}", layer)
        total = prefill(loaded, inputs, method).seconds
    of_layers = [spent.seconds[f"layer {i}"] for i in range(len(layers))]
    pruning = {name: spent.seconds[name] for name in PARTS}
    pruning["other"] = total - sum(of_layers) - sum(pruning.values())
    return {"total": total, "pruning": pruning, "layers": of_layers}
