"""Ablations for people (tables) and for programs (plain values)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from adatp.evaluation.ablation import Ablation, Outcome, Outcomes, Summary, Variant, summarise
from adatp.evaluation.answers import wilson
from adatp.evaluation.questions import Question
from adatp.methods import Unpruned
from adatp.tables.comparison import agreement_to_dict
from adatp.tables.heading import print_machine, print_notes
from adatp.tables.tabulate import print_table

TITLES = {
    "2": "Tab. 2, modules",
    "3": "Tab. 3, last layer of the schedule",
    "4a": "Tab. 4, tau_t",
    "4b": "Tab. 4, alpha_boost",
    "4c": "Tab. 4, gamma_cap",
    "4d": "Tab. 4, tau_s",
}
_CAPTION = (
    "FLOPs: of the linear layers, mean over the questions. accuracy: with Wilson's 95 % interval. top: questions whose "
    "most likely next token is the unpruned model's. last: N - 16 to N - 8 of N layers. KL(unpruned || pruned): of the "
    "next-token distribution, mean. paper: of LLaVA-OneVision-0.5B at 32 frames and p = 1, Avg over VideoMME, MLVU and "
    "LongVideoBench; other models and other data share its trends at most"
)


class Ablated(NamedTuple):
    """Ablations that have run.

    Attributes:
        model: name of the model.
        machine: the machine and the software, see `describe_machine`.
        questions: the questions that were asked.
        frames: largest number of frames of a clip.
        p: compression setting.
        ablations: the ablations that ran.
        outcomes: their results.
        notes: notes for the user.
    """

    model: str
    machine: dict[str, Any]
    questions: Sequence[Question]
    frames: int
    p: float
    ablations: Sequence[Ablation]
    outcomes: Outcomes
    notes: list[str]


def print_ablations(own: Ablated) -> None:
    """Print the result of `adatp ablate`."""
    out, plain = Console(highlight=False), summarise(own.outcomes.of[Unpruned()])
    print_notes(out, own.notes)
    print_machine(out, own.model, own.machine)
    out.print(
        f"[bold]questions[/] {len(own.questions)}, {plain.known} of them with an answer; p = {own.p:g}; "
        f"clips of {own.frames} frames at most"
    )
    out.print(f"[bold]unpruned[/]  accuracy {_accuracy(plain)}")
    for ablation in own.ablations:
        _print_table(ablation, own.outcomes)
    out.print(_CAPTION)


def _print_table(ablation: Ablation, outcomes: Outcomes) -> None:
    costs = "flops" in ablation.variants[0].paper  # Tab. 4 has no FLOPs
    head = [*ablation.variants[0].settings, "FLOPs", "accuracy", "top", "KL, nats"]
    head += ["paper FLOPs", "paper Avg"] if costs else ["paper Avg"]
    rows = []
    for variant in ablation.variants:
        own = summarise(outcomes.of[variant.method])
        row = [_setting(name, value, variant) for name, value in variant.settings.items()]
        row += [f"{own.flops:.2%}", _accuracy(own), f"{own.same_top:.1%}", f"{own.kl:#.4g}"]
        row += [f"{variant.paper['flops']:.2f}%"] if costs else []
        rows.append([*row, f"{variant.paper['avg']:.2f}"])
    print_table(head, rows, title=TITLES[ablation.number], left=0)


def _setting(name: str, value: Any, variant: Variant) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "last" and value != variant.paper["last"]:
        return f"{value} (paper: {variant.paper['last']})"
    return f"{value:g}"


def _accuracy(own: Summary) -> str:
    if not own.known:
        return "-"
    low, high = wilson(own.right, own.known)
    return f"{own.right / own.known:.1%} of {own.known} ({low:.1%} - {high:.1%})"


def ablations_to_dict(own: Ablated) -> dict[str, Any]:
    """Convert the result of `adatp ablate` to JSON-ready values."""
    return {
        "model": own.model,
        "machine": own.machine,
        "frames": own.frames,
        "p": own.p,
        "notes": own.notes,
        "questions": [
            {"video": str(q.video), "question": q.text, "options": list(q.options), "answer": q.answer}
            for q in own.questions
        ],
        "unpruned": _measured(own.outcomes.of[Unpruned()]),
        "tables": [
            {
                "table": ablation.number,
                "rows": [
                    {
                        "varied": variant.settings,
                        "settings": variant.method.settings(),
                        **_measured(own.outcomes.of[variant.method]),
                        "paper": dict(variant.paper),
                    }
                    for variant in ablation.variants
                ],
            }
            for ablation in own.ablations
        ],
    }


def _measured(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    own = summarise(outcomes)
    return {
        "flops": own.flops,
        "right": own.right,
        "known": own.known,
        "accuracy": own.right / own.known if own.known else None,
        "interval": list(wilson(own.right, own.known)) if own.known else None,
        "same_top": own.same_top,
        "kl_nats": own.kl if math.isfinite(own.kl) else None,
        "outcomes": [
            {
                "flops": outcome.flops,
                "agreement": agreement_to_dict(outcome.agreement),
                "answer": outcome.answer,
                "right": outcome.right,
            }
            for outcome in outcomes
        ],
    }
