"""Reports for people (tables) and for programs (plain values)."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adatp.evaluation.session import Answer, Result
from adatp.flops import Flops
from adatp.methods import Method
from adatp.methods.settings import describe
from adatp.report import Sample
from adatp.video import Clip


def run_to_dict(model: str, question: str, clip: Clip, result: Result, notes: list[str]) -> dict[str, Any]:
    """The result of `adatp run` as JSON-ready values; times in seconds."""
    return {
        "model": model,
        "question": question,
        "notes": notes,
        "video": {"frames": len(clip.frames), "times": clip.times.tolist(), "duration": clip.duration},
        "answer": _answer_to_dict(result.pruned),
        "unpruned": None if result.unpruned is None else _answer_to_dict(result.unpruned),
        "report": result.report.to_dict(),
    }


def _answer_to_dict(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds_to_first_token": answer.first_token,
        "seconds": answer.seconds,
    }


def print_run(model: str, question: str, clip: Clip, result: Result, notes: list[str]) -> None:
    """Print the result of `adatp run`."""
    console = Console(highlight=False)
    sample = result.report.samples[0]
    print_notes(console, notes)
    assert result.report.method is not None
    console.print(f"[bold]model[/]     {escape(model)}")
    console.print(f"[bold]method[/]    {describe(result.report.method)}")
    console.print(f"[bold]question[/]  {escape(question)}")
    console.print(f"[bold]answer[/]    {escape(result.pruned.text)}")
    if result.unpruned is not None:
        console.print(f"[bold]unpruned[/]  {escape(result.unpruned.text)}")
    console.print(_layers(sample))
    console.print(_segments(sample, clip))
    console.print(_seconds(result))
    _print_flops(console, result.report.flops)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what the user should know."""
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")


def print_flops(model: str, method: Method, flops: Flops, lengths: list[int], visual: int, text_tokens: int) -> None:
    """Print the result of `adatp flops`."""
    console = Console(highlight=False)
    console.print(
        f"[bold]{model}[/], {describe(method)}: {visual} visual + {text_tokens} text tokens"
        + (
            ", the schedule alone (deduplication, which needs a video, takes it lower)"
            if method.name == "adatp"
            else ""
        )
    )
    table = Table("layers", "visual tokens", "share", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for layers, length in _runs(lengths):
        table.add_row(layers, str(length - text_tokens), f"{(length - text_tokens) / visual:.1%}")
    console.print(table)
    _print_flops(console, flops)


def _print_flops(console: Console, flops: Flops) -> None:
    console.print(
        f"prefill FLOPs of the language model: [bold]{flops.ratio:.2%}[/] of unpruned "
        f"({flops.linear / 1e12:.3g} of {flops.linear_full / 1e12:.3g} TFLOPs; linear layers, as the paper counts); "
        f"{flops.ratio_with_attention:.2%} with attention"
    )


def _layers(sample: Sample) -> Table:
    table = Table(
        "layers", "visual tokens", "share", "all tokens", title="Tokens at each layer's input", box=box.SIMPLE
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for layers, kept in _runs(sample.kept):
        table.add_row(layers, str(kept), f"{kept / sample.visual_tokens:.1%}", str(kept + sample.other_tokens))
    return table


def _segments(sample: Sample, clip: Clip) -> Table:
    table = Table(
        "#", "frames", "seconds", "similarity", "significant", "first cut", "last cut",
        title="Segments", box=box.SIMPLE,
    )  # fmt: skip
    for column in table.columns:
        column.justify = "right"
    for number, segment in enumerate(sample.segments):
        table.add_row(
            str(number),
            f"{segment.start}-{segment.stop - 1}",
            f"{clip.times[segment.start]:.1f}-{clip.times[segment.stop - 1]:.1f}",
            "-" if segment.similarity is None else f"{segment.similarity:.3f}",
            "yes" if segment.significant else "",
            str(segment.kept[sample.first_cut]),
            str(segment.kept[-1]),
        )
    return table


def _seconds(result: Result) -> Table:
    assert result.report.method is not None
    table = Table(
        "stage", type(result.report.method).__name__, title="Time to first token, ms (one run)", box=box.SIMPLE
    )
    answers = [result.pruned]
    if result.unpruned is not None:
        answers.append(result.unpruned)
        table.add_column("unpruned")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in result.pruned.seconds:
        table.add_row(stage, *(f"{1e3 * answer.seconds[stage]:.1f}" for answer in answers))
    table.add_row("first token", *(f"{1e3 * answer.first_token:.1f}" for answer in answers), style="bold")
    return table


def _runs(values: Any) -> list[tuple[str, int]]:
    """Equal neighbours as one row: `[7, 7, 5]` to `[("0-1", 7), ("2", 5)]`."""
    rows = []
    for value, group in groupby(enumerate(values), key=lambda item: item[1]):
        layers = [layer for layer, _ in group]
        rows.append((str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}", value))
    return rows
