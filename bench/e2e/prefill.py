"""The language model's prefill with every method in turn, starting from the tower's features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adatp.evaluation.measure import prefill
from adatp.evaluation.session import Loaded
from adatp.flops import Flops
from adatp.methods import METHODS, AdaTP, FastV, Method
from adatp.models import family_of
from adatp.relevance import Relevance
from adatp_kernels.dispatch import Impl
from bench.e2e.fastv_eager import fastv_eager
from bench.harness import too_much
from bench.memory import with_peak


@dataclass(frozen=True)
class Contender:
    """A way to run the prefill.

    Attributes:
        name: name in the tables.
        method: the method with its settings; None for the plain model.
        like: name of an earlier contender whose FLOPs this one should have.
        impl: implementation of the three operations.
        is_eager: whether it is FastV as its authors run it, instead of on this engine.
        compares: whether frames are compared with the question, if the method needs that.
        asked_before: whether the question was asked before, so that its features are remembered.
    """

    name: str
    method: Method | None
    like: str | None = None
    impl: Impl = "auto"
    is_eager: bool = False
    compares: bool = True
    asked_before: bool = False


@dataclass(frozen=True)
class Timed:
    """The results of a contender.

    Attributes:
        name: name of the contender.
        settings: settings of its method.
        kept: visual tokens at every layer's input.
        ratio: FLOPs of the linear layers over the unpruned ones, as the paper counts.
        ratio_causal: `ratio` with attention, of which half of the matrix counts (causal attention).
        ratio_all: `ratio_causal` with the comparison of frames and question, including the question's features unless
            they are remembered.
        seconds: seconds of each round.
        to_unpruned: `seconds` over the unpruned prefill of the same round.
        peak_bytes: peak bytes of tensors, without those that existed before.
        refused: why it cannot reach the wanted FLOPs, or cannot run here; then the other fields are empty.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    ratio: float = 1.0
    ratio_causal: float = 1.0
    ratio_all: float = 1.0
    seconds: list[float] = field(default_factory=list)
    to_unpruned: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    refused: str = ""


def contenders(adatp: AdaTP, *, others: Sequence[str], is_triton: bool) -> list[Contender]:
    """Return the contenders: unpruned, AdaTP at three settings and without relevance, and other methods.

    The other methods have the FLOPs of AdaTP at p = 1.

    Args:
        adatp: AdaTP at p = 1, with a schedule that fits the model's layers.
        others: names of methods; "fastv" runs twice: as its authors run it, and on this engine.
        is_triton: whether the Triton kernels run; if so, the reference is another contender.
    """
    own = [Contender(f"AdaTP p={p:g}", adatp.with_knob(p)) for p in (2.0, 1.5, 1.0)]
    like = own[-1].name
    found = [Contender("unpruned", None), *own]
    found.append(Contender(f"{like}, question asked before", adatp, asked_before=True))
    found.append(Contender(f"{like}, relevance=None", adatp, compares=False))
    if is_triton:
        found.append(Contender(f"{like}, reference", adatp, impl="reference"))
    for name in others:
        method = FastV(layer=adatp.first) if name == "fastv" else METHODS[name]()
        found.append(Contender(type(method).__name__, method, like))
        if name == "fastv":
            found.append(Contender("FastV, eager", method, like, is_eager=True))
    return found


def race(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    entered: Sequence[Contender],
    *,
    before: Mapping[str, Any] | None = None,
    rounds: int,
    tell: Callable[[str], None],
) -> list[Timed]:
    """Run all contenders in rounds of one prefill each, after each has warmed up.

    Args:
        loaded: the model, with given states of the tower.
        inputs: inputs of the prompts.
        entered: the contenders, the unpruned one first.
        before: inputs of a short prompt with the same question, for contenders with `asked_before`.
        rounds: number of rounds.
        tell: called with the name of each step as it begins.
    """
    methods, refused = settled(loaded, inputs, entered)
    running = [one for one in entered if one.name in methods]
    reports: dict[tuple[Method | None, bool], Any] = {}
    seconds: dict[str, list[float]] = {one.name: [] for one in running}
    peaks: dict[str, int] = {}
    device = loaded.model.device.type
    for turn in range(1, rounds + 1):
        for one in running:
            tell(f"{loaded.name}: round {turn} of {rounds}, {one.name}")
            method = methods[one.name]
            if one.is_eager:
                assert isinstance(method, FastV)
                (took, _), held = with_peak(partial(fastv_eager, loaded, inputs, method), device)
            else:
                model = loaded if one.compares else replace(loaded, relevance=None)
                asked = before if one.asked_before else None
                run = partial(prefill, model, inputs, method, impl=one.impl, before=asked)
                measured, held = with_peak(run, device)
                took, reports[method, one.compares] = measured.seconds, measured.report
            seconds[one.name].append(took)
            peaks[one.name] = max(peaks.get(one.name, 0), held)
    whole, (of_frames, of_questions) = seconds[entered[0].name], relevance_flops(loaded, inputs)

    def timed(one: Contender) -> Timed:
        if one.name in refused:
            return Timed(one.name, refused=refused[one.name])
        own: dict[str, Any] = {
            "seconds": seconds[one.name],
            "to_unpruned": [mine / other for mine, other in zip(seconds[one.name], whole, strict=True)],
            "peak_bytes": peaks[one.name],
        }
        report = reports[methods[one.name], one.compares]  # both forms of FastV keep the same tokens
        if report is None:
            return Timed(one.name, **own)
        (sample, *_), flops = report.samples, report.flops
        ratio = causal(flops)
        comparing = of_frames + (0 if one.asked_before else of_questions)
        compared = one.compares and sample.method.wants_frames
        extra = comparing / (flops.linear_full + flops.attention_full / 2) if compared else 0.0
        return Timed(one.name, sample.method.settings(), list(sample.kept), flops.ratio, ratio, ratio + extra, **own)

    return [timed(one) for one in entered]


def settled(
    loaded: Loaded, inputs: Mapping[str, Any], entered: Sequence[Contender]
) -> tuple[dict[str, Method | None], dict[str, str]]:
    """Return each contender's method at its wanted cost, or why it cannot run at that cost.

    No token is deduplicated here, so the settings alone decide the cost.
    """
    family = family_of(loaded.model)
    ids, layers = inputs["input_ids"][0].cpu(), len(family.decoder.layers)
    layout = family.layout(ids)
    assert layout is not None
    other = len(ids) - layout.visual_tokens
    methods: dict[str, Method | None] = {}
    refused = {}
    for one in entered:
        method = one.method
        if one.is_eager and (reason := _too_large(loaded, len(ids))):
            refused[one.name] = reason
            continue
        try:
            if method is not None and one.like is not None:
                like = methods[one.like]
                assert like is not None
                method = method.at_flops(like.cost(layout, layers, other), layout, layers, other)
        except ValueError as error:
            refused[one.name] = str(error)
        else:
            methods[one.name] = method
    return methods, refused


def _too_large(loaded: Loaded, length: int) -> str:
    """Return why one layer's attention matrix, mask and softmax do not fit into memory; empty if they do."""
    config = loaded.model.config.text_config
    return too_much(3 * config.num_attention_heads * length**2 * loaded.model.dtype.itemsize)


def relevance_flops(loaded: Loaded, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Count the FLOPs of the compared features: those of the prompts' frames, and those of their questions."""
    relevance, states = loaded.relevance, loaded.model.model.vision_tower.states
    assert isinstance(relevance, Relevance)
    prompts, frames = inputs["pixel_values_videos"].shape[:2]
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # a CPU's fused attention is not counted
        with FlopCounterMode(display=False) as a_frame:
            relevance(states[:1])
        with FlopCounterMode(display=False) as a_question:
            relevance.text(["What happens?"])
    return prompts * frames * a_frame.get_total_flops(), prompts * a_question.get_total_flops()


def causal(flops: Flops) -> float:
    """Return the FLOPs over the unpruned ones, with half of the attention matrix."""
    return (flops.linear + flops.attention / 2) / (flops.linear_full + flops.attention_full / 2)
