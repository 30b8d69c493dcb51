"""The answers of `adatp demo`, side by side."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adatp.evaluation.answers import is_exact
from adatp.evaluation.demo import Shown
from adatp.methods.settings import describe
from adatp.tables.comparison import print_whole
from adatp.tables.run import print_notes
from adatp.world.clips import FRAMES


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
