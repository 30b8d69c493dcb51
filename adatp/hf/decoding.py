"""Decoding after a pruned prompt: every layer has its own cache length, its own mask and its own positions."""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from adatp.hf.cache import PrunedLayer, PrunedStaticLayer, Shift
from adatp.hf.setup import Setup

Tables = tuple[Tensor, Tensor]  # rotary, cos and sin


class _Step(threading.local):
    """The current decode step of a thread."""

    positions: Tensor | None = None  # the position ids that `tables` were computed from ...
    cache: weakref.ref[Any] | None = None  # ... and the cache; a weak reference, so that its memory can be freed
    tables: dict[int, Tables]  # by `Shift.group`
    asking: Tables | None = None  # rotary tables of the new token, while its query is needed
    query: Tensor | None = None


class Decoding:
    """The layers of a model in decoding.

    Args:
        setup: the method on its model.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._step = _Step()

    def enter(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments to call decoder layer `index` with, instead of `kwargs`.

        With a cache of fixed size, a compiler can trace this method.

        Args:
            index: index of the layer.
            hidden: `[B, new, D]` input of the layer.
            kwargs: the arguments from the model; returned unchanged unless the cache layer is pruned.
        """
        cache = kwargs.get("past_key_values")
        if cache is None or index >= len(cache.layers):
            return kwargs
        layer = cache.layers[index]
        if not isinstance(layer, PrunedLayer | PrunedStaticLayer):
            return kwargs
        if layer.shift is not None:
            tables = self._shifted(layer.shift, hidden, kwargs["position_ids"], cache)
            kwargs = {**kwargs, "position_embeddings": tables}
        own, new = kwargs.get("attention_mask"), hidden.shape[1]
        attention, decoding = self._setup.attention, self._setup.method.decoding
        if decoding is None or isinstance(layer, PrunedStaticLayer):
            mask = layer.decode_mask(own, new, attention)
        else:
            first = decoding.layer
            attended = self._attended(index, first, cache.layers[first - 1], new, kwargs["position_embeddings"])
            mask = layer.decode_mask(own, new, attention, attended)
        return {**kwargs, "attention_mask": mask}

    def project(self, index: int, projected: Tensor) -> None:
        """Store the new token's query from the query projection of decoder layer `index`, if it is needed."""
        if torch.compiler.is_dynamo_compiling() or self._step.asking is None:
            return
        self._step.query = self._setup.family.queries(
            self._setup.family.decoder.layers[index], projected, *self._step.asking
        )
        self._step.asking = None

    def _shifted(self, shift: Shift, hidden: Tensor, position_ids: Tensor, cache: Any) -> Tables:
        """Return rotary tables of shifted positions, computed once per step for all layers with an equal shift."""
        step = self._step
        if torch.compiler.is_dynamo_compiling():
            return self._moved(shift, hidden, position_ids)
        if step.positions is not position_ids or step.cache is None or step.cache() is not cache:
            step.positions, step.cache, step.tables = position_ids, weakref.ref(cache), {}
        if shift.group not in step.tables:
            step.tables[shift.group] = self._moved(shift, hidden, position_ids)
        return step.tables[shift.group]

    def _moved(self, shift: Shift, hidden: Tensor, position_ids: Tensor) -> Tables:
        positions = position_ids.to(hidden.device) - shift.tokens.to(hidden.device)[:, None]
        tables: Tables = self._setup.family.decoder.rotary_emb(hidden, positions)
        return tables

    @torch.compiler.disable
    def _attended(self, index: int, first: int, scorer: PrunedLayer, new: int, tables: Tables) -> Tensor | None:
        """Return `[B, K]` bool, the prompt's slots that layer `index` attends to; None for all.

        Layer `first - 1` scores the slots. Layer `first` and all layers after it attend to the chosen slots. In a step
        with several tokens they attend to all slots.
        """
        step, sparse = self._step, scorer.sparse
        if sparse is None:
            return None
        if index == first - 1:
            sparse.attended = step.query = None
            step.asking = tables if new == 1 else None
        if index < first:
            return None
        if index == first and step.query is not None:
            query, step.query = step.query, None
            sparse.choose(
                query.to(scorer.keys.device),
                scorer.keys,
                scorer.kept,
                scale=self._setup.family.scale(self._setup.family.decoder.layers[first - 1]),
                scoring=self._setup.scoring,
            )
        return sparse.attended
