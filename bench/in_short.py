"""The README's two tables of results: a few rows from the full tables in docs/accuracy.md and docs/speed.md."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from adatp.tables.tabulate import Rows, markdown_table
from bench.summary import duration

Found = dict[str, Any]
SIZES = ((256, 1), (8, 8))  # (frames, batch): one case that gets faster and one that gets slower


def accuracy_in_short(study: Found) -> str:
    """Return the accuracy table: the unpruned model, and AdaTP at its settings."""
    rows = [
        ["", "decoder FLOPs", "right answers", "points gained, 95 % interval"],
        ["unpruned", "100.0 %", f"{100 * study['unpruned']['accuracy']:.1f} %", ""],
    ]
    for row in study["methods"]:
        if row["method"] == "adatp":
            low, high = (100 * end for end in row["difference_interval"])
            gained = f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            shares = [f"{100 * row[share]:.1f} %" for share in ("flops", "accuracy")]
            rows.append([f"AdaTP, p = {row['p']:g}", *shares, gained])
    return f"{markdown_table(rows)}\n"


def speed_in_short(gpus: Iterable[Sequence[Found]], machines: Iterable[Found]) -> str:
    """Return the speed table: prefills and first tokens of AdaTP at p = 1 and of the unpruned model.

    Args:
        gpus: for each GPU, the results of its steps.
        machines: for each machine, the results of `bench.e2e`.
    """
    rows = [["", "unpruned", "AdaTP, p = 1", "of unpruned"]]
    for steps in gpus:
        rows += _of_gpu({own["step"]: own for own in steps})
    for found in machines:
        rows += _of_machine(found)
    return f"{markdown_table(rows)}\n"


def _of_gpu(steps: dict[str, Found]) -> Rows:
    gpu = steps["prefill"]["machine"]["gpu"].split()[1]  # the short name: "H100" of "NVIDIA H100 80GB HBM3"
    made = []
    for step, what in (("prefill", "prefill"), ("ttft", "first token")):
        rows = {(row["model"], row["name"]): row for row in steps[step]["rows"] if not row.get("compiled")}
        for model in dict.fromkeys(name for name, _ in rows):
            whole, pruned = (rows[model, name] for name in ("unpruned", "AdaTP p=1"))
            ratio = pruned["to_unpruned"][1]  # the median of three quartiles
            made.append(_line(f"{gpu}: {what}, {model}, 32 frames", whole["seconds"], pruned["seconds"], ratio))
    for row in steps["scale"]["rows"]:
        if not row.get("refused") and (row["frames"], row["batch"]) in SIZES:
            batch = f", batch of {row['batch']}" if row["batch"] > 1 else ""
            name = f"{gpu}: prefill, {row['model']}, {row['frames']} frames{batch}"
            made.append(_line(name, row["unpruned"], row["pruned"]))
    return made


def _of_machine(found: Found) -> Rows:
    model = found["models"][0]
    where = f"{model['name']}, {model['frames']} frames"
    rows = {row["name"]: row for row in model["rows"]}
    whole, pruned = rows["unpruned"], rows["AdaTP p=1"]
    before, after = (
        sum(own["seconds"].values()) + (own["missing_tower"] or 0)
        for own in (found["stages"]["unpruned"], found["stages"]["AdaTP p=1"])
    )
    cores = f"{found['machine']['cores']} CPU cores"
    return [
        _line(f"{cores}: prefill, {where}", whole["seconds"], pruned["seconds"], median(pruned["to_unpruned"])),
        _line(f"{cores}: first token, {where}", [before], [after]),
    ]


def _line(name: str, whole: Sequence[float], pruned: Sequence[float], ratio: float | None = None) -> list[str]:
    """Return a row with the medians of seconds and their ratio, which is computed if it is not given."""
    before, after = median(whole), median(pruned)
    return [name, duration(before), duration(after), f"{after / before if ratio is None else ratio:.3f}"]
