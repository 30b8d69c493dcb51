"""The results of a study as JSON-ready values, from which its tables and pictures are made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adatp.evaluation.ablation import Ablation
from adatp.evaluation.accuracy import Examined, Judged, Outcome, Trial
from adatp.evaluation.answers import wilson
from adatp.evaluation.bias import LAST_FRAMES
from adatp.evaluation.bootstrap import paired_difference
from adatp.world.questions import KINDS

GROUPS: dict[str, Callable[[Judged], bool]] = {
    **{kind: lambda judged, kind=kind: judged.asked.kind == kind for kind in KINDS},  # type: ignore[misc]
    "open": lambda judged: not judged.asked.options,
    "options": lambda judged: bool(judged.asked.options),
    "short scene": lambda judged: judged.asked.is_short,
    "long scenes": lambda judged: not judged.asked.is_short,
}


def summarise(examined: Sequence[Examined], tried: Sequence[Trial], ablations: Sequence[Ablation]) -> dict[str, Any]:
    """Compute the accuracy of the unpruned model and of every trial, the ablations, and the model's biases.

    Args:
        examined: results of every clip; they include the trials and the ablations below.
        tried: AdaTP, and the other methods at the same costs.
        ablations: the rows of Tab. 2 to 4.
    """
    judged = [one for own in examined for one in own.judged]
    return {
        "questions": len(judged),
        "groups": {name: sum(map(belongs, judged)) for name, belongs in GROUPS.items()},
        "unpruned": _accuracy(judged, [one.plain for one in judged]),
        "methods": [{"method": trial.method.name, "p": _setting(trial), **_trial(judged, trial)} for trial in tried],
        "ablations": [
            {
                "table": ablation.number,
                "rows": [
                    {
                        "varied": variant.settings,
                        **_trial(judged, Trial(variant.method)),
                        "paper": dict(variant.paper),
                    }
                    for variant in ablation.variants
                ],
            }
            for ablation in ablations
        ],
        "biases": _biases(examined),
    }


def _setting(trial: Trial) -> float:
    """Return the p of AdaTP whose cost the trial has."""
    p: float = (trial.like or trial.method).settings()["p"]
    return p


def _trial(judged: Sequence[Judged], trial: Trial) -> dict[str, Any]:
    outcomes = [one.outcomes[trial] for one in judged]
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if refused:
        return {"refused": refused[0], "refused_questions": len(refused)}
    return {"refused": None, **_accuracy(judged, [outcome for outcome in outcomes if isinstance(outcome, Outcome)])}


def _accuracy(judged: Sequence[Judged], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    right, plain = [outcome.right for outcome in outcomes], [one.plain.right for one in judged]
    n = len(outcomes)
    difference, low, high = paired_difference(right, plain, [one.clip for one in judged])
    groups = {
        name: [own for own, one in zip(right, judged, strict=True) if belongs(one)] for name, belongs in GROUPS.items()
    }
    return {
        "flops": sum(outcome.flops for outcome in outcomes) / n,
        "kept": sum(outcome.kept for outcome in outcomes) / n,
        "accuracy": sum(right) / n,
        "interval": list(wilson(sum(right), n)),
        "difference": difference,
        "difference_interval": [low, high],
        "same": sum(own.answer == one.plain.answer for own, one in zip(outcomes, judged, strict=True)) / n,
        "by_group": {name: sum(own) / len(own) if own else None for name, own in groups.items()},
        "right": "".join("01"[own] for own in right),
    }


def _biases(examined: Sequence[Examined]) -> dict[str, Any]:
    """Compute means over the clips. Their contents differ, so a preference that remains is the model's own."""

    def mean(part: Callable[[Examined], Tensor]) -> Tensor:
        return torch.stack([part(own) for own in examined]).double().mean(0)

    frames, positions = mean(lambda own: own.looked.per_frame), mean(lambda own: own.looked.per_position)
    return {
        "clips": len(examined),
        "per_frame": _rounded(frames),
        "per_position": _rounded(positions.flatten(1)),
        "grid": list(positions.shape[1:]),
        "top_in_first_frames": _rounded(mean(lambda own: own.looked.first)),
        "top_in_last_frames": _rounded(mean(lambda own: own.looked.last)),
        "uniform": LAST_FRAMES / frames.shape[1],
    }


def _rounded(values: Tensor) -> Any:
    return [[round(v, 5) for v in row] if isinstance(row, list) else round(row, 5) for row in values.tolist()]
