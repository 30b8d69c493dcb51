"""Apply a method to one model instance, and remove it again."""

import os
import threading
import warnings
from typing import Any, get_args

from torch import nn

from adatp.checks.values import require, switch, text
from adatp.engine.scoring import Scoring
from adatp.errors import InputTypeError, Unsupported
from adatp.hf.call import Question
from adatp.hf.compiled_layers import check_compiling
from adatp.hf.hooks import Hooks
from adatp.hf.setup import Setup
from adatp.hf.support import is_applied
from adatp.hf.tensor_parallel import average_over_ranks
from adatp.methods import Method, method_of
from adatp.methods.method import BeforeDecoder
from adatp.models import family_of, tokenizer_of
from adatp.models.aligned import load_aligned
from adatp.relevance import UNCALIBRATED, Aligned, NoRelevanceWarning, Questions
from adatp.report import PruningReport
from adatp_kernels.dispatch import Impl, resolve

_APPLYING = threading.Lock()


class Pruned:
    """A method that `apply` has put into a model. It is also a context manager that removes the method at its end.

    Several threads may generate with the model at the same time.
    """

    def __init__(self, hooks: Hooks, setup: Setup) -> None:
        self._hooks = hooks
        self._setup = setup

    @property
    def method(self) -> Method:
        """The method that chooses the tokens, with its settings."""
        return self._setup.method

    @property
    def flops(self) -> float | None:
        """Target cost of every prompt's prefill, as a share of the unpruned FLOPs; None for the method's settings."""
        return self._setup.flops

    @property
    def relevance(self) -> Aligned | None:
        """The aligned SigLIP, or None."""
        return self._setup.relevance

    @property
    def question(self) -> Question:
        """The question that frames are compared with: a string, one per prompt, or None to read it from the prompt.

        It may be set between calls. A question that a thread sets is used only in the calls of that thread.
        """
        return self._hooks.question

    @question.setter
    def question(self, question: Question) -> None:
        self._hooks.question = _checked_question(question)

    @property
    def report(self) -> PruningReport:
        """The report of the last prefill of any thread.

        `generate` may run several prefills, for example for classifier-free guidance. The report is of its own prompts.

        Raises:
            RuntimeError: the model has not run since `apply`, or its last prefill failed.
        """
        return _existing(self._hooks.report)

    @property
    def thread_report(self) -> PruningReport:
        """The report of the last prefill of the calling thread, for threads that share the model.

        Raises:
            RuntimeError: the thread has not run the model since `apply`, or its last prefill failed.
        """
        return _existing(self._hooks.call.report)

    def remove(self) -> None:
        """Restore the model as it was before `apply`. A second call does nothing.

        Raises:
            RuntimeError: a prefill is running, in this thread or another.
        """
        self._hooks.remove()

    def __repr__(self) -> str:
        state = "applied" if self._hooks.is_installed else "removed"
        return f"<adatp.Pruned: {self.method!r} on {self._setup.family.model_type}, {state}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._hooks.__reduce_ex__(protocol)  # which refuses it

    def __enter__(self) -> "Pruned":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply(
    model: nn.Module,
    processor: Any = None,
    method: Method | str = "adatp",
    *,
    flops: float | None = None,
    relevance: Aligned | str | os.PathLike[str] | None = "auto",
    question: str | list[str] | None = None,
    impl: Impl = "auto",
    compile_layers: bool = False,
) -> Pruned:
    """Prune the visual tokens of the videos that `model` is given, from its next prefill on.

    Args:
        model: a Hugging Face Video LLM of a supported family. Only this instance changes.
        processor: the model's processor (or tokenizer), which reads the question from the prompt. It can be left out
            if `question` is given, or if the method does not compare frames with the question; but not for models that
            see the frames of a video as images, because only the text of the prompt tells them apart.
        method: chooses the tokens: a method with its settings (`adatp.AdaTP(p=1.5)`), or the name of a method for its
            published settings; see `adatp.methods`.
        flops: target cost of every prompt's prefill, as a share in (0, 1] of the unpruned prefill's FLOPs (linear
            layers, as in the report). It replaces the setting that determines the method's cost.
        relevance: how frames are compared with the question (eq. 3): a `Relevance`; the name or path of the SigLIP
            checkpoint that the vision tower was trained from; `"auto"` for the family's checkpoint; or None. For a
            family whose tower is no SigLIP: a `SecondTower`, or the name or path of any SigLIP checkpoint, which sees
            the frames a second time. The segments also come from its frame features. With None, or if `"auto"` finds
            or loads no checkpoint, segments come from the mean of a frame's patch features, for which `tau_s` is not
            calibrated; no segment is significant, and there is a warning.
        question: the question, or one per sample; None reads the user's last question from the prompt.
        impl: `"auto"`, `"reference"` or `"triton"`: the implementation of score, select and compact.
        compile_layers: whether decoder layers run through `torch.compile` in a prefill. A layer does so if its input
            has at most `adatp.tensors.blocks.TOKENS` tokens and it has no hooks inside. This helps small decoders,
            whose time goes into kernel launches. The first prefill compiles one layer for all (seconds to minutes);
            other lengths and later calls of `apply` compile nothing new. On CUDA the layers after the last cut become
            one CUDA graph for every 64 tokens of width, recorded when a prompt first needs it. A prefill raises a
            RuntimeError if a layer cannot be compiled.

    Returns:
        The handle with `report` and `remove()`.

    Raises:
        InputTypeError: an argument has a wrong type.
        UnsupportedType: the model's family is not supported.
        InputError: there is no such method or `impl`; or the settings or `flops` do not fit the model, for example
            because it has too few layers.
        Unsupported: the model has sliding-window layers, or layers that cannot be compiled; or the processor is needed
            and missing.
        CheckpointError: the checkpoint that `relevance` names cannot be loaded.
        RuntimeError: a method is already applied to this model, or `impl` cannot run here.
    """
    method = method_of(method)
    if flops is not None:
        method.check_flops(flops)
    question = _checked_question(question)
    tokenizer = tokenizer_of(processor)
    _check_relevance(relevance)
    require(isinstance(impl, str) and impl in get_args(Impl), "impl", impl, "'auto', 'reference' or 'triton'")
    compile_layers = switch("compile_layers", compile_layers)
    family = family_of(model, tokenizer)
    if family.needs_tokenizer and tokenizer is None:
        raise Unsupported(
            f"processor is needed to find the frames of a video in the prompts of {family.model_type} models; pass "
            "processor=..."
        )
    _refuse_twice(model)
    resolve(impl, family.decoder.device)
    method.check(family.decoder.config.num_hidden_layers)
    if family.has_sliding_windows:
        raise Unsupported("the model has sliding-window layers, whose window would span dropped tokens")
    if isinstance(method, BeforeDecoder) and method.wants_tower and not family.offers_attention:
        raise Unsupported(
            f"method {method.name!r} reads the attention of the vision tower, which {family.model_type} models do not "
            "offer; use another method"
        )
    if compile_layers:
        check_compiling(model, family)
    loaded = None
    if method.wants_frames:
        loaded, missing = load_aligned(relevance, family, processor, device=family.body.device, dtype=family.body.dtype)
        if missing and method.wants_question:
            warnings.warn(
                f"{missing}: no segment is significant, all segments keep the same ratio (no global debiasing), and "
                f"{UNCALIBRATED}. Pass relevance=PATH to a SigLIP checkpoint",
                NoRelevanceWarning,
                stacklevel=2,
            )
    if method.wants_question and loaded is not None and tokenizer is None and question is None:
        raise Unsupported(
            "processor is needed to read the question from the prompt; pass processor=..., or question=..., "
            "or AdaTP(global_debias=False)"
        )
    setup = Setup(
        family=family,
        method=method,
        flops=flops,
        scoring=Scoring(impl, average_over_ranks(model)),
        relevance=loaded,
        questions=None if loaded is None else Questions(loaded),
        tokenizer=tokenizer,
    )
    with _APPLYING:  # another thread may have applied a method meanwhile
        _refuse_twice(model)
        return Pruned(Hooks(model, setup, question, compile_layers=compile_layers), setup)


def _refuse_twice(model: nn.Module) -> None:
    if is_applied(model):
        raise RuntimeError(
            "a method is already applied to this model; call remove() on what the first apply() returned"
        )


def _existing(report: PruningReport | None) -> PruningReport:
    if report is None:
        raise RuntimeError("there is no report: run the model first (or the last prefill failed)")
    return report


def _checked_question(question: Any) -> Question:
    """Return the question, with a tuple made a list.

    Raises:
        InputError: the question is not None, a string or a list of strings.
    """
    if question is None or isinstance(question, str):
        return None if question is None else text("question", question)
    listed = isinstance(question, list | tuple) and len(question) > 0 and all(isinstance(own, str) for own in question)
    require(listed, "question", question, "a string, a list of strings or None", InputTypeError)
    return [text("question", own) for own in question]


def _check_relevance(relevance: Any) -> None:
    fits = relevance is None or isinstance(relevance, Aligned | str | os.PathLike)
    wanted = "a Relevance, a SecondTower, a checkpoint's name or path, 'auto' or None"
    require(fits, "relevance", relevance, wanted, InputTypeError)
