"""Put a method into one model instance, and take it out again.

Only hooks and methods of the instance are used; no class is touched. `generate` says where the prompt ends, the body's
hook finds the videos in it, the decoder's forward runs each prompt by itself, each pruned decoder layer's hook cuts its
input before the layer runs, and each layer's MLP takes what is left a block of tokens at a time.
"""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adatp.hf.batch import Batch
from adatp.hf.batch_prefill import PrunedForward
from adatp.hf.compiled_layers import CompiledLayers, check_compiling
from adatp.hf.decoding import Decoding
from adatp.hf.last_layers import LastLayers
from adatp.hf.prompt_prefill import PrunedPrompt
from adatp.hf.support import CONTINUOUS_BATCHING, MARK, check_support, is_applied, is_continued, prepare
from adatp.hf.tensor_parallel import average_over_ranks
from adatp.methods import Method, method_of
from adatp.methods.method import BeforeDecoder, BetweenLayers
from adatp.models import family_of
from adatp.models.family import Family
from adatp.relevance import NoRelevanceWarning, Questions, Relevance
from adatp.report import PruningReport, passed_through
from adatp.tensors.blocks import in_blocks
from adatp_kernels.dispatch import Impl, resolve

_APPLYING = threading.Lock()


class _Thread(threading.local):
    """What belongs to the call that a thread is in."""

    forward: PrunedForward | None = None
    prompt_length: int | None = None  # of the generate() the thread is in
    questions: list[str | None] | None = None  # whose features are wanted once the vision tower is queued
    report: PruningReport | None = None


class Pruned:
    """A method inside a model, as `apply` put it there; also a context manager that removes it.

    Several threads may generate on the model at a time.

    Attributes:
        method: which tokens go, and where.
        flops: share of the unpruned prefill's FLOPs that every prompt's shall cost; None for the method's settings.
        question: the question to compare frames with: a string, one string a sample, or None to read it from the
            prompt. May be set between calls.
        relevance: the aligned SigLIP, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        method: Method,
        *,
        flops: float | None,
        tokenizer: Any,
        relevance: Relevance | None,
        question: str | list[str] | None,
        impl: Impl,
        compile_layers: bool,
    ) -> None:
        self.method = method
        self.flops = flops
        self.question = question
        self.relevance = relevance
        self._model = model
        self._family = family
        self._tokenizer = tokenizer
        self._impl = impl
        self._asked_before = None if relevance is None else Questions(relevance)
        self._report: PruningReport | None = None
        self._thread = _Thread()
        self._running = 0  # prefills, of all threads
        self._lock = threading.Lock()
        self._handles: list[Any] = []
        self._replaced: list[tuple[Any, str, Any]] = []
        self._compiled = CompiledLayers(family) if compile_layers else None
        self._last_layers = None if self._compiled is None else LastLayers(self._compiled)
        self._install()

    @property
    def report(self) -> PruningReport:
        """What the last prefill kept, whichever thread it ran in.

        Raises:
            RuntimeError: the model has not run since `apply`, or its last prefill failed.
        """
        return _existing(self._report)

    @property
    def thread_report(self) -> PruningReport:
        """What the last prefill of the calling thread kept, for threads that share the model.

        Raises:
            RuntimeError: the thread has not run the model since `apply`, or its last prefill failed.
        """
        return _existing(self._thread.report)

    def remove(self) -> None:
        """Leave the model as it was before `apply`. Removing twice does nothing.

        Raises:
            RuntimeError: a prefill is running, in this thread or another.
        """
        with self._lock:
            if self._running:
                raise RuntimeError(
                    "a method cannot be removed in the middle of a prefill; wait for generate() to return"
                )
            if self._model.__dict__.get(MARK) is not self:
                return
            for handle in self._handles:
                handle.remove()
            for owner, name, before in reversed(self._replaced):
                if before is None:
                    del owner.__dict__[name]  # the class's shows again
                else:
                    owner.__dict__[name] = before
            del self._model.__dict__[MARK]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a model cannot be copied or pickled while it is pruned; call remove() first")

    def __enter__(self) -> "Pruned":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _install(self) -> None:
        model: Any = self._model
        body, decoder = self._family.body, self._family.decoder
        self._signature = inspect.signature(body.forward)
        self._generate_signature = inspect.signature(model.generate)
        self._average = average_over_ranks(model)
        self._decoding = Decoding(self._family, self.method, self._average, self._impl)
        self._handles = [
            model.register_forward_pre_hook(self._on_model, with_kwargs=True),
            body.register_forward_pre_hook(self._on_prompt, with_kwargs=True),
            body.register_forward_hook(self._on_end, with_kwargs=True, always_call=True),
        ]
        asked = self._asked()
        for index, layer in enumerate(decoder.layers):
            if index >= min([self.method.first_pruned(len(decoder.layers)), *asked]):
                hook = functools.partial(self._on_layer, index)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            self._replace(self._family.mlp(layer), "forward", self._run_mlp)
            if self._compiled is not None:
                self._replace(layer, "forward", functools.partial(self._run_layer, index))
            if index in asked and (self._compiled is None or self.method.decoding is not None):
                projection = self._family.query_projection(layer)
                self._handles.append(projection.register_forward_hook(functools.partial(self._on_query, index)))
        if self._compiled is not None:
            self._compiled.own_hooks = {handle.id for handle in self._handles}
        self._replace(body, "get_video_features", self._keep_features)
        self._replace(decoder, "forward", self._decode)
        self._replace(model, "generate", self._generate)
        for name in CONTINUOUS_BATCHING:
            if hasattr(model, name):
                self._replace(model, name, _refuse_continuous_batching)
        model.__dict__[MARK] = self

    def _asked(self) -> set[int]:
        """The layers whose queries are wanted, in the prefill or in decoding."""
        method, layers = self.method, len(self._family.decoder.layers)
        if method.decoding is not None:
            return {method.decoding.layer - 1}
        if isinstance(method, BetweenLayers) and not method.scores_itself:
            return {cut - 1 for cut in method.cuts(layers)}
        return set()

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        """Let `owner.name(...)` be `method(what it was, ...)`, on this instance alone."""
        before = getattr(owner, name)

        @functools.wraps(before)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return method(before, *args, **kwargs)

        self._replaced.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = replacement

    # What the instance's methods do while a method is applied, in the order a call meets them.

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = self._generate_signature.bind_partial(*args, **kwargs).arguments
        prepared = prepare(self._model, self._family, self.method, {**given, **kwargs})
        if prepared.batch is not None:
            # from transformers 5.18 on the vision tower runs before the forward
            readable = given.get("inputs_embeds", kwargs.get("inputs_embeds")) is None
            self._thread.questions = self._questions(prepared.batch, readable=readable)
        outer, self._thread.prompt_length = self._thread.prompt_length, prepared.length
        try:
            return generate(*args, **{**kwargs, **prepared.changed})
        finally:
            self._thread.prompt_length, self._thread.questions = outer, None

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: refuse what it would only fail on after the prefill."""
        labels, input_ids = kwargs.get("labels"), kwargs.get("input_ids")
        if labels is not None and input_ids is not None and self._family.has_video(input_ids):
            raise ValueError("labels cannot be given: a pruned prefill has logits only for the tokens that are left")

    def _on_prompt(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the body: find the videos."""
        if not _is_decoding(args, kwargs):
            self._find_prompt(args, kwargs)

    @torch.compiler.disable
    def _find_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reads the prompts' ids and mask, before any of the prefill is queued."""
        given = self._signature.bind_partial(*args, **kwargs).arguments
        self._thread.forward = None
        input_ids, cache = given.get("input_ids"), given.get("past_key_values")
        features = (given.get("mm_encoder_outputs") or {}).get("video")
        arrives = features is not None or given.get("pixel_values_videos") is not None
        if is_continued(cache, arrives=arrives):
            # its prompt was pruned, its new tokens are not; decoding reads nothing
            if input_ids is not None and input_ids.shape[1] > 1 and self._thread.prompt_length is None:
                is_continued(cache, arrives=self._family.has_video(input_ids))
            return
        self._report = self._thread.report = None
        ids: Tensor = self._family.ids_of(given["inputs_embeds"]) if input_ids is None else input_ids.cpu()
        if not self._family.has_video(ids):
            unseen = " (in inputs_embeds a video is found by its placeholders' embeddings)" if input_ids is None else ""
            self._report = self._thread.report = passed_through(f"no video in the prompt{unseen}")
            return
        check_support(self._family, self.method, cache)
        self._refuse_gradients()
        length = self._thread.prompt_length
        mask = given.get("attention_mask")
        batch = Batch.read(self._family, ids, mask, prompt_length=length, prepared=length is not None)
        self._thread.questions = questions = self._questions(batch, readable=input_ids is not None)
        self._thread.forward = PrunedForward(
            self._family,
            self.method,
            self.flops,
            batch,
            features,
            questions,
            self._asked_before,
            self.relevance,
            self._impl,
            self._average,
        )
        with self._lock:
            self._running += 1

    def _refuse_gradients(self) -> None:
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._family.decoder.parameters()):
            raise ValueError(
                "a pruned prefill has no gradients, because dropping tokens is not differentiable: run it under "
                "torch.no_grad() or torch.inference_mode(), as generate() does, or train without pruning"
            )

    def _questions(self, batch: Batch, *, readable: bool) -> list[str | None] | None:
        """One a prompt: what the user has given, else what the prompt's ids say, where they are `readable`.

        None where there is nothing to compare with them.
        """
        if not self.method.wants_question or self._asked_before is None:
            return None
        if self.question is None:
            return [
                self._family.question(ids, layout, self._tokenizer) if readable and layout is not None else None
                for ids, layout in zip(batch.ids, batch.layouts, strict=True)
            ]
        given = [self.question] if isinstance(self.question, str) else self.question
        prompts = len(batch.ids)
        copies, rest = divmod(prompts, max(1, len(given)))
        if rest or copies == 0:
            raise ValueError(f"question holds {len(given)} questions for {prompts} prompts; give one a prompt")
        return [question for question in given for _ in range(copies)]  # as beams are laid out

    def _keep_features(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.method, BeforeDecoder) and self.method.wants_tower:
            # of its own accord transformers keeps what it projects, and no more
            kwargs.setdefault("output_hidden_states", self._family.tower_states_wanted)
        features = encode(*args, **kwargs)
        self._hand_over(features)
        return features

    @torch.compiler.disable
    def _hand_over(self, features: Any) -> None:
        questions, self._thread.questions = self._thread.questions, None
        if questions is not None and any(questions):
            assert self._asked_before is not None
            # remembered; while the host queues the text tower, the device has the vision tower to run
            self._asked_before.features([question or "" for question in questions])
        if self._thread.forward is not None:
            self._thread.forward.features = features

    def _decode(self, decoder: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() and kwargs["inputs_embeds"].shape[1] == 1:
            return decoder(*args, **kwargs)
        return self._decode_prompts(decoder, *args, **kwargs)

    @torch.compiler.disable
    def _decode_prompts(self, decoder: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        forward = self._thread.forward
        return decoder(*args, **kwargs) if forward is None else forward.decode(decoder, kwargs)

    def _on_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if torch.compiler.is_dynamo_compiling() and hidden.shape[1] == 1:
            return args, self._decoding.enter(index, hidden, kwargs)
        entered: tuple[tuple[Any, ...], dict[str, Any]] = self._enter(index, hidden, args, kwargs)
        return entered

    @torch.compiler.disable
    def _enter(
        self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        prompt = self._prompt()
        if prompt is None:
            return args, self._decoding.enter(index, hidden, kwargs)
        hidden, kwargs = prompt.enter(index, hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _run_layer(self, index: int, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if torch.compiler.is_dynamo_compiling() and hidden.shape[1] == 1:
            return layer(*args, **kwargs)
        return self._run_compiled(index, hidden, layer, args, kwargs)

    @torch.compiler.disable
    def _run_compiled(
        self, index: int, hidden: Tensor, layer: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """In a prefill. What comes after it transformers can compile: one token a step, over a cache of fixed size."""
        compiled, last_layers, prompt = self._compiled, self._last_layers, self._prompt()
        assert compiled is not None
        assert last_layers is not None
        if prompt is not None:
            if prompt.is_through:
                return hidden
            prompt.ask(index, functools.partial(compiled.project, index))
            if index == max(prompt.prefill.cuts) and last_layers.takes(index, hidden):
                prompt.is_through = True
                return last_layers.run(index, hidden, kwargs)
        forward = self._thread.forward
        if forward is not None and compiled.hooked(index):
            forward.note(
                "decoder layers ran uncompiled, because there are hooks inside them: transformers leaves some for good "
                "once it was asked for hidden states or attentions; load the model anew to compile them"
            )
        if forward is None or not compiled.takes(index, hidden):
            return layer(*args, **kwargs)
        return compiled.run(index, hidden, kwargs)

    def _on_query(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if torch.compiler.is_dynamo_compiling() and (self._compiled is not None or output.shape[1] == 1):
            self._decoding.project(index, output)
        else:
            self._project(index, output)

    @torch.compiler.disable
    def _project(self, index: int, output: Tensor) -> None:
        prompt = self._prompt()
        if prompt is not None:
            prompt.project(index, output)
        else:
            self._decoding.project(index, output)

    def _prompt(self) -> PrunedPrompt | None:
        """The prompt in the decoder, where the calling thread is in a prefill."""
        return None if self._thread.forward is None else self._thread.forward.prompt

    def _run_mlp(self, mlp: Callable[..., Any], hidden: Tensor) -> Any:
        """In blocks: before the first cut the MLP's intermediates would else be most of what the prefill holds."""
        whole = torch.compiler.is_dynamo_compiling() or self._thread.forward is None
        return mlp(hidden) if whole else in_blocks(mlp, hidden, 1)

    def _on_end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the body, whether it returned or raised."""
        if not _is_decoding(args, kwargs):
            self._finish(output is not None)

    @torch.compiler.disable
    def _finish(self, succeeded: bool) -> None:
        forward, self._thread.forward = self._thread.forward, None
        if forward is None:
            return
        with self._lock:
            self._running -= 1
        if succeeded:
            self._report = self._thread.report = forward.report()


def apply(
    model: nn.Module,
    processor: Any = None,
    method: Method | str = "adatp",
    *,
    flops: float | None = None,
    relevance: Relevance | str | None = "auto",
    question: str | list[str] | None = None,
    impl: Impl = "auto",
    compile_layers: bool = False,
) -> Pruned:
    """Thin out the visual tokens of the videos that `model` is given, from its next prefill on.

    Args:
        model: a Hugging Face Video LLM of a supported family. Only this instance changes.
        processor: its processor (or tokenizer), with which the question is read from the prompt. May be left out
            where `question` is given or the method compares no frames with it.
        method: which tokens go, and where: a method with its settings (`adatp.AdaTP(p=1.5)`), or the name of one for
            the published settings; see `adatp.methods`.
        flops: a share in (0, 1], in place of the setting that the method's cost follows from: every prompt's prefill
            shall cost that share of the unpruned one's FLOPs, linear layers counted, as the report does.
        relevance: how frames are compared with the question (eq. 3): a `Relevance`, the name or path of the SigLIP
            checkpoint that the vision tower was trained from, `"auto"` for the family's, or None. Its frame features
            also make the segments. With None, and where `"auto"` cannot load it, segments come from the mean of a
            frame's patch features, and no segment is significant, with a warning.
        question: the question, or one a sample; None reads the user's last one from the prompt.
        impl: `"auto"`, `"reference"` or `"triton"`: the implementation of scores, selection and compaction.
        compile_layers: whether decoder layers run through `torch.compile` in a prefill, where they are at most
            `adatp.tensors.blocks.TOKENS` wide and there are no hooks inside. For small decoders, which are bound by
            what they launch. The first prefill compiles one layer for all (seconds to minutes); other lengths and later
            applications to the model compile nothing new. On CUDA the layers behind the last cut become one
            CUDA graph for every 64 tokens of width, recorded when a prompt first needs it. A prefill raises a
            RuntimeError where a layer cannot be compiled.

    Returns:
        The handle with `report` and `remove()`.

    Raises:
        TypeError: the model's family is not supported.
        ValueError: there is no such method; its settings or `flops` do not fit the model, which may have too few
            layers; the model has sliding-window layers, or such as cannot be compiled; or no processor is given where
            one is needed.
        RuntimeError: a method is already applied to this model, or `impl` cannot run here.
    """
    method = method_of(method)
    if flops is not None:
        method.check_flops(flops)
    family = family_of(model)
    _refuse_twice(model)
    resolve(impl, family.decoder.device)
    method.check(family.decoder.config.num_hidden_layers)
    if family.has_sliding_windows:
        raise ValueError("the model has sliding-window layers, whose window would span dropped tokens")
    if compile_layers:
        check_compiling(model, family)
    tokenizer = getattr(processor, "tokenizer", processor)
    loaded = None
    if method.wants_frames:
        loaded, missing = _load_relevance(relevance, family, model)
        if missing and method.wants_question:
            warnings.warn(
                f"{missing}: no segment is significant and every one keeps the same ratio (no global debiasing), and "
                "frames are grouped by the mean of their patch features. Pass relevance=PATH to a SigLIP checkpoint",
                NoRelevanceWarning,
                stacklevel=2,
            )
    if method.wants_question and loaded is not None and tokenizer is None and question is None:
        raise ValueError(
            "processor is needed to read the question from the prompt; pass processor=..., or question=..., "
            "or AdaTP(global_debias=False)"
        )
    with _APPLYING:  # another thread may have been faster
        _refuse_twice(model)
        return Pruned(
            model,
            family,
            method,
            flops=flops,
            tokenizer=tokenizer,
            relevance=loaded,
            question=question,
            impl=impl,
            compile_layers=compile_layers,
        )


def _refuse_twice(model: nn.Module) -> None:
    if is_applied(model):
        raise RuntimeError(
            "a method is already applied to this model; call remove() on what the first apply() returned"
        )


def _existing(report: PruningReport | None) -> PruningReport:
    if report is None:
        raise RuntimeError("there is no report: run the model first (or the last prefill failed)")
    return report


def _is_decoding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the body is called for one token after others. Asks no cache for its length, which may be on the device.

    Written for the compiler to see through.
    """
    tokens = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    cache = kwargs.get("past_key_values")
    if tokens is None or tokens.shape[1] != 1 or cache is None or len(cache.layers) == 0:
        return False
    return bool(cache.layers[0].is_initialized)


def _refuse_continuous_batching(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise ValueError(
        f"{getattr(method, '__name__', 'continuous batching')}: continuous batching cannot run on a pruned model, "
        "because its paged cache holds the same tokens in every layer; use generate() on a batch, or remove() first"
    )


def _load_relevance(relevance: Relevance | str | None, family: Family, model: Any) -> tuple[Relevance | None, str]:
    """The aligned SigLIP; or None, and why there is none."""
    if relevance is None:
        return None, "relevance=None"
    loaded = relevance
    if isinstance(relevance, str):
        checkpoint = family.siglip if relevance == "auto" else relevance
        if checkpoint is None:
            return None, "no SigLIP is known for this vision tower"
        try:
            loaded = Relevance.from_pretrained(checkpoint, family.tower_layers, device=model.device, dtype=model.dtype)
        except (OSError, ImportError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            if relevance != "auto":
                raise OSError(f"relevance={relevance!r} cannot be loaded: {reason}") from error
            return None, f"the text encoder {checkpoint} could not be loaded ({reason})"
    assert isinstance(loaded, Relevance)
    if loaded.width != family.tower_width:
        raise ValueError(
            f"relevance must continue the model's vision tower of width {family.tower_width}; "
            f"this SigLIP's width is {loaded.width}"
        )
    return loaded, ""
