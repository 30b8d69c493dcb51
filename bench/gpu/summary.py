"""A summary of the results of the steps."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from adatp.evaluation.comparison import quartiles
from adatp.tables.tabulate import Rows
from bench.summary import duration

Found = dict[str, Any]
OPERATION = ["", "segments", "warm", "x roof", "cold L2", "host"]
CUT = ["", "segments", "device", "host", "kernels"]
WALL = ["median", "quartiles", "of unpruned", "its quartiles"]
PREFILL = ["", "FLOPs", *WALL, "own cost", "cuts, host"]
FIRST_TOKEN = ["", *WALL]
SIZE = ["", "frames", "batch", "unpruned", "AdaTP p=1", "of unpruned"]


def tables(found: Sequence[Found]) -> list[tuple[str, Rows]]:
    """Return tables of how every step ended, and of its figures. A step that ended early has its figures so far."""
    made = [("Steps", [["", "status", "seconds", ""], *map(_ended, found)])]
    by_step = {own["step"]: own for own in found}
    for step, key, title, head, line in (
        ("kernels", "operations", "Operations, device time", OPERATION, _operation),
        ("kernels", "cuts", "Whole cuts", CUT, _cut),
        ("prefill", "rows", "Prefill, wall clock", PREFILL, _prefill),
        ("ttft", "rows", "To the first token, wall clock", FIRST_TOKEN, _first_token),
        ("scale", "rows", "Prefill at other sizes, wall clock", SIZE, _size),
    ):
        rows = [line(row) for row in by_step.get(step, {}).get(key, [])]
        if rows:
            made.append((title, [head, *rows]))
    return made


def _ended(own: Found) -> list[str]:
    why = own.get("error", "").strip().splitlines()
    return [own["step"], own["status"], f"{own.get('seconds', 0):.0f}", why[-1][:100] if why else ""]


def _operation(row: Found) -> list[str]:
    name = f"{row['operation']}, {row['model']}, {row['frames']} frames"
    times = [duration(row[key]) for key in ("seconds", "cold_seconds", "host_seconds")]
    return [name, str(row["segments"]), times[0], f"{row['times_roof']:.2f}", *times[1:]]


def _cut(row: Found) -> list[str]:
    name = f"{row['cut']}, {row['model']}, {row['frames']} frames"
    times = [duration(median(row[key])) for key in ("seconds", "host")]
    return [name, str(row["segments"]), *times, str(row["trace"]["kernels"])]


def _prefill(row: Found) -> list[str]:
    name = f"{row['model']}{', compiled' if row['compiled'] else ''}: {row['name']}"
    if "seconds" not in row:
        return [name, "cannot" if row["refused"] else "not timed", *[""] * (len(PREFILL) - 2)]
    flops = f"{row['ratio_causal']:.1%}" if "ratio_causal" in row else "100.0%"
    cost = f"{row['own_share']:.1%}" if "own_share" in row else ""
    host = duration(row["cuts"]["host"]) if row.get("cuts", {}).get("host") else ""
    return [name, flops, *_wall(row), cost, host]


def _first_token(row: Found) -> list[str]:
    name = f"{row['model']}: {row['name']}"
    return [name, *(_wall(row) if row["seconds"] else [""] * (len(FIRST_TOKEN) - 1))]


def _size(row: Found) -> list[str]:
    names = [row["model"], str(row["frames"]), str(row["batch"])]
    if row.get("refused"):
        return [*names, row["refused"], "", ""]
    whole, pruned = median(row["unpruned"]), median(row["pruned"])
    return [*names, duration(whole), duration(pruned), f"{pruned / whole:.3f}"]


def _wall(row: Found) -> list[str]:
    """Return median and quartiles of the seconds, and of their ratios to the unpruned ones of the same round."""
    low, middle, high = quartiles(row["seconds"])
    ratio = row["to_unpruned"]
    return [
        duration(middle),
        f"{duration(low)} - {duration(high)}",
        f"{ratio[1]:.3f}",
        f"{ratio[0]:.3f} - {ratio[2]:.3f}",
    ]
