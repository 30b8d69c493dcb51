"""The output of a run: a table for people, and a JSON file that can be committed."""

import io
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.costs import Roofs
from bench.harness import Row

WIDTH = 150
KEPT = {"min", "max", "mean", "stddev", "median", "q1", "q3", "iqr", "rounds"}  # the statistics to keep
NO_GPU = "GPU: not measured; run `make bench` on a CUDA machine"


def render(rows: list[Row], roofs: Roofs, machine: dict[str, Any]) -> str:
    """Return the header, the table and the goals as text."""
    # a fixed width, so that piped output is the same
    printed = io.StringIO()
    console = Console(file=printed, width=WIDTH, highlight=False)
    console.print(f"\n{machine['gpu'] or machine['cpu']}", style="bold", end="")
    console.print(
        f": {machine['cores']} cores, {machine['threads']} threads, {machine['dtype']}, "
        f"torch {machine['torch']}, triton {machine['triton']}\n"
        f"roofs of this run: copy {number(roofs.copy / 1e9)} GB/s, matmul {number(roofs.matmul / 1e12)} TFLOP/s, "
        f"exponentials {number(roofs.exponentials / 1e12)} T/s\n"
        "q1 - q3: the middle half of the rounds; ratio: to the group's 1.00, less is faster;\n"
        "rates and roof: of the work that bench/costs.py counts, the same for all of a group"
    )
    console.print(table(rows, roofs))
    for line in goals(rows, roofs) if machine["gpu"] else [NO_GPU]:
        console.print(line, markup=False)
    return printed.getvalue()


def table(rows: list[Row], roofs: Roofs) -> Table:
    """Return a table with a section for every group."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("", max_width=64)
    for name in ("median", "q1 - q3", "ratio", "GB/s", "of copy", "TFLOP/s", "of matmul", "x roof"):
        result.add_column(name, justify="right", no_wrap=True)
    for group, members in grouped(rows):
        result.add_section()
        result.add_row(f"[bold]{escape(group)}[/]")
        baseline = next((row.median for row in members if row.baseline and not row.reason), None)
        for row in members:
            result.add_row(*cells(row, baseline, roofs))
    return result


def cells(row: Row, baseline: float | None, roofs: Roofs) -> list[str]:
    """Return the cells of a line."""
    if row.reason:
        return [f"  {escape(row.name)}: [dim]not measured, {escape(row.reason)}[/]"]
    ratio = number(row.median / baseline) if baseline else "-"
    line = [f"  {escape(row.name)}", duration(row.median), duration(row.median, row.q1, row.q3), ratio]
    if row.cost is None:
        return line
    rates = row.achieved(roofs)
    line += [number(rates["gb_per_s"]), percent(rates["share_of_copy"])]
    line += [number(rates["tflop_per_s"]), percent(rates["share_of_matmul"])] if row.cost.flops else ["", ""]
    return [*line, number(rates["times_roof"])]


def grouped(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Group neighbouring rows of the same group."""
    return [(group, list(members)) for group, members in groupby(rows, key=lambda row: row.group)]


def goals(rows: list[Row], roofs: Roofs) -> list[str]:
    """Return a line for each goal: whether it is met, and the worst case, which decides."""
    measured = [row for row in rows if not row.reason]
    kernels = [row for row in measured if row.provider.startswith("triton")]
    scores = [row for row in kernels if row.group.startswith("score:")]
    selects = [row for row in kernels if row.group.startswith("select:") and "32 frames" in row.group]
    missed = [row for row in scores if row.median >= 15e-6 and row.achieved(roofs)["times_roof"] > 1.5]
    lines = [
        verdict("score within 1.5x of its roof or under 15 us", scores, missed),
        verdict("select under 20 us at 32 frames", selects, [row for row in selects if row.median >= 20e-6]),
    ]
    lines += [eager_verdict(measured, scores), overhead_verdict(measured)]
    return lines


def eager_verdict(measured: list[Row], scores: list[Row]) -> str:
    """Compare score with eager attention, at the same state of the cache."""
    full = {
        (row.group, row.cache): row.median
        for row in measured
        if row.provider == "eager attention" and "OneVision-7B" in row.group
    }
    ratios = {
        f"{row.group}, {row.name}": full[row.group, row.cache] / row.median
        for row in scores
        if (row.group, row.cache) in full
    }
    goal = "score at least 20x faster than eager attention at OneVision-7B"
    if not ratios:
        return f"goal: {goal}: not measured"
    worst = min(ratios, key=lambda name: ratios[name])
    met = "met" if ratios[worst] >= 20 else "MISSED"
    return f"goal: {goal}: {met}, least {number(ratios[worst])}x ({worst})"


def overhead_verdict(measured: list[Row]) -> str:
    goal = "all cuts at most 2 % of the pruned prefill"
    layers = {row.cache: row.median for row in measured if row.provider == "all decoder layers"}
    cuts = {row.cache: row.median for row in measured if row.provider == "all cuts"}
    shares = [cuts[cache] / (cuts[cache] + layers[cache]) for cache in cuts if cache in layers]
    if not shares:
        return f"goal: {goal}: not measured"
    return f"goal: {goal}: {'met' if max(shares) <= 0.02 else 'MISSED'}, {percent(max(shares))}"


def verdict(goal: str, judged: list[Row], missed: list[Row]) -> str:
    if not judged:
        return f"goal: {goal}: not measured"
    if not missed:
        return f"goal: {goal}: met in all {len(judged)}"
    named = "; ".join(f"{row.group}, {row.name}: {duration(row.median)}" for row in missed)
    return f"goal: {goal}: MISSED in {len(missed)} of {len(judged)} ({named})"


def duration(seconds: float, *others: float) -> str:
    """Format seconds with a unit. With `others`, format those instead, in that unit but without its name."""
    unit, size = next(((u, s) for u, s in (("s", 1), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    return " - ".join(number(other / size) for other in others) or f"{number(seconds / size)} {unit}"


def number(value: float) -> str:
    """Format a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def stripped(report: dict[str, Any], rows: list[Row], roofs: Roofs) -> None:
    """Clean pytest-benchmark's report: remove personal data and bulk, and add the roofs and the missing results."""
    report["commit_info"] = {key: report["commit_info"].get(key) for key in ("id", "dirty")}
    report["roofs"] = asdict(roofs)
    report["not_measured"] = [
        {"group": row.group, "provider": row.name, "reason": row.reason} for row in rows if row.reason
    ]
    for benchmark in report["benchmarks"]:
        for key in benchmark.keys() - {"group", "extra_info", "stats"}:
            del benchmark[key]
        for key in benchmark["stats"].keys() - KEPT:
            del benchmark["stats"][key]
        for values in (benchmark["extra_info"], benchmark["stats"]):
            values.update({k: float(f"{v:.4g}") for k, v in values.items() if isinstance(v, float)})
