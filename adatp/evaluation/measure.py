"""Measurement of one prefill: its output, its cost and its time."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp.evaluation.session import Loaded, generate, inputs_of
from adatp.hf.features import SEEN, see_again
from adatp.hf.stopwatch import Stopwatch
from adatp.methods import AdaTP, Method
from adatp.models import family_of
from adatp.pruning import Pruned, apply
from adatp.relevance import NoRelevanceWarning, Relevance, SecondTower
from adatp.report import PruningReport
from adatp.video import Clip
from adatp_kernels.dispatch import Impl


class EncodedClip:
    """A clip whose frames are encoded once for all questions.

    This needs transformers 5.18 or later. With an earlier version, every prefill encodes the frames again.

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
        """Return the model's inputs for a question, on its device."""
        model = self._loaded.model
        inputs = dict(inputs_of(self._loaded, self._clip, question))
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return inputs
        family = family_of(model)
        if self._features is None:
            self._features = _encode(self._loaded, inputs)
        del inputs[family.pixels]
        return {**inputs, "mm_encoder_outputs": {family.modality: self._features}}


def _encode(loaded: Loaded, inputs: Mapping[str, Any]) -> Any:
    """Return the model's output for the videos of a prompt, with whatever any method may read."""
    family = family_of(loaded.model)
    encode = getattr(loaded.model, f"get_{family.modality}_features")
    _, *names = inspect.signature(encode).parameters  # the name of the pixels differs between versions
    given = {name: inputs[name] for name in names if name in inputs}
    kept = family.encoder_kwargs(attention=family.offers_attention)
    encoded = encode(inputs[family.pixels], **given, **kept, return_dict=True)
    see_again(family, loaded.relevance, encode, (inputs[family.pixels],), given, encoded)
    return encoded


@torch.inference_mode()
def frame_features(loaded: Loaded, clip: Clip) -> Tensor:
    """Compute `[n, D]` on the host, the features by which AdaTP compares the frames of a clip.

    A frame is one of the decoder's: where the model joins several frames of the clip, a temporal patch.

    Args:
        loaded: the model, as `with_relevance` returns it.
        clip: the sampled frames.
    """
    family, inputs = family_of(loaded.model), inputs_of(loaded, clip, "?")
    encoded = _encode(loaded, inputs)
    if isinstance(loaded.relevance, SecondTower):
        seen: Tensor = encoded[SEEN]
        return seen.cpu()
    if not isinstance(loaded.relevance, Relevance):
        return family.frame_features(encoded, family.sizes(inputs)).cpu()
    states = family.tower_states(encoded)
    features: Tensor = loaded.relevance.to(states.device)(states)
    return features.cpu()


class Measured(NamedTuple):
    """A measured prefill.

    Attributes:
        logits: `[V]` float32 on the host: the model's own logits of the next token. Later changes by `generate`, such
            as suppressed tokens, are not included.
        report: the method's report; None without a method.
        seconds: time of the decoder's layers and of the method's own work, including the question's features.
    """

    logits: Tensor
    report: PruningReport | None
    seconds: float


def with_relevance(loaded: Loaded) -> Loaded:
    """Load the aligned SigLIP once for all methods. Warn if there is none, as `apply` does."""
    # AdaTP compares frames with the question; these settings suit every model
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
        loaded: the model, as `with_relevance` returns it.
        inputs: inputs of one prompt.
        method: the method to prune with; None leaves the model as it is.
        flops: see `adatp.apply`. The search for the setting takes time, which `seconds` may include. To measure the
            time, pass the method of `report.samples[0]`, which has the setting found.
        impl: implementation of the three operations.
        before: inputs of a prompt to run first. A short prompt with the same question makes the method remember the
            question's features.
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
        text: the model's answer, by greedy decoding.
        report: the method's report; None without a method.
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
    """Answer a prompt.

    Args:
        loaded, inputs, method, flops, impl: as in `prefill`.
        tokens: largest number of tokens of the answer.
        choices: the allowed answers; if empty, every answer is allowed.
    """
    with applied(loaded, method, flops, impl) as pruned:
        text, _ = generate(loaded, inputs, tokens, choices=choices)
        return Said(text, None if pruned is None else pruned.report)


@contextmanager
def applied(
    loaded: Loaded, method: Method | None, flops: float | None = None, impl: Impl = "auto"
) -> Iterator[Pruned | None]:
    """Apply a method to the model within a `with` block; without a method, leave the model as it is.

    The arguments are those of `prefill`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoRelevanceWarning)  # already in `with_relevance` and in the report
        with (
            nullcontext()
            if method is None
            else apply(
                loaded.model, loaded.processor, method, flops=flops, relevance=loaded.relevance, impl=impl
            ) as pruned
        ):
            yield pruned
