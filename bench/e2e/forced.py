"""A prefill as wide at every layer as a method leaves it, in which nothing is scored, chosen or moved.

What a method's prefill takes beyond this is what the method itself costs.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from adatp.evaluation.session import Loaded
from adatp.models import family_of


@contextmanager
def forced_widths(loaded: Loaded, widths: Sequence[int]) -> Iterator[None]:
    """While open, each layer of the decoder sees its width's first tokens, of one prompt a call.

    Args:
        loaded: the model.
        widths: tokens at every layer's input, never rising.
    """
    decoder = family_of(loaded.model).decoder
    decoder.__dict__["forward"] = functools.partial(_forward, decoder, widths)  # of this instance
    try:
        yield
    finally:
        del decoder.__dict__["forward"]


def _forward(decoder: Any, widths: Sequence[int], *, inputs_embeds: Any, **_: Any) -> BaseModelOutputWithPast:
    hidden, cache = inputs_embeds, DynamicCache(config=decoder.config)
    tables = decoder.rotary_emb(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
    for layer, width in zip(decoder.layers, widths, strict=True):
        hidden, tables = hidden[:, :width], tuple(table[:, :width] for table in tables)
        hidden = layer(hidden, position_embeddings=tables, past_key_values=cache, attention_mask=None)
    return BaseModelOutputWithPast(last_hidden_state=decoder.norm(hidden), past_key_values=cache)
