"""A study for people: tables on a terminal and in Markdown, from the values that `summarise` returns."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from adatp.tables.ablation import TITLES
from adatp.tables.heading import print_machine, print_notes
from adatp.tables.tabulate import Rows, markdown_tables, print_tables

FAR = 0.005  # a method whose share of FLOPs differs from AdaTP's by more is named below the tables


def print_study(study: dict[str, Any], notes: Sequence[str]) -> None:
    """Print all tables."""
    out = Console(highlight=False)
    print_notes(out, notes)
    print_machine(out, study["model"], study["machine"])
    out.print(
        f"[bold]questions[/] {study['questions']} about {study['clips']} held-out clips of {study['frames']} frames; "
        f"{study['seconds']:.0f} s"
    )
    print_tables(_all(study))
    for line in caption(study):
        out.print(line)


def markdown(study: dict[str, Any]) -> str:
    """Return all tables in Markdown."""
    return f"{markdown_tables(_all(study))}\n\n{' '.join(caption(study))}\n"


def caption(study: dict[str, Any]) -> list[str]:
    """Return lines that explain the tables, and why a method has no number."""
    lines = [
        "FLOPs: of the prefill's linear layers, mean. In brackets: points gained on the unpruned model with their 95 % "
        "interval (paired bootstrap over clips). Every method is turned to cost on each question what AdaTP costs "
        "there."
    ]
    lines += [
        f"The nearest that {row['method']} gets to AdaTP's p = {row['p']:g} is {row['flops']:.1%} of the FLOPs."
        for row in study["methods"]
        if not row["refused"] and abs(row["flops"] - _row(study, "adatp", row["p"])["flops"]) > FAR
    ]
    refused = [row for row in study["methods"] if row["refused"]]
    lines += [
        f"{row['method']} at AdaTP's p = {row['p']:g} cannot cost so little on {row['refused_questions']} of "
        f"{study['questions']} questions, the first: {row['refused']}."
        for row in refused
    ]
    return lines


def _all(study: dict[str, Any]) -> list[tuple[str, Rows]]:
    return [
        ("Accuracy", accuracy(study)),
        *[(f"By kind of question, p = {p:g}", by_kind(study, p)) for p in _settings(study)],
        *[(TITLES[table["table"]], _ablation(table)) for table in study["ablations"]],
        ("Biases of the unpruned model's attention", biases(study)),
    ]


def accuracy(study: dict[str, Any]) -> Rows:
    """Return the accuracy of every method at every budget, as rows."""
    settings = _settings(study)
    costs = [_row(study, "adatp", p)["flops"] for p in settings]
    head = ["method"] + [f"p = {p:g}: {cost:.1%} of the FLOPs" for p, cost in zip(settings, costs, strict=True)]
    rows = [head, ["unpruned", *[_percent(study["unpruned"]["accuracy"])] * len(settings)]]
    for name in _names(study):
        rows.append([name, *(_gained(_row(study, name, p)) for p in settings)])
    return rows


def by_kind(study: dict[str, Any], p: float) -> Rows:
    """Return the accuracy of every method on every kind of question, as rows."""
    kinds = [f"{kind} ({n})" for kind, n in study["groups"].items()]
    rows = [["method", *kinds], ["unpruned", *map(_percent, study["unpruned"]["by_group"].values())]]
    for name in _names(study):
        row = _row(study, name, p)
        cells = ["cannot"] * len(kinds) if row["refused"] else map(_percent, row["by_group"].values())
        rows.append([name, *cells])
    return rows


def biases(study: dict[str, Any]) -> Rows:
    """Return the place of the top tokens, and the frame and position with the most attention, for every layer."""
    own = study["biases"]
    rows = [["layer", "top 10 % in the first 4 frames", "in the last 4", "peak frame", "peak position (row, column)"]]
    for layer, (first, last, frames, positions) in enumerate(
        zip(own["top_in_first_frames"], own["top_in_last_frames"], own["per_frame"], own["per_position"], strict=True)
    ):
        frame, position = frames.index(max(frames)), positions.index(max(positions))
        row, column = divmod(position, own["grid"][1])
        rows.append(
            [
                str(layer),
                _percent(first),
                _percent(last),
                f"{max(frames):.2f}x at {frame}",
                f"{max(positions):.2f}x at {row}, {column}",
            ]
        )
    rows.append(["uniform", _percent(own["uniform"]), _percent(own["uniform"]), "1.00x", "1.00x"])
    return rows


def _ablation(table: dict[str, Any]) -> Rows:
    rows = [[*table["rows"][0]["varied"], "FLOPs", "accuracy", "paper's Avg"]]
    for row in table["rows"]:
        varied = [
            ("yes" if value else "no") if isinstance(value, bool) else f"{value:g}" for value in row["varied"].values()
        ]
        rows.append([*varied, f"{row['flops']:.1%}", _gained(row), f"{row['paper']['avg']:.2f}"])
    return rows


def _gained(row: dict[str, Any]) -> str:
    if row["refused"]:
        return "cannot"
    low, high = (100 * end for end in row["difference_interval"])
    return f"{_percent(row['accuracy'])} ({100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _settings(study: dict[str, Any]) -> list[float]:
    return list(dict.fromkeys(row["p"] for row in study["methods"]))


def _names(study: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in study["methods"]))


def _row(study: dict[str, Any], name: str, p: float) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [row for row in study["methods"] if (row["method"], row["p"]) == (name, p)]
    return found
