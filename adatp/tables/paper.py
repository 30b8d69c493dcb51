"""The paper's FLOPs columns beside ours: as tables for people, and as JSON-ready values."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from adatp.evaluation.paper.rows import (
    COUNTED,
    MODELS,
    MOST_TEXT,
    Counter,
    Row,
    Shares,
    least_differences,
    mean_differences,
)
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.methods import AdaTP, VisionZip
from adatp.tables.heading import print_notes
from adatp.tables.tabulate import print_table

MARKS = (
    "ours: linear. <=: the schedule's bound, a video's content decides how much less it is. *: a fit, the paper states "
    "no such setting; VisionZip's patches a frame are those that cost nearest to the paper's figure, the shares of "
    "random, uniform and pool those that cost nearest to AdaTP's. pyramiddrop has its authors' settings."
)
_SWITCHES = {"segments": "segments", "global_debias": "global", "local_debias": "local"}  # of Tab. 2


def tables_to_dict(rows: Sequence[Row], count: Counter, notes: Sequence[str]) -> dict[str, Any]:
    """Convert all rows to JSON-ready values: shares in percent, differences in points."""
    differences = mean_differences(rows)
    return {
        "counted": COUNTED,
        "text_tokens": {model: shape.text_tokens for model, shape in MODEL_SHAPES.items()},
        "mean_difference": differences._asdict(),
        "mean_difference_with_free_text_tokens": least_differences(rows, count)._asdict(),
        "paper_follows": _nearest(differences),
        "notes": list(notes),
        "rows": [row.to_dict() for row in rows],
    }


def print_tables(rows: Sequence[Row], count: Counter, notes: Sequence[str]) -> None:
    """Print the tables, the way of counting, and which way of counting fits the paper best."""
    console = Console(highlight=False)
    told = ", ".join(f"{shape.text_tokens} for {model}" for model, shape in MODEL_SHAPES.items())
    console.print(f"{COUNTED}: {told}.\n\n{MARKS}\n")
    print_notes(console, notes)
    names = {model: name for name, model in MODELS.items()}
    for (number, model), own in groupby(rows, key=lambda row: (row.table, row.model)):
        _print_table(console, f"Tab. {number}, {names[model]}", list(own))
    checks = sum(row.is_check for row in rows)
    differences = mean_differences(rows)
    console.print(
        f"Mean absolute difference of the {checks} rows whose figure and settings the paper states, in points: "
        f"{_named(differences)}. With as many text tokens, up to {MOST_TEXT}, as suit each of these best: "
        f"{_named(least_differences(rows, count))}. The paper's figures follow [bold]{_words(_nearest(differences))}"
        "[/]. It counts with torch.profiler, which knows matrix products but no fused attention."
    )


def _nearest(differences: Shares) -> str:
    """Return the way of counting that is nearest to the paper's figures, a field of `Shares`."""
    return min(zip(differences, Shares._fields, strict=True))[1]


def _named(differences: Shares) -> str:
    return ", ".join(f"{_words(name)} {value:.2f}" for name, value in differences._asdict().items())


def _words(field: str) -> str:
    return field.replace("_", " ")


def _print_table(console: Console, title: str, rows: Sequence[Row]) -> None:
    heads = ("linear", "with\nattention", "with\ntower", "paper", "ours -\npaper")
    notes: dict[str, int] = {}
    lines: list[list[str] | None] = []
    for _, group in groupby(rows, key=lambda row: row.p):
        for row in group:
            mark = ""
            if row.note and not row.fitted:  # `MARKS` explains all fits at once
                mark = f" ({notes.setdefault(row.note, len(notes) + 1)})"
            at_most = "<= " if row.kind == "bound" else ""
            cells = [
                escape(_label(row)) + mark,
                *(f"{at_most}{share:.2f}" for share in row.ours),
                "" if row.paper is None else f"{row.paper:.2f}",
                "" if row.difference is None else f"{at_most}{row.difference:+.2f}",
            ]
            lines.append([f"[dim]{cell}[/]" for cell in cells] if row.paper is None else cells)
        lines.append(None)
    print_table(("method", *heads), lines, title=title)
    for note, number in notes.items():
        console.print(f"({number}) {escape(note)}")
    console.print()


def _label(row: Row) -> str:
    """Return the method with its main setting, or the video of a run."""
    method, knob = row.method, row.method.knob
    if row.video is not None:
        return f"  {Path(row.video).name}"
    if isinstance(method, AdaTP) and row.table == 2:
        return ", ".join(short for name, short in _SWITCHES.items() if getattr(method, name)) or "none of the modules"
    if isinstance(method, AdaTP) and row.table == 3:
        return f"layers {method.first}-{method.last}"
    if isinstance(method, VisionZip):
        patches = MODEL_SHAPES[row.model].grid.patches
        return f"{method.name} {method.keep * patches:.0f}/{patches}*"
    setting = "" if knob is None else f" {knob}={method.settings()[knob]:.3g}"
    return f"{method.name}{setting}{'*' if row.fitted else ''}"
