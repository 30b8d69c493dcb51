"""Where a pruned prefill's time goes. Its borders wait for the device, so this run is not the one that is timed."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
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
    decoder = family_of(loaded.model).decoder
    with ExitStack() as patches:
        for part, (owner, name) in PARTS.items():
            _time(patches, owner, name, part, spent)
        for i, layer in enumerate(decoder.layers):
            # hooks run around its forward, so a cut in front of it is not in its time
            _time(patches, layer, "forward", f"layer {i}", spent)
        total = prefill(loaded, inputs, method).seconds
    layers = [spent[f"layer {i}"] for i in range(len(decoder.layers))]
    pruning = {name: spent[name] for name in PARTS}
    pruning["other"] = total - sum(layers) - sum(pruning.values())
    return {"total": total, "pruning": pruning, "layers": layers}


def _time(patches: ExitStack, owner: Any, name: str, what: str, spent: Counter[str]) -> None:
    """Add up what `owner.name` takes, without what of it is timed as something else."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        before, begin = spent.total(), now()
        result = function(*args, **kwargs)
        spent[what] += now() - begin - (spent.total() - before)
        return result

    patches.enter_context(mock.patch.object(owner, name, timed))
