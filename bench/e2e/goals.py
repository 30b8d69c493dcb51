"""The goals, as ratios within one run, and whether they are met."""

from statistics import median
from typing import Any

from bench.e2e.tables import of_ideal, overhead, per_token

SMALLEST = 8  # frames; from here on, pruning must not be slower than no pruning
LONG_OVER_SHORT = 1.25  # largest ratio of the time a token at the longest video to that at 32 frames


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every goal that the run can decide: `goal`, the value `measured`, and whether it is `met`."""
    found = []
    for model in result["models"]:
        if model["is_whole"]:  # with few layers, most of the time is before the first cut
            found += _of_model(model, on_gpu=result["machine"]["device"] != "cpu")
    if result["vary"]:
        found.append(_never_slower(result["vary"]))
    if result["cuts"]:
        found.append(_linear(result["cuts"]))
    return found


def _never_slower(cases: list[dict[str, Any]]) -> dict[str, Any]:
    slowest = max(cases, key=lambda case: median(case["pruned"]) / median(case["unpruned"]))
    ratio = median(slowest["pruned"]) / median(slowest["unpruned"])
    sizes = f"{slowest['frames']} frames, {slowest['text_tokens']} text tokens, batch {slowest['batch']}"
    assert all(case["frames"] >= SMALLEST for case in cases)
    return _goal(f"never slower than unpruned from {SMALLEST} frames up", f"{ratio:.3f} at {sizes}", ratio <= 1)


def _linear(cuts: list[dict[str, Any]]) -> dict[str, Any]:
    short, long = per_token(cuts[0]), per_token(cuts[-1])
    measured = f"{long / short:.2f}x a token at {cuts[-1]['frames']} frames"
    return _goal("a cut's cost grows linearly in tokens", measured, long <= LONG_OVER_SHORT * short)


def _of_model(model: dict[str, Any], *, on_gpu: bool) -> list[dict[str, Any]]:
    rows = {row["name"]: row for row in model["rows"]}
    small, name = "0.5b" in model["name"], model["name"]
    unpruned, pruned = rows["unpruned"], rows["AdaTP p=1"]
    speed, cost = ((0.85, 0.08) if small else (0.95, 0.02)) if on_gpu else (0.95, 0.03)
    share, reached = overhead(model["parts"]), of_ideal(pruned)
    relevance = share["question"] + share["relevance"]
    together, comparing = sum(share.values()), 1 - pruned["ratio_causal"] / pruned["ratio_all"]
    found = [
        _goal(
            f"{name}: speed-up at p = 1 at least {speed:.2f} of the ideal",
            f"{reached:.3f}; {of_ideal(pruned, 'ratio_all'):.3f} of what all FLOPs promise, relevance's among them",
            reached >= speed,
        ),
        _goal(
            f"{name}: pruning at most {cost:.0%} of the pruned prefill",
            f"{together:.1%}, of which relevance {relevance:.1%}, which is {comparing:.1%} of the FLOPs",
            together <= cost,
        ),
    ]
    eager = rows.get("FastV, eager")
    if eager is not None and not eager["refused"]:
        ratio = median(pruned["seconds"]) / median(eager["seconds"])
        found.append(_goal(f"{name}: faster than FastV's eager form", f"{ratio:.3f} of its time", ratio < 1))
    memory = pruned["peak_bytes"] / unpruned["peak_bytes"]
    found.append(_goal(f"{name}: peak memory at p = 1 at most 60 %", f"{memory:.0%}", memory <= 0.6))
    return found


def _goal(goal: str, measured: str, met: bool) -> dict[str, Any]:
    return {"goal": goal, "measured": measured, "met": bool(met)}
