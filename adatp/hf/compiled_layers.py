"""Decoder layers through `torch.compile`, for prefills that are bound by what they launch: one graph serves all layers.

Nothing but tensors and their lengths differs from call to call of a graph. A layer is an argument like any other; its
keys and values are put out, not written to a cache, whose layers are numbered; and the queries that score a cut come
from a graph of their own, not from a hook in the middle.
"""

from collections.abc import Callable
from math import prod
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from adatp.errors import Unsupported
from adatp.hf.tensor_parallel import average_over_ranks
from adatp.models.family import Family
from adatp.tensors import blocks

BACKEND = "inductor"  # of torch.compile

Tables = tuple[Tensor, Tensor]  # rotary, cos and sin


def check_compiling(model: nn.Module, family: Family) -> None:
    """Raise a ValueError for a model whose layers do not run by their own code alone."""
    if any("forward" in layer.__dict__ for layer in family.decoder.layers):
        raise Unsupported(
            "compile_layers cannot be used where the layers' forward has been replaced, as accelerate does for layers "
            "on several devices, offloaded or on disk: leave it out"
        )
    if average_over_ranks(model) is not None:
        raise Unsupported("compile_layers cannot be used with tensor parallelism, whose hooks are inside the layers")


class CompiledLayers:
    """The decoder layers of one model, each run on a prompt alone. What they are compiled to outlives this object.

    Args:
        family: the model.

    Attributes:
        own_hooks: ids of the hooks on the layers and inside them that are ours. Those inside need not run in what is
            compiled.
    """

    def __init__(self, family: Family) -> None:
        self.own_hooks: set[int] = set()
        self._family = family
        self._layers = list(family.decoder.layers)
        self._inside = [list(layer.modules())[1:] for layer in self._layers]
        if family.decoder not in _GRAPHS:
            _GRAPHS[family.decoder] = _Graphs(_compiled(_run_layer), _compiled(_project))
        self._graphs = _GRAPHS[family.decoder]

    @property
    def is_warm(self) -> bool:
        """Whether a whole prefill has run compiled on this model."""
        return self._family.decoder in _WARM

    def warmed(self) -> None:
        """Note that a whole prefill has run compiled."""
        _WARM.add(self._family.decoder)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def attention(self) -> str:
        """Name of the attention implementation."""
        name: str = self._family.decoder.config._attn_implementation
        return name

    def takes(self, index: int, hidden: Tensor) -> bool:
        """Whether a layer shall run compiled on `[1, W, D]`.

        Not where W is above what an MLP takes at a time: compiled, it would take all of it; and not where there are
        hooks inside the layer.
        """
        return hidden.shape[1] <= blocks.TOKENS and not self.hooked(index)

    def hooked(self, index: int) -> bool:
        """Whether others have hooks inside a layer, which cannot be compiled.

        transformers leaves some for good once it was asked for hidden states or attentions.
        """
        return any(
            module._forward_pre_hooks or not self.own_hooks.issuperset(module._forward_hooks)
            for module in self._inside[index]
        )

    def watched(self, index: int) -> bool:
        """Whether others have hooks on a layer, which see what enters it or what it puts out."""
        layer = self._layers[index]
        return bool(layer._forward_hooks) or not self.own_hooks.issuperset(layer._forward_pre_hooks)

    def addresses(self, first: int) -> tuple[int, ...]:
        """Where the weights of the layers from `first` on are in memory."""
        modules = (module for inside in self._inside[first:] for module in inside)
        return tuple(
            weight.data_ptr() for module in modules for weight in module._parameters.values() if weight is not None
        )

    def run(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """What a layer puts out, with its keys and values in the cache.

        Args:
            index: of the layer.
            hidden: `[1, W, D]` what enters it, a whole prompt.
            kwargs: what the model calls it with besides. A prompt without padding needs its mask and its rotary tables
                of it, and where the keys and values go.

        Raises:
            RuntimeError: the layer could not be compiled.
        """
        output, keys, values = self.layer(index, hidden, kwargs["position_embeddings"], kwargs["attention_mask"])
        cache = kwargs["past_key_values"]
        if cache is not None:
            cache.update(keys, values, index)
        return output

    def layer(self, index: int, hidden: Tensor, tables: Tables, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`[1, W, D]` what a layer puts out, and its `[1, G, W, d]` keys and values."""
        hidden, cos, sin = map(_packed, (hidden, *tables))
        mask = None if mask is None else _packed(mask)
        return self._graphs.layer(self._layers[index], hidden, (cos, sin), mask)

    def project(self, index: int, hidden: Tensor, rows: Tensor, tables: Tables) -> Tensor:
        """`[1, H, T, d]` post-rotary queries of a layer, of the tokens at `[T]` rows among those that enter it."""
        hidden, rows, cos, sin = map(_packed, (hidden, rows, *tables))
        return self._graphs.query(self._family, self._layers[index], hidden, rows, (cos, sin))


class _Leaves:
    """A cache of one layer for a prompt that comes whole: it holds what the layer leaves."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


def _run_layer(layer: Any, hidden: Tensor, tables: Tables, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`[1, W, D]` what a layer puts out, and its `[1, G, W, d]` keys and values."""
    cache = _Leaves()
    run = type(layer).forward  # the instance's leads here
    output = run(layer, hidden, attention_mask=mask, position_embeddings=tables, past_key_values=cache)
    return output, cache.keys, cache.values


def _project(family: Family, layer: Any, hidden: Tensor, rows: Tensor, tables: Tables) -> Tensor:
    """`[1, H, T, d]` queries of some rows. The keys, which nobody takes, the compiler drops."""
    query, _ = family.project(layer, hidden, rows, *tables)
    return query


class _Graphs(NamedTuple):
    """What is compiled for a model."""

    layer: Callable[..., tuple[Tensor, Tensor, Tensor]]
    query: Callable[..., Tensor]


_GRAPHS: "WeakKeyDictionary[nn.Module, _Graphs]" = WeakKeyDictionary()  # by decoder
_WARM: "WeakSet[nn.Module]" = WeakSet()  # decoders


def _packed(tensor: Tensor) -> Tensor:
    """The tensor, no view and without gaps: what is compiled for such tensors is compiled again for others."""
    gaps = tensor.stride(0) != prod(tensor.shape[1:]) or not tensor.is_contiguous()
    return tensor.clone(memory_format=torch.contiguous_format) if gaps or tensor._is_view() else tensor


def _compiled(function: Any) -> Callable[..., Any]:
    """The function, compiled into one graph for tensors of all lengths; what cannot be one graph is an error."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    # with code of its own: how often code is compiled anew is limited, whichever model it is for
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    compiled = torch.compile(own, backend=BACKEND, dynamic=True, fullgraph=True)

    def run(*args: Any) -> Any:
        try:
            with torch.no_grad():  # a pruned prefill has no gradients; one graph more for each mode helps nobody
                return compiled(*args)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().split("\n\n")[0].split())
            raise RuntimeError(
                "a decoder layer could not be compiled, which takes a C++ compiler on a CPU and Triton on a GPU; leave "
                f"compile_layers out to run without. {reason}"
            ) from error

    return run
