"""FastV as its authors run it: the scoring layer uses eager attention, which returns the whole matrix."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import Stopwatch
from adatp.methods import FastV
from adatp.models import family_of


@torch.inference_mode()
def fastv_eager(loaded: Loaded, inputs: Mapping[str, Any], method: FastV) -> tuple[float, Tensor]:
    """Run one prefill of one prompt.

    Returns:
        Seconds of the decoder, as `adatp.evaluation.measure.prefill` counts them, and the next token's logits `[V]`.
    """
    family = family_of(loaded.model)
    layout = family.layout(inputs["input_ids"][0].cpu())
    assert layout is not None
    decoder = family.decoder
    forward = functools.partial(_forward, decoder, layout.visual.to(loaded.model.device), method)
    decoder.__dict__["forward"] = forward  # only for this instance and this call
    try:
        with Stopwatch({"decoder": [decoder]}) as watch:
            output = loaded.model(**inputs, logits_to_keep=1)
    finally:
        del decoder.__dict__["forward"]
    return watch.seconds["decoder"], output.logits[0, -1]


def _forward(
    decoder: Any, visual: Tensor, method: FastV, *, inputs_embeds: Tensor, **_: Any
) -> BaseModelOutputWithPast:
    """Run the decoder on one prompt; `visual` holds the indices of its prunable tokens."""
    hidden, cache = inputs_embeds, DynamicCache(config=decoder.config)
    place = torch.arange(hidden.shape[1], device=hidden.device)[None]
    tables = decoder.rotary_emb(hidden, place)
    for index, layer in enumerate(decoder.layers):
        call = functools.partial(layer, hidden, position_embeddings=tables, past_key_values=cache)
        if index != method.layer - 1:
            hidden = call(attention_mask=None)
            continue
        hidden, received = _eager(decoder, layer, call, hidden, visual)
        stays = torch.ones_like(place[0], dtype=torch.bool)
        stays[visual] = False
        stays[visual[received.topk(method.tokens(method.keep, len(visual))).indices]] = True
        hidden, place = hidden[:, stays], place[:, stays]
        tables = decoder.rotary_emb(hidden, place)
    return BaseModelOutputWithPast(last_hidden_state=decoder.norm(hidden), past_key_values=cache)


def _eager(decoder: Any, layer: Any, call: Any, hidden: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Run a layer by eager attention. Return its output, and the attention of the last token to each visual token."""
    length, seen = hidden.shape[1], []
    mask = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device)
    hook = layer.self_attn.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    before, decoder.config._attn_implementation = decoder.config._attn_implementation, "eager"
    try:
        hidden = call(attention_mask=mask.triu(1)[None, None])
    finally:
        decoder.config._attn_implementation = before
        hook.remove()
    return hidden, seen[0].mean(1)[0, -1, visual]
