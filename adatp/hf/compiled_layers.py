"""Decoder layers through `torch.compile`, for prefills that are bound by kernel launches: one graph for all layers.

Calls of a graph differ only in tensors and their lengths. So the layer is an argument of the graph. Its keys and values
are outputs; they are not written to a cache, because that needs the number of the layer. The queries that score a cut
come from a second graph, not from a hook inside the layer.
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

Tables = tuple[Tensor, ...]  # rotary, cos and sin


def check_compiling(model: nn.Module, family: Family) -> None:
    """Raise Unsupported for a model whose layers run other code than their own."""
    if any("forward" in layer.__dict__ for layer in family.decoder.layers):
        raise Unsupported(
            "compile_layers cannot be used if the layers' forward has been replaced, as accelerate does for layers on "
            "several devices, offloaded or on disk: leave it out"
        )
    if average_over_ranks(model) is not None:
        raise Unsupported("compile_layers cannot be used with tensor parallelism, whose hooks are inside the layers")


class CompiledLayers:
    """The decoder layers of one model, compiled for single prompts. The compiled graphs outlive this object.

    Args:
        family: the model.

    Attributes:
        own_hooks: ids of adatp's hooks on the layers and inside them. A compiled layer does not need the hooks inside.
    """

    def __init__(self, family: Family) -> None:
        self.own_hooks: set[int] = set()
        self._has_run = False
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
        """Record that a whole prefill has run, if its layers ran compiled."""
        if self._has_run:
            _WARM.add(self._family.decoder)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def attention(self) -> str:
        """Name of the attention implementation."""
        name: str = self._family.decoder.config._attn_implementation
        return name

    def takes(self, index: int, hidden: Tensor) -> bool:
        """Tell whether a layer shall run compiled on `[1, W, D]`.

        It shall not if W is larger than the block of an MLP, because a compiled MLP would run on all W tokens at once.
        It shall not if there are hooks inside the layer.
        """
        return hidden.shape[1] <= blocks.TOKENS and not self.hooked(index)

    def hooked(self, index: int) -> bool:
        """Tell whether a layer has hooks inside that are not adatp's; such a layer cannot be compiled.

        transformers leaves hooks for good after hidden states or attentions have been requested once.
        """
        return any(
            module._forward_pre_hooks or not self.own_hooks.issuperset(module._forward_hooks)
            for module in self._inside[index]
        )

    def watched(self, index: int) -> bool:
        """Tell whether a layer itself has hooks that are not adatp's; they see its input or its output."""
        layer = self._layers[index]
        return bool(layer._forward_hooks) or not self.own_hooks.issuperset(layer._forward_pre_hooks)

    def addresses(self, first: int) -> tuple[int, ...]:
        """Return the memory addresses of the weights of the layers from `first` on."""
        modules = (module for inside in self._inside[first:] for module in inside)
        return tuple(
            weight.data_ptr() for module in modules for weight in module._parameters.values() if weight is not None
        )

    def run(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Run a layer, store its keys and values in the cache, and return its output.

        Args:
            index: index of the layer.
            hidden: `[1, W, D]` input of the layer, a whole prompt.
            kwargs: the other arguments from the model. Only the mask, the rotary tables and the cache are used; a
                prompt without padding needs no more.

        Raises:
            RuntimeError: the layer could not be compiled.
        """
        output, keys, values = self.layer(index, hidden, kwargs["position_embeddings"], kwargs["attention_mask"])
        self._has_run = True
        cache = kwargs["past_key_values"]
        if cache is not None:
            cache.update(keys, values, index)
        return output

    def layer(self, index: int, hidden: Tensor, tables: Tables, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer on `[1, W, D]`, and return its `[1, W, D]` output and its `[1, G, W, d]` keys and values."""
        hidden, cos, sin = map(_packed, (hidden, *tables))
        mask = None if mask is None else _packed(mask)
        return self._graphs.layer(self._layers[index], hidden, (cos, sin), mask)

    def project(self, index: int, hidden: Tensor, rows: Tensor, tables: Tables) -> Tensor:
        """Compute `[1, H, T, d]` post-rotary queries of a layer, for `[T]` rows of its `[1, W, D]` input."""
        hidden, rows, cos, sin = map(_packed, (hidden, rows, *tables))
        return self._graphs.query(self._family, self._layers[index], hidden, rows, (cos, sin))


class _Leaves:
    """A cache for one layer and one whole prompt: it stores the keys and values of the layer."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values."""
        self.keys, self.values = keys, values
        return keys, values


def _run_layer(layer: Any, hidden: Tensor, tables: Tables, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer, and return its `[1, W, D]` output and its `[1, G, W, d]` keys and values."""
    cache = _Leaves()
    run = type(layer).forward  # not `layer.forward`: that one calls this function
    output = run(layer, hidden, attention_mask=mask, position_embeddings=tables, past_key_values=cache)
    return output, cache.keys, cache.values


def _project(family: Family, layer: Any, hidden: Tensor, rows: Tensor, tables: Tables) -> Tensor:
    """Compute `[1, H, T, d]` queries of some rows. The compiler removes the keys, which are not used."""
    query, _ = family.project(layer, hidden, rows, *tables)
    return query


class _Graphs(NamedTuple):
    """The compiled functions of a model."""

    layer: Callable[..., tuple[Tensor, Tensor, Tensor]]
    query: Callable[..., Tensor]


_GRAPHS: "WeakKeyDictionary[nn.Module, _Graphs]" = WeakKeyDictionary()  # by decoder
_WARM: "WeakSet[nn.Module]" = WeakSet()  # decoders


def _packed(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is a view or has gaps; such tensors would need another compilation."""
    gaps = tensor.stride(0) != prod(tensor.shape[1:]) or not tensor.is_contiguous()
    return tensor.clone(memory_format=torch.contiguous_format) if gaps or tensor._is_view() else tensor


def _compiled(function: Any) -> Callable[..., Any]:
    """Compile the function to one graph for tensors of all lengths; it is an error if one graph is not possible."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    # a copy of the code for each model: torch limits how often the same code is compiled again
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    compiled = torch.compile(own, backend=BACKEND, dynamic=True, fullgraph=True)

    def run(*args: Any) -> Any:
        try:
            with torch.no_grad():  # a pruned prefill has no gradients; a graph for each grad mode would be useless
                return compiled(*args)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().split("\n\n")[0].split())
            raise RuntimeError(
                "a decoder layer could not be compiled; this needs a C++ compiler on a CPU and Triton on a GPU. Leave "
                f"compile_layers out to run without. {reason}"
            ) from error

    return run
