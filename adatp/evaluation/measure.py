"""One prefill as something to measure: what it puts out, what it cost and how long it took."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp.evaluation.session import Loaded, generate, inputs_of
from adatp.hf.stopwatch import Stopwatch
from adatp.methods import AdaTP, Method
from adatp.models import family_of
from adatp.pruning import Pruned, apply
from adatp.relevance import NoRelevanceWarning
from adatp.report import PruningReport
from adatp.video import Clip
from adatp_kernels.dispatch import Impl


class EncodedClip:
    """A clip that a model is asked about, its frames encoded once for all questions where transformers can.

    That is from 5.18 on; before, every prefill encodes them anew.

    Args:
        loaded: the model.
        clip: the sampled frames.
    """

    def __init__(self, loaded: Loaded, clip: Clip) -> None:
        self._loaded = loaded
        self._clip = clip
        self._features: Any = None

    @torch.inference_mode()
    def inputs(self, question: str) -> dict[str, Any]:
        """A question as the model takes it, on its device."""
        model = self._loaded.model
        inputs = dict(inputs_of(self._loaded, self._clip, question))
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return inputs
        pixels = inputs.pop("pixel_values_videos")
        if self._features is None:
            self._features = model.get_video_features(
                pixel_values_videos=pixels,
                return_dict=True,
                output_hidden_states=family_of(model).tower_states_wanted,  # of every method
            )
        return {**inputs, "mm_encoder_outputs": {"video": self._features}}


class Measured(NamedTuple):
    """A prefill.

    Attributes:
        logits: `[V]` float32 on the host, of the next token as the model itself puts them out: what `generate` makes of
            them, such as suppressing tokens, is not in them.
        report: of the method; None without one.
        seconds: of the decoder's layers and all that the method computes, the question's features among it.
    """

    logits: Tensor
    report: PruningReport | None
    seconds: float


def with_relevance(loaded: Loaded) -> Loaded:
    """The same with its aligned SigLIP loaded, once for all methods; warns where there is none, as `apply` does."""
    # any method that compares frames with the question, at settings that every model takes
    with apply(loaded.model, loaded.processor, AdaTP(first=1, last=1), relevance=loaded.relevance) as pruned:
        return replace(loaded, relevance=pruned.relevance)


@torch.inference_mode()
def prefill(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    method: Method | None = None,
    *,
    flops: float | None = None,
    impl: Impl = "auto",
    before: Mapping[str, Any] | None = None,
) -> Measured:
    """Run a prompt through the model.

    Args:
        loaded: the model, `with_relevance`.
        inputs: of one prompt.
        method: how tokens are dropped; None leaves the model as it is.
        flops: see `adatp.apply`. Turning the method's setting takes time that `seconds` may hold: time the method of
            `report.samples[0]`, at the setting found.
        impl: implementation of the three operations.
        before: inputs of a prompt to run first, such as a short one with the same question, which is remembered then.
    """
    with applied(loaded, method, flops, impl) as pruned:
        if before is not None:
            loaded.model(**before, logits_to_keep=1)
        relevance = None if pruned is None else pruned.relevance
        stages = {"decoder": [family_of(loaded.model).decoder], "question": [relevance.text_model] if relevance else []}
        with Stopwatch(stages) as watch:
            output = loaded.model(**inputs, logits_to_keep=1)
        report = None if pruned is None else pruned.report
    return Measured(output.logits[0, -1].float().cpu(), report, sum(watch.seconds.values()))


class Said(NamedTuple):
    """An answer.

    Attributes:
        text: what the model says, greedily.
        report: of the method; None without one.
    """

    text: str
    report: PruningReport | None


def answer(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    method: Method | None,
    *,
    flops: float | None = None,
    tokens: int,
    choices: Sequence[str] = (),
    impl: Impl,
) -> Said:
    """What the model says to a prompt in at most that many tokens, only one of the choices where there are any.

    The other arguments are those of `prefill`.
    """
    with applied(loaded, method, flops, impl) as pruned:
        text, _ = generate(loaded, inputs, tokens, choices=choices)
        return Said(text, None if pruned is None else pruned.report)


@contextmanager
def applied(
    loaded: Loaded, method: Method | None, flops: float | None = None, impl: Impl = "auto"
) -> Iterator[Pruned | None]:
    """The model with a method in it, or as it is where there is none; the arguments are those of `prefill`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoRelevanceWarning)  # `with_relevance` has said it, and the report says it
        with (
            nullcontext()
            if method is None
            else apply(
                loaded.model, loaded.processor, method, flops=flops, relevance=loaded.relevance, impl=impl
            ) as pruned
        ):
            yield pruned
