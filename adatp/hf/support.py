"""Checks that refuse unsupported input before anything is computed, also from the arguments of `generate`."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adatp.errors import Unsupported, UnsupportedType
from adatp.hf.batch import Batch
from adatp.hf.cache import check_cache
from adatp.hf.setup import Setup
from adatp.layout import VideoSize
from adatp.methods.method import Method
from adatp.models.family import Family

SUPPORTED_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
# methods for continuous batching: they use one paged cache, in which every layer holds the same tokens
CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
MARK = "_adatp"  # attribute of a model that is being pruned
_CACHES = ("dynamic", "static")


def is_applied(model: nn.Module) -> bool:
    """Tell whether a method is applied to this model."""
    return MARK in model.__dict__


class Prepared(NamedTuple):
    """The result of reading the arguments of `generate`.

    Attributes:
        ids: `[B, L]` ids of the prompts, on the host; None if there are none.
        changed: arguments to replace.
        batch: the prompts, if they will be pruned; else None.
        sizes: sizes of their videos; None if the ids tell them.
        continued: whether the prompts continue a cache.
    """

    ids: Tensor | None = None
    changed: Mapping[str, Any] = MappingProxyType({})
    batch: Batch | None = None
    sizes: Sequence[VideoSize] | None = None
    continued: bool = False


def prepare(model: Any, setup: Setup, given: dict[str, Any]) -> Prepared:
    """Read the prompts that `generate` is given, before anything is computed.

    The forward would refuse most of the same prompts. But from transformers 5.18 on, the video is encoded before the
    forward.

    Args:
        model: the model whose `generate` is called.
        setup: the method on it.
        given: the arguments of `generate` by name.

    Raises:
        Unsupported: a prompt with a video cannot be pruned, or cannot be pruned with the settings of `generate`.
        TypeError: the cache cannot hold a pruned prompt.
    """
    family = setup.family
    _check_negative_prompt(family, given)
    ids, embeds, cache = given.get("input_ids"), given.get("inputs_embeds"), given.get("past_key_values")
    ids = given.get("inputs") if ids is None else ids
    if embeds is not None:
        ids = family.ids_of(embeds)
    elif ids is not None:
        ids = ids.cpu()
    else:
        return Prepared()
    encoded, pruned = given.get("mm_encoder_outputs") or {}, family.has_video(ids)
    if pruned:
        _check_settings(model, setup.method, given)
    new = ids if cache is None else ids[:, cache.get_seq_length() :]
    continued = is_continued(cache, arrives=pruned and brings_video(family, given, new))
    if continued or not pruned:
        return Prepared(ids, continued=continued)
    check_support(setup, cache)
    sizes = family.sizes(given)
    batch = Batch.read(family, ids, given.get("attention_mask"), sizes=sizes)
    copies = max(_setting(model, given, "num_beams") or 1, _setting(model, given, "num_return_sequences") or 1)
    if copies > 1 and "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        _check_copies(family, batch)
    # beam search repeats the features in place; a copy keeps those of the caller unchanged
    encoded = {name: copy.copy(value) for name, value in encoded.items()}
    return Prepared(ids, {"mm_encoder_outputs": encoded} if encoded else {}, batch, sizes)


def brings_video(family: Family, given: Mapping[str, Any], ids: Tensor | None) -> bool:
    """Tell whether a call brings the pixels or features of a video. Reads no ids if it brings none of any kind.

    Args:
        family: the family of the model.
        given: the arguments of the call by name.
        ids: `[B, L]` ids that are new in the call; None if they came as embeddings.
    """
    encoded = (given.get("mm_encoder_outputs") or {}).get(family.modality)
    if encoded is None and given.get(family.pixels) is None:
        return False
    return family.modality == "video" or ids is None or family.has_video(ids)


def is_continued(cache: Any, *, arrives: bool) -> bool:
    """Tell whether `cache` already holds tokens; refuse this if a new video `arrives`."""
    continued = cache is not None and bool(cache.get_seq_length() > 0)
    if continued and arrives:
        raise Unsupported(
            "a video cannot be pruned if the cache already holds tokens (a cached prefix, another video, or chunked "
            "prefill): give the whole prompt at once, with an empty cache"
        )
    return continued


def check_support(setup: Setup, cache: Any) -> None:
    """Refuse an attention implementation, a mode or a cache that pruning does not support."""
    attention = setup.attention
    layers = setup.family.decoder.layers
    if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in layers):
        raise Unsupported(
            "gradient checkpointing in training mode takes the cache away from the decoder's layers, but a pruned "
            "prefill needs the keys in it: call model.eval() first, or turn checkpointing off"
        )
    if attention not in SUPPORTED_ATTENTION:
        raise Unsupported(f"attn_implementation must be one of {', '.join(SUPPORTED_ATTENTION)}, got {attention!r}")
    check_cache(cache, attention, sparse=setup.method.decoding is not None)


def check_gradients(inputs: Iterable[Tensor]) -> None:
    """Refuse a prefill with gradients of any of its inputs, which are parameters or embeddings."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        raise Unsupported(
            "a pruned prefill has no gradients, because dropping tokens is not differentiable: run it under "
            "torch.no_grad() or torch.inference_mode(), as generate() does, or train without pruning"
        )


def refuse_copying(*_: Any) -> Any:
    """Refuse to copy or pickle a part of a pruned model: its hooks belong to the original."""
    raise UnsupportedType("a model cannot be copied or pickled while it is pruned; call remove() first")


def refuse_continuous_batching(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Refuse continuous batching."""
    raise Unsupported(
        f"{getattr(method, '__name__', 'continuous batching')}: continuous batching cannot run on a pruned model, "
        "because its paged cache holds the same tokens in every layer; use generate() on a batch, or remove() first"
    )


def _setting(model: Any, given: dict[str, Any], name: str) -> Any:
    """Return the value that `generate` will use: its argument, or else the value of a generation configuration."""
    values = [given.get(name)]
    values += [getattr(config, name, None) for config in (given.get("generation_config"), model.generation_config)]
    return next((value for value in values if value is not None), None)


def _check_negative_prompt(family: Family, given: dict[str, Any]) -> None:
    """Refuse a negative prompt with a video, which transformers would run without the video's features."""
    negative = given.get("negative_prompt_ids")
    if negative is not None and family.has_video(negative):
        raise Unsupported(
            "negative_prompt_ids hold placeholders of a video, but transformers gives a negative prompt no video: "
            "leave the placeholders out of it"
        )


def _check_copies(family: Family, batch: Batch) -> None:
    """Refuse copies of prompts, whose inputs transformers copies one by one up to 5.17: A, A, B, B for A, B."""
    for ids, layout in zip(batch.ids, batch.layouts, strict=True):
        inputs = len(family.frames_encoded(ids, layout)) if family.modality == "image" else 0
        if inputs > 1 or (layout is not None and len(layout.videos) > 1):
            what = "frames" if inputs else "videos"
            raise Unsupported(
                f"this version of transformers gives the copies of a prompt with several {what} the wrong {what}; use "
                "5.18 or newer, or num_beams=1 and num_return_sequences=1"
            )


def _check_settings(model: Any, method: Method, given: dict[str, Any]) -> None:
    if _setting(model, given, "prefill_chunk_size") is not None:
        raise Unsupported(
            "prefill_chunk_size cannot be set for a prompt with a video: chunked prefill would have to cut tokens "
            "before it has read the question that scores them"
        )
    cache = _setting(model, given, "cache_implementation")
    if cache is not None and cache not in _CACHES:
        raise Unsupported(
            f"cache_implementation={cache!r} cannot be pruned: layers keep different tokens, on the model's device, "
            f"which only {' and '.join(map(repr, _CACHES))} caches can hold"
        )
    if cache == "static" and method.decoding is not None:
        raise Unsupported(
            "cache_implementation='static' cannot be used with sparse decoding; leave it unset, or use DyCoke(p=0)"
        )
    if _setting(model, given, "use_cache") is False and method.decoding is not None:
        raise Unsupported(
            "use_cache=False cannot be used with sparse decoding, which chooses among the tokens in the cache; leave "
            "it unset, or use DyCoke(p=0)"
        )
    if _setting(model, given, "assistant_early_exit") is not None or given.get("assistant_model") is model:
        raise Unsupported("a model cannot assist itself while it is pruned: pass another model as assistant_model")
