"""What comes after a pruned prompt: every layer continues on a cache, with a mask and at positions of its own."""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from adatp.hf.cache import PrunedLayer, PrunedStaticLayer, Shift
from adatp.hf.setup import Setup

Tables = tuple[Tensor, Tensor]  # rotary, cos and sin


class _Step(threading.local):
    """The step of decoding that a thread is in."""

    positions: Tensor | None = None  # the position ids that `tables` are of ...
    cache: weakref.ref[Any] | None = None  # ... and the cache, which shall not live on for their sake
    tables: dict[int, Tables]  # by the group of the layers' shifts
    asking: Tables | None = None  # of the token whose query is wanted next
    query: Tensor | None = None


class Decoding:
    """The layers of a model after the prompt.

    Args:
        setup: what was applied to the prompt, on its model.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._step = _Step()

    def enter(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Before decoder layer `index`: what to call it with instead of `kwargs`.

        Written for the compiler to see through, as far as a cache of fixed size goes.

        Args:
            index: of the layer.
            hidden: `[B, new, D]` what enters it.
            kwargs: what the model would call it with; returned as they are unless its cache layer is pruned.
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
        """After the query projection of decoder layer `index`: keep the new token's query, if it is wanted."""
        if torch.compiler.is_dynamo_compiling() or self._step.asking is None:
            return
        self._step.query = self._setup.family.rotate(
            self._setup.family.decoder.layers[index], projected, *self._step.asking
        )
        self._step.asking = None

    def _shifted(self, shift: Shift, hidden: Tensor, position_ids: Tensor, cache: Any) -> Tables:
        """Rotary tables of moved positions, made once a step for all layers that move them alike."""
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
        """`[B, K]` bool: the prompt's slots that layer `index` attends to; None for all.

        Layer `first - 1` asks, and `first` and those behind it go by its answer; where a step brings several tokens
        they attend to everything.
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
