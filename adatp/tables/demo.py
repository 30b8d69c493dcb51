"""The answers of `adatp demo`, side by side."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from adatp.evaluation.answers import is_exact
from adatp.evaluation.demo import Shown
from adatp.methods.settings import describe
from adatp.tables.heading import print_notes
from adatp.tables.tabulate import print_table
from adatp.world.clips import FRAMES


def print_demo(model: str, video: str, shown: Sequence[Shown], notes: Sequence[str]) -> None:
    """Print the questions, the answers, and the cost of each answer."""
    out, method = Console(highlight=False), shown[0].report.method
    assert method is not None
    print_notes(out, notes)
    (sample,) = shown[0].report.samples
    out.print(f"[bold]model[/]   {escape(model)}")
    out.print(f"[bold]video[/]   {escape(video)}: {FRAMES} frames, {sample.visual_tokens} visual tokens")
    out.print(f"[bold]method[/]  {escape(describe(method))}")
    print_table(("question", "unpruned", "pruned", "tokens", "FLOPs"), [_cells(own) for own in shown], left=3)
    unpruned = sum(is_exact(own.unpruned, own.asked.answer) for own in shown)
    pruned = sum(is_exact(own.pruned, own.asked.answer) for own in shown)
    out.print(
        f"right: {unpruned} of {len(shown)} unpruned, {pruned} of {len(shown)} pruned. tokens: visual ones left by the "
        "first cut and by the last. FLOPs: of the prefill's linear layers, over unpruned"
    )


def _cells(own: Shown) -> list[str]:
    (sample,) = own.report.samples
    return [
        escape(own.asked.text),
        *(_marked(said, own.asked.answer) for said in (own.unpruned, own.pruned)),
        f"{sample.kept[sample.first_cut]} -> {sample.kept[-1]}",
        f"{own.report.flops.ratio:.1%}",
    ]


def _marked(said: str, right: str) -> str:
    return escape(said) if is_exact(said, right) else f"[red]{escape(said)}[/] (wrong: {escape(right)})"
