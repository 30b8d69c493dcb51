"""The results of a run as tables, for a terminal and for Markdown."""

from statistics import median
from typing import Any

from adatp.evaluation.comparison import quartiles
from adatp.tables.tabulate import Rows

Result = dict[str, Any]
CUT = ("scoring", "selection", "compaction")


def tables(result: Result) -> list[tuple[str, Rows]]:
    """Return the tables of all measured sections of a result file, with their titles."""
    made = []
    for model in result["models"]:
        where = f"{model['name']}, {model['frames']} frames, {model['visual_tokens']} visual tokens"
        made.append((f"Prefill of the language model: {where}", _race(model["rows"])))
        made.append((f"Where a prefill at p = 1 goes: {where}", _parts(model["parts"])))
        if model["is_whole"]:
            made.append((f"Prefill by layer: {where}", _layers(model)))
    first = result["models"][0]["name"] if result["models"] else result["cuts_model"]
    stages = result["stages"]
    if stages:
        frames = stages["unpruned"]["frames"]
        made.append((f"To the first token: {first}, {frames} frames of a real video", _stages(stages)))
    for section, title, rows in (
        ("decode", f"Decoding: {first}", _decode),
        ("vary", f"Other sizes: {first}", _vary),
        ("cuts", f"One cut of longer videos, reference shapes of {result['cuts_model']}", _cuts),
        ("together", f"Requests that come together: {first}", _together),
        ("goals", "Goals", _goals),
    ):
        if result[section]:
            made.append((title, rows(result[section])))
    return made


def _race(rows: list[Result]) -> Rows:
    whole = rows[0]
    made = [
        [
            "",
            "FLOPs",
            "with attention",
            "and relevance",
            "median",
            "quartiles",
            "of unpruned",
            "of the ideal speed-up",
            "with relevance in it",
            "peak memory",
        ]
    ]
    for row in rows:
        if row["refused"]:
            made.append([row["name"], "cannot", *[""] * 8])
            continue
        low, middle, high = quartiles(row["seconds"])
        made.append(
            [
                row["name"],
                *(_percent(row[ratio]) for ratio in ("ratio", "ratio_causal", "ratio_all")),
                _seconds(middle),
                f"{_seconds(low)} - {_seconds(high)}",
                f"{median(row['to_unpruned']):.3f}",
                *(_percent(of_ideal(row, ratio)) for ratio in ("ratio_causal", "ratio_all")),
                f"{row['peak_bytes'] / 1e6:.0f} MB, {row['peak_bytes'] / whole['peak_bytes']:.2f}x",
            ]
        )
    return made


def of_ideal(row: Result, ratio: str = "ratio_causal") -> float:
    """Return the speed-up over the ideal one by the decoder's FLOPs, or with `"ratio_all"` by all FLOPs."""
    return float(row[ratio] / median(row["to_unpruned"]))


def overhead(parts: Result) -> dict[str, float]:
    """Return the shares of a pruned prefill that the parts of the pruning take."""
    return {name: seconds / parts["total"] for name, seconds in parts["pruning"].items()}


def _parts(parts: Result) -> Rows:
    shares = overhead(parts)
    layers = sum(parts["layers"])
    return [
        ["", "time", "share"],
        ["decoder layers", _seconds(layers), _percent(layers / parts["total"])],
        *([name, _seconds(parts["pruning"][name]), _percent(share)] for name, share in shares.items()),
        ["pruning, together", _seconds(sum(parts["pruning"].values())), _percent(sum(shares.values()))],
    ]


def _layers(model: Result) -> Rows:
    kept = next(row["kept"] for row in model["rows"] if row["name"] == "AdaTP p=1")
    made = [["layer", "tokens at p = 1", "unpruned", "AdaTP p=1", "of unpruned"]]
    times = zip(kept, model["unpruned_layers"], model["parts"]["layers"], strict=True)
    for index, (visual, whole, pruned) in enumerate(times):
        tokens = f"{visual + model['text_tokens']:,}"
        made.append([str(index), tokens, _seconds(whole), _seconds(pruned), f"{pruned / whole:.3f}"])
    return made


def _stages(stages: Result) -> Rows:
    whole, pruned = stages["unpruned"], stages["AdaTP p=1"]
    made = [["", "unpruned", "AdaTP p=1", "of unpruned"]]

    def line(name: str, before: float, after: float) -> None:
        made.append([name, _seconds(before), _seconds(after), f"{after / before:.3f}" if before else "only pruned"])

    for name, seconds in whole["seconds"].items():
        line(name, seconds, pruned["seconds"][name])
    totals = [sum(own["seconds"].values()) for own in (whole, pruned)]
    line("together", *totals)
    if whole["missing_tower"]:
        totals = [total + own["missing_tower"] for total, own in zip(totals, (whole, pruned), strict=True)]
        line("with all layers of the tower", *totals)
    # only the decoder can become faster, in proportion to its FLOPs
    line(
        "what its FLOPs leave (Amdahl)",
        totals[0],
        totals[0] - (1 - pruned["ratio_causal"]) * whole["seconds"]["decoder"],
    )
    return made


def _decode(decode: Result) -> Rows:
    batches = list(decode["unpruned"]["tokens_per_second"])
    made = [["", "KV cache", *(f"tokens/s, batch {batch}" for batch in batches)]]
    for name, row in decode.items():
        rates = [f"{row['tokens_per_second'][batch]:.3g}" for batch in batches]
        made.append([name, f"{row['cache_bytes'] / 1e6:.1f} MB", *rates])
    return made


def _vary(cases: list[Result]) -> Rows:
    made = [["frames", "text tokens", "batch", "unpruned", "AdaTP p=1", "of unpruned", "FLOPs"]]
    for case in cases:
        whole, pruned = median(case["unpruned"]), median(case["pruned"])
        made.append(
            [str(case[name]) for name in ("frames", "text_tokens", "batch")]
            + [_seconds(whole), _seconds(pruned), f"{pruned / whole:.3f}", _percent(case["ratio"])]
        )
    return made


def per_token(cut: Result) -> float:
    """Return the seconds of a cut's three operations for each visual token."""
    return float(sum(cut[part] for part in CUT) / cut["visual_tokens"])


def _cuts(cuts: list[Result]) -> Rows:
    made = [["frames", "visual tokens", *CUT, "together, a token"]]
    for cut in cuts:
        made.append(
            [
                str(cut["frames"]),
                f"{cut['visual_tokens']:,}",
                *(_seconds(cut[part]) for part in CUT),
                _seconds(per_token(cut)),
            ]
        )
    return made


def _together(together: Result) -> Rows:
    made = [["", "videos, frames", "median first token", "last first token"]]
    for name, row in together.items():
        frames = ", ".join(map(str, row["frames"]))
        made.append([name, frames, _seconds(median(row["seconds"])), _seconds(max(row["seconds"]))])
    return made


def _goals(goals: list[Result]) -> Rows:
    made = [["goal", "measured", ""]]
    for goal in goals:
        made.append([goal["goal"], goal["measured"], "met" if goal["met"] else "missed"])
    return made


def _seconds(value: float) -> str:
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if value >= s), ("ns", 1e-9))
    return f"{value / size:.3g} {unit}"


def _percent(share: float) -> str:
    return f"{share:.1%}"
