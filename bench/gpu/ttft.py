"""Time to the first token by `generate`: vision tower, projector, relevance and decoder."""

import gc
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adatp.evaluation.comparison import quartiles
from adatp.evaluation.measure import applied
from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import Stopwatch, now
from adatp.methods import AdaTP
from adatp.models import family_of
from adatp.relevance import Relevance
from bench.e2e.models import make, prompt
from bench.gpu.prefill import BUILDS, FRAMES
from bench.gpu.runner import OTHER
from bench.inputs import DEVICE, DTYPE
from bench.record import Record

ROUNDS = 5 if DEVICE.type == "cuda" else 1


@torch.no_grad()
def measure(record: Record) -> None:
    """Measure in rounds: unpruned, with AdaTP at p = 1, and with AdaTP without relevance."""
    for build in BUILDS:
        loaded, shape = make(build, DEVICE, DTYPE), build.shape
        method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
        inputs = prompt(loaded, FRAMES, shape.text_tokens, shape.tokens_per_frame)
        inputs["pixel_values_videos"] = _pixels(inputs["pixel_values_videos"])
        before = record.found.get("rows", [])
        other = prompt(loaded, 1, shape.text_tokens, shape.tokens_per_frame, question=OTHER)
        same = prompt(loaded, 1, shape.text_tokens, shape.tokens_per_frame)
        entered = (
            ("unpruned", loaded, None, other),
            ("AdaTP p=1", loaded, method, other),
            ("AdaTP p=1, question asked before", loaded, method, same),
            ("AdaTP p=1, relevance=None", replace(loaded, relevance=None), method, other),
        )
        found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name, *_ in entered}
        for turn in range(1 + ROUNDS):
            for name, own, pruning, earlier in entered:
                with applied(own, pruning) as pruned:
                    _generate(own, earlier)  # the first call with an applied method may be slower
                    if turn == 0:  # to warm up, and to see the stages
                        found[name]["stages"] = _stages(own, inputs)
                        found[name]["kept"] = None if pruned is None else pruned.report.samples[0].kept
                        continue
                    begin = now()
                    _generate(own, inputs)
                    found[name]["seconds"].append(now() - begin)
            rows = [_row(str(build), name, own, found["unpruned"]) for name, own in found.items()]
            record.put(rows=[*before, *rows])
        del loaded, entered
        gc.collect()
        torch.cuda.empty_cache()


def _pixels(like: Tensor) -> Tensor:
    """Make frames of random brightness and pattern, so that no two are similar."""
    make = torch.Generator().manual_seed(0)
    pattern = torch.randn(*like.shape[:3], 12, 12, generator=make).repeat_interleave(32, 3).repeat_interleave(32, 4)
    return pattern.to(like.device, like.dtype)


def _generate(loaded: Loaded, inputs: dict[str, Tensor]) -> None:
    loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)


def _stages(loaded: Loaded, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Time one request by stage, with waits. `other` is the rest, and `decoder` does not include relevance."""
    family, relevance = family_of(loaded.model), loaded.relevance
    stages: dict[str, list[Any]] = {"question": [], "tower": family.tower, "relevance": [], "decoder": [family.decoder]}
    if isinstance(relevance, Relevance):
        stages |= {"question": [relevance.text_model], "relevance": [relevance]}
    begin = now()
    with Stopwatch(stages) as watch:
        _generate(loaded, inputs)
    seconds = dict(watch.seconds)
    seconds["decoder"] -= seconds["relevance"]
    return {**seconds, "other": now() - begin - sum(seconds.values())}


def _row(model: str, name: str, found: dict[str, Any], unpruned: dict[str, Any]) -> dict[str, Any]:
    row = {"model": model, "name": name, **found}
    if found["seconds"]:
        row["quartiles"] = quartiles(found["seconds"])
        pairs = zip(found["seconds"], unpruned["seconds"], strict=True)
        row["to_unpruned"] = quartiles([took / whole for took, whole in pairs])
    return row
