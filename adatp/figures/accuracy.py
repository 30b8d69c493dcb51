"""A study's accuracy against FLOPs, as a picture."""

from pathlib import Path
from typing import Any

_MARKERS = "os^Dvp*Xh"


def draw_accuracy(path: Path, study: dict[str, Any]) -> None:
    """Draw the accuracy of every method at its costs: AdaTP with a thick line, the unpruned model as a dotted line.

    Args:
        path: file to write; ends in .png.
        study: the values that `adatp.evaluation.accuracy_summary.summarise` returns.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.add_subplot()
    names = list(dict.fromkeys(row["method"] for row in study["methods"]))
    for i, name in enumerate(names):
        rows = [row for row in study["methods"] if row["method"] == name and not row["refused"]]
        if not rows:
            continue
        is_ours = name == "adatp"
        accuracy = [100 * row["accuracy"] for row in rows]
        ends = [[100 * (row["accuracy"] - row["interval"][0]), 100 * (row["interval"][1] - row["accuracy"])]
                for row in rows]  # fmt: skip
        axis.errorbar(
            [100 * row["flops"] for row in rows],
            accuracy,
            yerr=list(zip(*ends, strict=True)),
            label=name,
            marker=_MARKERS[i % len(_MARKERS)],
            linewidth=2.4 if is_ours else 1.1,
            elinewidth=0.6,
            capsize=2,
            zorder=3 if is_ours else 2,
        )
    axis.axhline(100 * study["unpruned"]["accuracy"], color="#565d66", linewidth=0.9, linestyle=":", label="unpruned")
    axis.set_xlabel("FLOPs of the prefill, % of unpruned (linear layers, mean)")
    axis.set_ylabel("accuracy, % (95 % Wilson interval)")
    axis.set_title(f"{study['questions']} held-out questions", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
