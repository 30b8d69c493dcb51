"""A picture of a run's prefill times against the FLOPs."""

from pathlib import Path
from statistics import median
from typing import Any


def draw_speed(path: Path, result: dict[str, Any]) -> None:
    """Draw each method's prefill time against its FLOPs, with a panel for each model. On the line, both ratios agree.

    Args:
        path: file to write.
        result: results of `bench.e2e`.
    """
    from matplotlib.figure import Figure

    models = result["models"]
    figure = Figure(figsize=(5.2 * len(models), 4.2), layout="constrained")
    for panel, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        panel.plot([0, 100], [0, 100], color="#565d66", linewidth=0.9, linestyle=":")
        rows = [row for row in model["rows"] if not row["refused"]]
        for row in rows:
            panel.plot(100 * row["ratio_causal"], 100 * median(row["to_unpruned"]), "o", label=row["name"])
        panel.set_title(f"{model['name']}, {model['visual_tokens']:,} visual tokens", fontsize=9, loc="left")
        panel.set_xlabel("FLOPs, % of unpruned (causal attention included)")
        panel.set_ylabel("time of the prefill, % of unpruned")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False)
    figure.savefig(path)
