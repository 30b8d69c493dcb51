"""Time for growing numbers of frames, text tokens, prompts and simultaneous requests."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from adatp.evaluation.measure import applied
from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import now
from adatp.methods import AdaTP, Method
from bench.e2e.models import Build, given_states, prompt
from bench.e2e.prefill import Contender, race
from bench.inputs import DEVICE, Case, compact_inputs, run_compact, run_score, run_select, score_inputs, select_inputs
from bench.timing import host_seconds, replayed

REPEATS = 5  # rounds of a cut's operations


def vary(
    loaded: Loaded,
    build: Build,
    method: AdaTP,
    cases: Sequence[dict[str, int]],
    *,
    rounds: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the prefill at other sizes, unpruned and pruned.

    Args:
        loaded: the model.
        build: the build of the model.
        method: the method to prune with.
        cases: the sizes, each with `frames`, `text_tokens` and `batch`.
        rounds: number of rounds for each case.
        tell: called with the name of each step as it begins.
    """
    found = []
    for case in cases:
        inputs = prompt(loaded, case["frames"], case["text_tokens"], build.shape.tokens_per_frame)
        inputs = {name: value.repeat(case["batch"], *[1] * (value.ndim - 1)) for name, value in inputs.items()}
        named = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in case.items())
        with given_states(loaded, case["frames"] * case["batch"]):
            unpruned, pruned = race(
                loaded,
                inputs,
                [Contender("unpruned", None), Contender("AdaTP", method)],
                rounds=rounds,
                tell=partial(_tell_of, tell, named),
            )
        found.append({**case, "unpruned": unpruned.seconds, "pruned": pruned.seconds, "ratio": pruned.ratio})
    return found


def _tell_of(tell: Callable[[str], None], named: str, step: str) -> None:
    tell(f"{step}, {named}")


def cut(model: str, frames: int) -> dict[str, Any]:
    """Return median seconds of the three operations of a first cut, for random tensors of a model's shape.

    On a GPU these are device times, and `host` is the time that the host takes to queue each operation.
    """
    case = Case(model, frames)
    s, x, c = score_inputs(case), select_inputs(case), compact_inputs(case)
    operations: dict[str, Callable[[], Any]] = {
        "scoring": lambda: run_score(s),
        "selection": lambda: run_select(x),
        "compaction": lambda: run_compact(c),
    }
    found: dict[str, Any] = {"frames": frames, "visual_tokens": case.visual}
    for name, run in operations.items():
        found[name] = median(replayed(run, rounds=REPEATS)[0])
    if DEVICE.type == "cuda":
        found["host"] = {name: median(host_seconds(run)) for name, run in operations.items()}
    return found


@torch.inference_mode()
def concurrent(loaded: Loaded, build: Build, method: Method | None, videos: Sequence[int]) -> dict[str, Any]:
    """Run simultaneous requests, each in its own thread and with its own length of video.

    Args:
        loaded: the model.
        build: the build of the model.
        method: the method to prune with; None for no pruning.
        videos: number of frames of each request's video.

    Returns:
        Seconds from the common start to the first token of each request.
    """
    shape, text = build.shape, build.shape.text_tokens
    prompts = [prompt(loaded, frames, text, shape.tokens_per_frame) for frames in videos]
    took = [0.0] * len(videos)
    ready = threading.Barrier(len(videos) + 1)

    def request(i: int) -> None:
        with torch.inference_mode():
            ready.wait()
            loaded.model(**prompts[i], logits_to_keep=1)
            took[i] = now() - begin

    with given_states(loaded, max(videos)), applied(loaded, method):
        threads = [threading.Thread(target=request, args=(i,)) for i in range(len(videos))]
        for thread in threads:
            thread.start()
        begin = now()
        ready.wait()
        for thread in threads:
            thread.join()
    return {"frames": list(videos), "seconds": took}
