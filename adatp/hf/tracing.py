"""What of a pruned model a compiler traces: steps of decoding, and nothing of a prefill."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_prefill(traced: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run what is decorated eagerly, whoever compiles the model; where a compiler traces a step of decoding, `traced`.

    A step brings one token, over a cache of fixed size: that is all of a pruned model that transformers compiles.

    Args:
        traced: a method; like the one that is decorated it takes `[B, new, ...]` first.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        eager = torch.compiler.disable(method)

        @functools.wraps(method)
        def run(self: Any, tokens: Tensor, *args: Any) -> Any:
            if torch.compiler.is_dynamo_compiling() and tokens.shape[1] == 1:
                return traced(self, tokens, *args)
            return eager(self, tokens, *args)

        return run

    return decorate


def is_decoding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether the body is called for one token after others, in words that a compiler sees through.

    No cache is asked for its length, which may be on the device.
    """
    tokens = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    cache = kwargs.get("past_key_values")
    if tokens is None or tokens.shape[1] != 1 or cache is None or len(cache.layers) == 0:
        return False
    return bool(cache.layers[0].is_initialized)
