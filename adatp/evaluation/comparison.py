"""Methods side by side on one prompt: tokens, FLOPs, prefill time, and the change of the next token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatp.errors import InputError
from adatp.evaluation.agreement import Agreement, agreement
from adatp.evaluation.machine import describe_machine
from adatp.evaluation.measure import EncodedClip, Measured, prefill, with_relevance
from adatp.evaluation.session import Loaded
from adatp.methods import Method, Unpruned
from adatp.report import Sample
from adatp.video import Clip
from adatp_kernels.dispatch import Impl, resolve

FLOPS_TOLERANCE = 0.005  # a method whose cost is further from the wanted share gets a note


@dataclass(frozen=True)
class Row:
    """A method that ran.

    Attributes:
        method: the method with the settings that it ran with.
        sample: the tokens that it kept.
        flops: FLOPs of the prefill, as `adatp.flops.Flops.to_dict` returns them.
        agreement: agreement with the unpruned model's next token.
        seconds: time of every timed prefill: the decoder and the method's own work.
        ratios: ratio of each of `seconds` to the unpruned prefill of the same round.
        notes: notes for the user.
    """

    method: Method
    sample: Sample
    flops: dict[str, float]
    agreement: Agreement
    seconds: list[float]
    ratios: list[float]
    notes: list[str]


@dataclass(frozen=True)
class Refused:
    """A method that could not run as requested.

    Attributes:
        method: the requested method.
        reason: why it could not run.
    """

    method: Method
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The methods on one prompt; the first is the unpruned model.

    Attributes:
        flops: share of the unpruned FLOPs that each method should cost; None for the methods' own settings.
        repeats: number of timed prefills of each method.
        machine: the machine and the software.
        rows: one row for each method.
    """

    flops: float | None
    repeats: int
    machine: dict[str, Any]
    rows: list[Row | Refused]


def compare(
    loaded: Loaded,
    clip: Clip,
    question: str,
    methods: Sequence[Method],
    *,
    flops: float | None,
    repeats: int,
    impl: Impl,
    tell: Callable[[str], None],
) -> Comparison:
    """Run every method on a question about a clip.

    Each method runs once untimed, which also finds its settings. Then come timed rounds: one prefill of each method,
    the unpruned model first. The clip is encoded once for all methods.

    Args:
        loaded: the model.
        clip: the sampled frames.
        question: the question.
        methods: the methods to compare with the unpruned model.
        flops: see `adatp.apply`; a method that cannot reach this cost becomes `Refused`.
        repeats: number of timed rounds.
        impl: implementation of the three operations.
        tell: called with the name of each step as it begins.
    """
    if any(method.wants_frames for method in methods):
        loaded = with_relevance(loaded)
    tell("encoding the clip")
    inputs = EncodedClip(loaded, clip).inputs(question)

    tell("running without pruning")
    plain = prefill(loaded, inputs)
    # the report comes from a run with the method `none`; the times are those of the model without hooks
    first: list[Measured | Refused] = [plain._replace(report=prefill(loaded, inputs, Unpruned(), impl=impl).report)]
    for method in methods:
        tell(f"running {method.name}")
        try:
            first.append(prefill(loaded, inputs, method, flops=flops, impl=impl))
        except InputError as error:
            first.append(Refused(method, str(error)))

    settled = [None if isinstance(one, Refused) else _sample(one).method for one in first]
    seconds: list[list[float]] = [[] for _ in first]
    for turn in range(1, repeats + 1):
        tell(f"timing, round {turn} of {repeats}")
        for own, ran, found in zip(seconds, first, settled, strict=True):
            if found is not None:
                timed = None if ran is first[0] else found
                own.append(prefill(loaded, inputs, timed, impl=impl).seconds)

    rows: list[Row | Refused] = []
    for own, ran in zip(seconds, first, strict=True):
        rows.append(ran if isinstance(ran, Refused) else _row(ran, plain, flops, own, seconds[0]))
    machine = describe_machine(loaded.model, resolve(impl, loaded.model.device))
    return Comparison(flops, repeats, machine, rows)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the first quartile, the median and the third quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, middle, high


def _row(ran: Measured, plain: Measured, flops: float | None, seconds: list[float], unpruned: list[float]) -> Row:
    sample, report = _sample(ran), ran.report
    assert report is not None
    assert sample.method is not None
    notes = list(report.notes)
    far = flops is not None and sample.method.knob is not None and abs(report.flops.ratio - flops) > FLOPS_TOLERANCE
    # the report has its own note if deduplication is the reason
    if far and not any(note.startswith("flops=") for note in notes):
        notes.append(f"costs {report.flops.ratio:.4f}, of what its settings reach the nearest to flops={flops:g}")
    return Row(
        method=sample.method,
        sample=sample,
        flops=report.flops.to_dict(),
        agreement=agreement(plain.logits, ran.logits),
        seconds=seconds,
        ratios=[own / other for own, other in zip(seconds, unpruned, strict=True)],
        notes=notes,
    )


def _sample(ran: Measured) -> Sample:
    assert ran.report is not None
    return ran.report.samples[0]
