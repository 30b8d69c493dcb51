"""Compilers such as `torch.compile` trace only the decode steps of a pruned model; the prefill runs eagerly."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_prefill(traced: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run the decorated method eagerly in a compiled model; in a decode step that a compiler traces, run `traced`.

    Such a step has one new token and a cache of fixed size. transformers compiles nothing else of a pruned model.

    Args:
        traced: a method; like the decorated method, its first argument is `[B, new, ...]`.
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
    """Tell whether the body is called for one token after others; a compiler can trace this function.

    It does not read the length of the cache, which may be on the device.
    """
    tokens = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    cache = kwargs.get("past_key_values")
    if tokens is None or tokens.shape[1] != 1 or cache is None or len(cache.layers) == 0:
        return False
    return bool(cache.layers[0].is_initialized)
