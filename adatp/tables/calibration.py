"""A calibration of tau_s for people (a table) and for programs (plain values)."""

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from adatp.evaluation.calibration import FRAMES_PER_SEGMENT, SHARES, Calibration, count_segments, quantiles
from adatp.methods import AdaTP
from adatp.tables.heading import print_notes
from adatp.tables.tabulate import print_table

TAUS = (0.8, 0.9, AdaTP.tau_s, 0.98)  # the thresholds whose segments are shown beside those of the one that was found
_NAMES = tuple({0.0: "least", 0.5: "median", 1.0: "most"}.get(share, f"{share:.0%}") for share in SHARES)


def print_calibration(model: str, videos: Sequence[str], own: Calibration, notes: Sequence[str]) -> None:
    """Print the result of `adatp calibrate`."""
    out = Console(highlight=False)
    print_notes(out, notes)
    out.print(f"[bold]model[/]     {escape(model)}")
    out.print(f"[bold]features[/]  {_features(own)}")
    taus = [*TAUS, own.found.tau_s]
    head = ("video", "frames", *_NAMES, *(f"at {tau:g}" for tau in TAUS), f"at {own.found.tau_s!r}")
    rows: list[list[str] | None] = [
        [escape(video), str(len(cosines) + 1), *_shown(cosines), *(str(count_segments(cosines, tau)) for tau in taus)]
        for video, cosines in zip(videos, own.cosines, strict=True)
    ]
    every, means = torch.cat(own.cosines), [f"{_mean(own, tau):.2f}" for tau in taus]
    frames = sum(len(cosines) + 1 for cosines in own.cosines)
    rows += [None, ["all, mean segments", str(frames), *_shown(every), *means]]
    print_table(head, rows, title="Cosines of adjacent frames' features, and segments at a tau_s")
    out.print(
        f"[bold]tau_s = {own.found.tau_s!r}[/] gives {_mean(own, own.found.tau_s):.2f} segments per video; wanted: "
        f"{own.wanted:.2f}, {_why(own)}{'' if own.reached else '. No tau_s comes nearer'}. "
        f"Use it with --set tau_s={own.found.tau_s!r}"
    )


def calibration_to_dict(model: str, videos: Sequence[str], own: Calibration, notes: Sequence[str]) -> dict[str, Any]:
    """Convert the result of `adatp calibrate` to JSON-ready values. A cosine that is not a number is null."""
    taus = [*TAUS, own.found.tau_s]
    return {
        "model": model,
        "features": "siglip" if own.aligned else "tower",
        "notes": list(notes),
        "wanted_segments": own.wanted,
        "wanted_by": "user" if own.chosen else "default",
        "tau_s": own.found.tau_s,
        "mean_segments": _mean(own, own.found.tau_s),
        "reached": own.reached,
        "videos": [
            {
                "path": video,
                "frames": len(cosines) + 1,
                "sorted_cosines": [value if value > -torch.inf else None for value in cosines.tolist()],
                "quantiles": _named(cosines),
                "segments": [{"tau_s": tau, "segments": count_segments(cosines, tau)} for tau in taus],
            }
            for video, cosines in zip(videos, own.cosines, strict=True)
        ],
        "all": {
            "quantiles": _named(torch.cat(own.cosines)),
            "segments": [{"tau_s": tau, "mean_segments": _mean(own, tau)} for tau in taus],
        },
    }


def _features(own: Calibration) -> str:
    if own.aligned:
        return "SigLIP's pooled output, one of each frame"
    return "the mean of a frame's patches in the model's own vision tower; the paper's tau_s is not meant for these"


def _why(own: Calibration) -> str:
    return "as --segments says" if own.chosen else f"one for every {FRAMES_PER_SEGMENT} frames (--segments sets it)"


def _mean(own: Calibration, tau_s: float) -> float:
    return sum(count_segments(cosines, tau_s) for cosines in own.cosines) / len(own.cosines)


def _shown(cosines: Tensor) -> list[str]:
    found = quantiles(cosines)
    return ["-"] * len(SHARES) if found is None else [f"{value:.4f}" for value in found]


def _named(cosines: Tensor) -> dict[str, float] | None:
    found = quantiles(cosines)
    return None if found is None else {str(share): value for share, value in zip(SHARES, found, strict=True)}
