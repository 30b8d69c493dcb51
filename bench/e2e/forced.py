"""A prefill with a method's number of tokens at every layer, but without scoring, selection and compaction.

The difference to the method's prefill is the time that the method itself takes.
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
    """Within the `with` block, let each layer of the decoder see only its first tokens, for one prompt a call.

    Args:
        loaded: the model.
        widths: number of tokens at every layer's input, in descending order.
    """
    decoder = family_of(loaded.model).decoder
    decoder.__dict__["forward"] = functools.partial(_forward, decoder, widths)  # only for this instance
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
