"""A comparison of methods for people (a table) and for programs (plain values)."""

import math
from typing import Any

from rich.console import Console
from rich.markup import escape

from adatp.evaluation.agreement import Agreement
from adatp.evaluation.comparison import Comparison, Refused, Row, quartiles
from adatp.methods.settings import describe
from adatp.tables.heading import print_machine, print_notes
from adatp.tables.tabulate import print_table
from adatp.video import Clip

_HEAD = (
    "method", "first", "last", "mean", "FLOPs", "with att.", "time, ms", "quartiles", "ratio", "KL, nats", "variation",
    "top",
)  # fmt: skip
_CAPTION = (
    "visual tokens: at the first and the last layer whose input is pruned, and the mean over all layers. FLOPs: of the "
    "linear layers, and with attention. time: of the decoder and all that the method computes from the tower's "
    "features on, median and quartiles; ratio: to the unpruned prefill of the same round, median. KL(unpruned || "
    "method), total variation and the most likely token: of the next-token distribution. *: see below"
)


def print_comparison(model: str, video: str, clip: Clip, question: str, compared: Comparison, notes: list[str]) -> None:
    """Print the result of `adatp compare`."""
    out, whole = Console(highlight=False), _unpruned(compared).sample
    print_notes(out, notes)
    print_machine(out, model, compared.machine)
    out.print(
        f"[bold]clip[/]      {escape(video)}: {len(clip.frames)} frames of {clip.duration:.1f} s, "
        f"{whole.visual_tokens} visual + {whole.other_tokens} other tokens"
    )
    out.print(f"[bold]question[/]  {escape(question)}")
    asked = "at their own settings" if compared.flops is None else f"at {compared.flops:.1%} of the unpruned FLOPs"
    out.print(f"[bold]methods[/]   {asked}; {compared.repeats} timed prefills of each, in turn")

    print_table(_HEAD, [_cells(row) for row in compared.rows])
    out.print(_CAPTION)
    for row in compared.rows:
        for note in [row.reason] if isinstance(row, Refused) else row.notes:
            out.print(f"* [bold]{row.method.name}[/]: {escape(note)}")


def _cells(row: Row | Refused) -> list[str]:
    if isinstance(row, Refused):
        return [f"{describe(row.method)}: cannot *"]
    low, middle, high = (1e3 * value for value in quartiles(row.seconds))
    kept = row.sample.kept
    return [
        "unpruned" if row.method.name == "none" else escape(describe(row.method)),
        str(kept[row.sample.first_cut]),
        str(kept[-1]),
        f"{sum(kept) / len(kept):.1f}",
        f"{row.flops['ratio']:.2%}{'*' if row.notes else ''}",
        f"{row.flops['ratio_with_attention']:.2%}",
        f"{middle:.1f}",
        f"{low:.1f} - {high:.1f}",
        f"{quartiles(row.ratios)[1]:.3f}",
        f"{row.agreement.kl:#.4g}",
        f"{row.agreement.total_variation:.4f}",
        "same" if row.agreement.same_top else "other",
    ]


def comparison_to_dict(
    model: str, video: str, clip: Clip, question: str, compared: Comparison, notes: list[str]
) -> dict[str, Any]:
    """Convert the result of `adatp compare` to JSON-ready values; times in seconds."""
    whole = _unpruned(compared).sample
    return {
        "model": model,
        "machine": compared.machine,
        "video": {
            "path": video,
            "frames": len(clip.frames),
            "times": clip.times.tolist(),
            "duration": clip.duration,
        },
        "question": question,
        "visual_tokens": whole.visual_tokens,
        "other_tokens": whole.other_tokens,
        "flops": compared.flops,
        "repeats": compared.repeats,
        "notes": notes,
        "methods": [_row_to_dict(row) for row in compared.rows],
    }


def _row_to_dict(row: Row | Refused) -> dict[str, Any]:
    own = {"method": row.method.name, "settings": row.method.settings()}
    if isinstance(row, Refused):
        return {**own, "refused": row.reason}
    return {
        **own,
        "refused": None,
        "notes": row.notes,
        "kept": list(row.sample.kept),
        "flops": row.flops,
        "agreement": agreement_to_dict(row.agreement),
        "seconds": row.seconds,
        "seconds_quartiles": list(quartiles(row.seconds)),
        "ratios_to_unpruned": row.ratios,
        "ratios_quartiles": list(quartiles(row.ratios)),
    }


def agreement_to_dict(own: Agreement) -> dict[str, Any]:
    """Convert an agreement to JSON-ready values; an infinite KL divergence becomes null."""
    return {
        "kl_nats": own.kl if math.isfinite(own.kl) else None,
        "same_top": own.same_top,
        "total_variation": own.total_variation,
    }


def _unpruned(compared: Comparison) -> Row:
    row = compared.rows[0]
    assert isinstance(row, Row)
    return row
