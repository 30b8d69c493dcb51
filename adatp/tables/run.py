"""Reports for people (tables) and for programs (plain values)."""

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape

from adatp.evaluation.published import Prompt
from adatp.evaluation.session import Answer, Result
from adatp.flops import Flops
from adatp.methods import Method
from adatp.methods.settings import describe
from adatp.report import Sample
from adatp.tables.heading import print_notes
from adatp.tables.tabulate import print_table
from adatp.video import Clip


def run_to_dict(model: str, question: str, clip: Clip, result: Result, notes: list[str]) -> dict[str, Any]:
    """Convert the result of `adatp run` to JSON-ready values; times in seconds.

    Where a frame of the report is a temporal patch of several frames of the clip, `video.patches` has the first of
    these and the one after the last, for each frame of the report.
    """
    video: dict[str, Any] = {"frames": len(clip.frames), "times": clip.times.tolist(), "duration": clip.duration}
    (size,) = result.report.samples[0].videos
    if size.temporal_patch > 1:
        video["patches"] = [[own.start, own.stop] for own in size.own_frames(len(clip.frames))]
    return {
        "model": model,
        "question": question,
        "notes": notes,
        "video": video,
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
    _print_layers(sample)
    _print_segments(sample, clip)
    _print_seconds(result)
    _print_flops(console, result.report.flops)


def print_flops(prompt: Prompt, method: Method, flops: Flops, lengths: list[int]) -> None:
    """Print the result of `adatp flops`."""
    console = Console(highlight=False)
    visual, text_tokens = prompt.visual_tokens, prompt.text_tokens
    console.print(
        f"[bold]{prompt.model}[/], {describe(method)}: {visual} visual + {text_tokens} text tokens"
        + (
            ", the schedule alone (deduplication, which needs a video, takes it lower)"
            if method.name == "adatp"
            else ""
        )
    )
    console.print(f"counted: {prompt.describe()}")
    rows = [
        [layers, str(length - text_tokens), f"{(length - text_tokens) / visual:.1%}"]
        for layers, length in _runs(lengths)
    ]
    print_table(("layers", "visual tokens", "share"), rows)
    _print_flops(console, flops)


def _print_flops(console: Console, flops: Flops) -> None:
    console.print(
        f"prefill FLOPs of the language model: [bold]{flops.ratio:.2%}[/] of unpruned "
        f"({flops.linear / 1e12:.3g} of {flops.linear_full / 1e12:.3g} TFLOPs; linear layers, as the paper counts); "
        f"{flops.ratio_with_attention:.2%} with attention"
    )


def _print_layers(sample: Sample) -> None:
    rows = [
        [layers, str(kept), f"{kept / sample.visual_tokens:.1%}", str(kept + sample.other_tokens)]
        for layers, kept in _runs(sample.kept)
    ]
    print_table(("layers", "visual tokens", "share", "all tokens"), rows, title="Tokens at each layer's input")


def _print_segments(sample: Sample, clip: Clip) -> None:
    head = ("#", "frames", "seconds", "similarity", "significant", "first cut", "last cut")
    (size,) = sample.videos
    own = size.own_frames(len(clip.frames))
    spans = [(own[segment.start].start, own[segment.stop - 1].stop - 1) for segment in sample.segments]
    rows = [
        [
            str(number),
            f"{first}-{last}",
            f"{clip.times[first]:.1f}-{clip.times[last]:.1f}",
            "-" if segment.similarity is None else f"{segment.similarity:.3f}",
            "yes" if segment.significant else "",
            str(segment.kept[sample.first_cut]),
            str(segment.kept[-1]),
        ]
        for number, (segment, (first, last)) in enumerate(zip(sample.segments, spans, strict=True))
    ]
    print_table(head, rows, title="Segments", left=0)


def _print_seconds(result: Result) -> None:
    assert result.report.method is not None
    head, answers = ["stage", type(result.report.method).__name__], [result.pruned]
    if result.unpruned is not None:
        head.append("unpruned")
        answers.append(result.unpruned)
    rows = [[stage, *(f"{1e3 * answer.seconds[stage]:.1f}" for answer in answers)] for stage in result.pruned.seconds]
    total = ["first token", *(f"{1e3 * answer.first_token:.1f}" for answer in answers)]
    rows.append([f"[bold]{cell}[/]" for cell in total])
    print_table(head, rows, title="Time to first token, ms (one run)")


def _runs(values: Any) -> list[tuple[str, int]]:
    """Join equal neighbours to one row: `[7, 7, 5]` becomes `[("0-1", 7), ("2", 5)]`."""
    rows = []
    for value, group in groupby(enumerate(values), key=lambda item: item[1]):
        layers = [layer for layer, _ in group]
        rows.append((str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}", value))
    return rows
