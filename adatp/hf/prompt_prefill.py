"""One prompt on its way through the decoder's layers, from what enters the first cut to the last."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from adatp.engine.cuts import Prefill, Tokens
from adatp.hf.side_stream import Beside
from adatp.models.family import Family
from adatp.tensors.masks import causal_mask


@dataclass
class PrunedPrompt:
    """Carries a prompt's tokens from layer to layer.

    Args:
        family: the model.
        prefill: the cuts.
        beside: where what the first cut reads was computed.

    Attributes:
        is_through: whether the layers behind the last cut have run already, all at once.
    """

    family: Family
    prefill: Prefill
    beside: Beside
    is_through: bool = False
    _tokens: Tokens | None = None
    _mask: Tensor | None = None
    _scorer: int | None = None  # the layer whose queries are wanted ...
    _query: Tensor | None = None  # ... what they are ...
    _tables: tuple[Tensor, Tensor] | None = None  # ... by which rotary tables ...
    _cache: Any = None  # ... and where its keys will be

    def enter(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Before decoder layer `index`: cut its input, and give it what belongs to the tokens that are left.

        Args:
            index: of a layer, from the first that scores a cut on, each once and in order.
            hidden: `[1, W, D]` what the layer before it has put out.
            kwargs: what the model would call the layer with.

        Returns:
            What to call it with instead.
        """
        method, cuts, cache = self.prefill.method, self.prefill.cuts, kwargs.get("past_key_values")
        if self._tokens is None:
            cos, sin = (table.to(hidden.device) for table in kwargs["position_embeddings"])
            self._tokens = self.prefill.tokens(hidden, cos, sin)
        else:
            self._tokens = self._tokens.follow(hidden)
        if index in cuts:
            self._tokens = self._cut(index, self._tokens)
        tokens = self._tokens
        if index >= min(cuts):
            kwargs = {
                **kwargs,
                "position_embeddings": (tokens.cos, tokens.sin),
                "position_ids": None,  # flash attention takes gaps in them for packed sequences
                "attention_mask": self._mask,
            }
        if index + 1 in cuts and not method.scores_itself:
            self._scorer = index
            # where the caller wants no cache, the layer leaves its keys in one of ours
            self._cache = cache if cache is not None else DynamicCache()
            kwargs = {**kwargs, "past_key_values": self._cache}
        return tokens.hidden, kwargs

    @torch.no_grad()
    def project(self, index: int, projected: Tensor) -> None:
        """After the query projection of decoder layer `index`: keep the text rows' queries, if it scores a cut.

        Args:
            index: of the layer.
            projected: `[1, W, H * d]` before the rotation.
        """
        if index != self._scorer:
            return
        assert self._tokens is not None
        tokens, layer = self._tokens, self.family.decoder.layers[index]
        rows = tokens.places.rows[0]
        if self._tables is None or self.prefill.method.renumbers:  # else the text keeps its positions
            self._tables = tokens.cos.index_select(1, rows), tokens.sin.index_select(1, rows)
        self._query = self.family.queries(layer, projected, rows, *self._tables)

    @torch.no_grad()
    def ask(self, index: int, project: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]) -> None:
        """Before decoder layer `index` runs without calling `project`: the same, of what enters the layer.

        Args:
            index: of the layer.
            project: makes queries of what enters it, some of its rows and the rotary tables.
        """
        if index != self._scorer:
            return
        assert self._tokens is not None
        tokens = self._tokens
        self._query = project(tokens.hidden, tokens.places.rows[0], (tokens.cos, tokens.sin))

    def _cut(self, index: int, tokens: Tokens) -> Tokens:
        scorer = index if self.prefill.method.scores_itself else index - 1
        layer = self.family.decoder.layers[scorer]
        query, key = self._ask(layer, tokens) if scorer == index else self._asked(scorer)
        device = tokens.hidden.device
        if self.prefill.plan is None:
            self.beside.join(*self.prefill.awaited)
        cut = self.prefill.cut(index, tokens, query.to(device), key.to(device), self.family.scale(layer))
        self._mask = causal_mask(cut.hidden, self.family.decoder.config._attn_implementation)
        return cut

    @torch.no_grad()
    def _ask(self, layer: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Queries of the rows that score, and keys, of a layer that has not run yet."""
        return self.family.project(layer, tokens.hidden, tokens.places.rows[0], tokens.cos, tokens.sin)

    def _asked(self, scorer: int) -> tuple[Tensor, Tensor]:
        """The same of one that has."""
        if self._query is None:
            raise RuntimeError(
                f"the query projection of decoder layer {scorer} did not run as a module, so the layer cannot score: "
                "was it replaced after apply()? Call remove(), change the model, and apply() again"
            )
        query, self._query = self._query, None
        return query, self._cache.layers[scorer].keys
