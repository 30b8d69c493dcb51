"""Questions about one held-out video, as a file, with a method and without."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adatp.methods import Method
from adatp.methods.settings import describe
from adatp.report import PruningReport
from adatp.run import Loaded
from adatp.study.answers import answer_length, is_exact
from adatp.study.comparison_tables import print_whole
from adatp.study.heldout import paper_of
from adatp.study.measure import EncodedClip, answer, with_relevance
from adatp.tables import print_notes
from adatp.video import sample_frames
from adatp.world.clips import FRAMES
from adatp.world.files import write_mp4
from adatp.world.questions import KINDS, Asked
from adatp_kernels.dispatch import Impl


class Shown(NamedTuple):
    """A question and its answers.

    Attributes:
        asked: the question, open.
        unpruned, pruned: what the model says.
        report: of the method.
    """

    asked: Asked
    unpruned: str
    pruned: str
    report: PruningReport


def demonstrate(
    loaded: Loaded, number: int, file: Path, method: Method, *, impl: Impl, tell: Callable[[str], None]
) -> list[Shown]:
    """Write a held-out clip to a file, read it as any video, and ask about it.

    Args:
        loaded: the model.
        number: of the clip.
        file: where to write it.
        method: to prune with.
        impl: implementation of the three operations.
        tell: called with the name of each step as it begins.
    """
    loaded = with_relevance(loaded)
    paper = paper_of("heldout", number, questions=len(KINDS), options=False)
    tell(f"writing {file}")
    write_mp4(file, paper.clip().frames)
    encoded = EncodedClip(loaded, sample_frames(file, FRAMES))
    shown = []
    for i, asked in enumerate(paper.questions, 1):
        tell(f"question {i} of {len(paper.questions)}")
        inputs = encoded.inputs(asked.text)
        length = answer_length(loaded.processor.tokenizer, asked.answer)
        plain = answer(loaded, inputs, None, tokens=length, impl=impl)
        pruned = answer(loaded, inputs, method, tokens=length, impl=impl)
        assert pruned.report is not None
        shown.append(Shown(asked, plain.text, pruned.text, pruned.report))
    return shown


def print_demo(model: str, video: str, shown: Sequence[Shown], notes: Sequence[str]) -> None:
    """Print questions, answers, and what they cost."""
    out, method = Console(highlight=False), shown[0].report.method
    assert method is not None
    print_notes(out, notes)
    (sample,) = shown[0].report.samples
    out.print(f"[bold]model[/]   {escape(model)}")
    out.print(f"[bold]video[/]   {escape(video)}: {FRAMES} frames, {sample.visual_tokens} visual tokens")
    out.print(f"[bold]method[/]  {escape(describe(method))}")
    table = Table("question", "unpruned", "pruned", "tokens", "FLOPs", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for own in shown:
        (sample,) = own.report.samples
        table.add_row(
            escape(own.asked.text),
            *(_marked(said, own.asked.answer) for said in (own.unpruned, own.pruned)),
            f"{sample.kept[sample.first_cut]} -> {sample.kept[-1]}",
            f"{own.report.flops.ratio:.1%}",
        )
    print_whole(table)
    unpruned = sum(is_exact(own.unpruned, own.asked.answer) for own in shown)
    pruned = sum(is_exact(own.pruned, own.asked.answer) for own in shown)
    out.print(
        f"right: {unpruned} of {len(shown)} unpruned, {pruned} of {len(shown)} pruned. tokens: visual ones left by the "
        "first cut and by the last. FLOPs: of the prefill's linear layers, over unpruned"
    )


def _marked(said: str, right: str) -> str:
    return escape(said) if is_exact(said, right) else f"[red]{escape(said)}[/] (wrong: {escape(right)})"
