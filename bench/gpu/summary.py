"""What the steps have found, in short."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from adatp.study.tabulate import Rows
from bench.summary import duration

Found = dict[str, Any]


def tables(found: Sequence[Found]) -> list[tuple[str, Rows]]:
    """How every step ended, and its figures; of those that ended early, what they have found by then."""
    made = [("Steps", [["", "status", "seconds", ""], *map(_ended, found)])]
    by_step = {own["step"]: own for own in found}
    for step, title, head, line in (
        ("kernels", "Operations, device time", ["", "segments", "warm", "x roof", "cold L2", "host"], _operation),
        ("prefill", "Prefill, wall clock", ["", "median", "of unpruned", "own cost", "cuts, host"], _prefill),
        ("ttft", "To the first token", ["", "median", "of unpruned"], _first_token),
        ("scale", "Other sizes", ["", "frames", "batch", "unpruned", "AdaTP p=1", "of unpruned"], _size),
    ):
        key = "operations" if step == "kernels" else "rows"
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


def _prefill(row: Found) -> list[str]:
    name = f"{row['model']}{', compiled' if row['compiled'] else ''}: {row['name']}"
    if "seconds" not in row:
        return [name, "cannot" if row["refused"] else "not timed", "", "", ""]
    cost = f"{row['own_share']:.1%}" if "own_share" in row else ""
    host = duration(row["cuts"]["host"]) if row.get("cuts", {}).get("host") else ""
    return [name, duration(median(row["seconds"])), _ratio(row), cost, host]


def _first_token(row: Found) -> list[str]:
    return [
        f"{row['model']}: {row['name']}",
        *([duration(median(row["seconds"])), _ratio(row)] if row["seconds"] else ["", ""]),
    ]


def _size(row: Found) -> list[str]:
    names = [row["model"], str(row["frames"]), str(row["batch"])]
    if row.get("refused"):
        return [*names, row["refused"], "", ""]
    whole, pruned = median(row["unpruned"]), median(row["pruned"])
    return [*names, duration(whole), duration(pruned), f"{pruned / whole:.3f}"]


def _ratio(row: Found) -> str:
    return f"{row['to_unpruned'][1]:.3f}" if "to_unpruned" in row else ""
