"""Put AdaTP into one model instance, and take it out again.

Only hooks of the instance are used; no class and no forward is replaced. The body's hook finds the video in the
prompt, the decoder's hook computes segments and relevance, and each pruned decoder layer's hook cuts its input before
the layer runs.
"""

import functools
import inspect
import threading
import warnings
from typing import Any

from torch import Tensor, nn

from adatp.cache import PrunedLayer, check_cache
from adatp.config import AdaTPConfig
from adatp.forward import PrunedForward
from adatp.models import family_of
from adatp.models.family import Family
from adatp.prefill import PromptLayout
from adatp.relevance import NoRelevanceWarning, Relevance
from adatp.report import PruningReport, passed_through
from adatp_kernels.dispatch import Impl, resolve

SUPPORTED_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
_MARK = "_adatp"  # attribute of a model that is being pruned


class Pruned:
    """AdaTP inside a model, as `apply` put it there; also a context manager that removes it.

    Attributes:
        config: the hyperparameters.
        question: the question to compare frames with: a string, one string a sample, or None to read it from the
            prompt's text after the video. May be set between calls.
        relevance: the aligned SigLIP, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        config: AdaTPConfig,
        *,
        tokenizer: Any,
        relevance: Relevance | None,
        question: str | list[str] | None,
        impl: Impl,
    ) -> None:
        self.config = config
        self.question = question
        self.relevance = relevance
        self._model = model
        self._family = family
        self._tokenizer = tokenizer
        self._impl = impl
        self._report: PruningReport | None = None
        self._local = threading.local()  # the forward of each thread
        self._install()

    @property
    def report(self) -> PruningReport:
        """What the last prefill kept.

        Raises:
            RuntimeError: the model has not run since `apply`, or its last prefill failed.
        """
        if self._report is None:
            raise RuntimeError("there is no report: run the model first (or the last prefill failed)")
        return self._report

    @property
    def _active(self) -> PrunedForward | None:
        return getattr(self._local, "forward", None)

    @_active.setter
    def _active(self, forward: PrunedForward | None) -> None:
        self._local.forward = forward

    def remove(self) -> None:
        """Leave the model as it was before `apply`. Removing twice does nothing."""
        if self._model.__dict__.get(_MARK) is not self:
            return
        for handle in self._handles:
            handle.remove()
        body = self._family.body
        del body.get_video_features
        body.__dict__.update(self._replaced)
        del self._model.__dict__[_MARK]
        self._local = threading.local()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a model cannot be copied or pickled while AdaTP is applied to it; call remove() first")

    def __enter__(self) -> "Pruned":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _install(self) -> None:
        body, decoder = self._family.body, self._family.decoder
        self._signature = inspect.signature(body.forward)
        self._handles = [
            self._model.register_forward_pre_hook(self._on_model, with_kwargs=True),
            body.register_forward_pre_hook(self._on_prompt, with_kwargs=True),
            body.register_forward_hook(self._on_end, always_call=True),
            decoder.register_forward_pre_hook(self._on_decoder, with_kwargs=True),
        ]
        for index, layer in enumerate(decoder.layers):
            if index >= self.config.first - 1:
                hook = functools.partial(self._on_layer, index)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        encode = body.get_video_features
        # usually empty: the method is the class's, which shows again once the instance's is gone
        self._replaced = {name: body.__dict__[name] for name in ("get_video_features",) if name in body.__dict__}

        @functools.wraps(encode)
        def get_video_features(*args: Any, **kwargs: Any) -> Any:
            outputs = encode(*args, **kwargs)
            if self._active is not None:
                self._active.features = outputs
            return outputs

        body.get_video_features = get_video_features
        self._model.__dict__[_MARK] = self

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: refuse what it would only fail on after the prefill."""
        labels, input_ids = kwargs.get("labels"), kwargs.get("input_ids")
        if labels is not None and input_ids is not None and self._family.has_video(input_ids):
            raise ValueError("labels cannot be given: a pruned prefill has logits only for the tokens that are left")

    def _on_prompt(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the body: find the video. Reads the prompt's ids and mask, before any of the prefill is queued."""
        self._active = None
        given = self._signature.bind_partial(*args, **kwargs).arguments
        input_ids, cache = given.get("input_ids"), given.get("past_key_values")
        features = (given.get("mm_encoder_outputs") or {}).get("video")
        if cache is not None and cache.get_seq_length() > 0:
            # a continuation: its prompt was pruned, its new tokens are not; decoding a single token reads nothing
            arrives = features is not None or given.get("pixel_values_videos") is not None
            if arrives or (input_ids is not None and input_ids.shape[1] > 1 and self._family.has_video(input_ids)):
                raise ValueError(
                    "a video that joins a cache which already holds tokens cannot be pruned (a cached prefix, a "
                    "further video, or chunked prefill): give the whole prompt at once, with an empty cache"
                )
            return
        self._report = None
        if input_ids is None:
            self._report = passed_through("the prompt came as inputs_embeds, in which no video can be found")
            return
        input_ids = input_ids.cpu()
        if not self._family.has_video(input_ids):
            self._report = passed_through("no video in the prompt")
            return
        check_cache(cache)
        self._check_decoder()
        layout = self._family.layout(input_ids, _left_padding(given.get("attention_mask")))
        compares = self.config.global_debias and self.relevance is not None
        questions = self._questions(input_ids, layout) if compares else None
        self._active = PrunedForward(self._family, self.config, layout, features, questions, self._impl)

    def _check_decoder(self) -> None:
        decoder = self._family.decoder
        attention = decoder.config._attn_implementation
        if attention not in SUPPORTED_ATTENTION:
            raise ValueError(f"attn_implementation must be one of {', '.join(SUPPORTED_ATTENTION)}, got {attention!r}")
        if decoder.training and any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.layers):
            raise ValueError("gradient checkpointing would run the cuts twice; turn it off, or call model.eval()")

    def _questions(self, input_ids: Tensor, layout: PromptLayout) -> list[str]:
        batch = input_ids.shape[0]
        if self.question is None:
            return self._family.question(input_ids, layout, self._tokenizer)
        if isinstance(self.question, str):
            return [self.question] * batch
        if not self.question or batch % len(self.question):
            raise ValueError(f"question holds {len(self.question)} questions for {batch} prompts; give one a prompt")
        return [q for q in self.question for _ in range(batch // len(self.question))]  # as beams are laid out

    def _on_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._active is not None:
            self._active.begin(self.relevance)

    def _on_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        forward = self._active
        hidden = args[0] if args else kwargs["hidden_states"]
        if forward is None:
            return self._continue(index, hidden, args, kwargs)
        hidden, kwargs = forward.enter(index, hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _continue(
        self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A layer that continues on a pruned cache: its mask is as long as its own cache."""
        cache = kwargs.get("past_key_values")
        if cache is None or index >= len(cache.layers) or not isinstance(cache.layers[index], PrunedLayer):
            return None
        attention = self._family.decoder.config._attn_implementation
        mask = cache.layers[index].decode_mask(kwargs.get("attention_mask"), hidden.shape[1], attention)
        return args, {**kwargs, "attention_mask": mask}

    def _on_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the body, whether it returned or raised."""
        forward, self._active = self._active, None
        if forward is not None and output is not None:
            self._report = forward.report()


def apply(
    model: nn.Module,
    processor: Any = None,
    config: AdaTPConfig | None = None,
    *,
    relevance: Relevance | str | None = "auto",
    question: str | list[str] | None = None,
    impl: Impl = "auto",
) -> Pruned:
    """Prune the visual tokens of a video between the decoder layers of `model`, from its next prefill on.

    Args:
        model: a Hugging Face Video LLM of a supported family. Only this instance changes.
        processor: its processor (or tokenizer), with which the question is read from the prompt. May be left out
            where `question` is given or there is no global debiasing.
        config: hyperparameters; the paper's by default.
        relevance: how frames are compared with the question (eq. 3): a `Relevance`, the name or path of the SigLIP
            checkpoint that the vision tower was trained from, `"auto"` for the family's, or None. Its frame features
            also make the segments. With None, and where `"auto"` cannot load it, segments come from the mean of a
            frame's patch features, and no segment is significant, with a warning.
        question: the question, or one a sample; None reads it from the prompt's text after the video.
        impl: `"auto"`, `"reference"` or `"triton"`: the implementation of scores, selection and compaction.

    Returns:
        The handle with `report` and `remove()`.

    Raises:
        TypeError: the model's family is not supported.
        ValueError: the model has too few layers for the schedule, sliding-window layers, or no processor is given
            where one is needed.
        RuntimeError: AdaTP is already applied to this model, or `impl` cannot run here.
    """
    config = config or AdaTPConfig()
    family = family_of(model)
    if _MARK in model.__dict__:
        raise RuntimeError("AdaTP is already applied to this model; call remove() on what the first apply() returned")
    resolve(impl, family.decoder.device)
    text_config = family.decoder.config
    config.last_of(text_config.num_hidden_layers)
    if "sliding_attention" in (getattr(text_config, "layer_types", None) or ()):
        raise ValueError("the model has sliding-window layers, whose window would span dropped tokens")
    tokenizer = getattr(processor, "tokenizer", processor)
    loaded = None
    if config.segments or config.global_debias:
        loaded, missing = _load_relevance(relevance, family, model)
        if missing and config.global_debias:
            warnings.warn(
                f"{missing}: no segment is significant and every one keeps the same ratio (no global debiasing), and "
                "frames are grouped by the mean of their patch features. Pass relevance=PATH to a SigLIP checkpoint",
                NoRelevanceWarning,
                stacklevel=2,
            )
    if config.global_debias and loaded is not None and tokenizer is None and question is None:
        raise ValueError(
            "processor is needed to read the question from the prompt; pass processor=..., or question=..., "
            "or AdaTPConfig(global_debias=False)"
        )
    return Pruned(model, family, config, tokenizer=tokenizer, relevance=loaded, question=question, impl=impl)


def _left_padding(mask: Tensor | None) -> Tensor | None:
    """The prompts' `[B, L]` mask on the host, as bool; refused where it is anything but padding on the left."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must be [B, L] or None to be pruned, got {tuple(mask.shape)}")
    mask = mask.cpu().bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError("attention_mask must be padded on the left only; set padding_side='left'")
    return mask


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
