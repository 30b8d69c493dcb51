"""The prefill of one prompt: its way through the decoder's layers and cuts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from adatp.engine.cuts import Cuts
from adatp.engine.tokens import Tokens
from adatp.hf.setup import Setup
from adatp.hf.side_stream import SideStream
from adatp.tensors.masks import causal_mask

Tables = tuple[Tensor, ...]  # rotary, cos and sin


class PendingScore:
    """The layer that scores the next cut. It gets its queries while it runs; then the cut takes them.

    Args:
        layer: index of the layer.
        cache: the cache that the layer stores its keys in.
    """

    def __init__(self, layer: int, cache: Any) -> None:
        self.layer = layer
        self.query: Tensor | None = None
        self._cache = cache

    def take(self) -> tuple[Tensor, Tensor]:
        """Return `[1, H, T, d]` queries and `[1, G, W, d]` keys.

        Raises:
            RuntimeError: the queries are missing.
        """
        if self.query is None:
            raise RuntimeError(
                f"the query projection of decoder layer {self.layer} did not run as a module, so the layer cannot "
                "score: was it replaced after apply()? Call remove(), change the model, and apply() again"
            )
        return self.query, self._cache.layers[self.layer].keys


class PromptPrefill:
    """The prefill of one prompt, which makes its cuts between the layers.

    Args:
        setup: the method on its model.
        cuts: the cuts of the prompt; at least one.
        side: the stream that computes the tensors that the first cut reads.

    Attributes:
        cuts: the argument.
        is_through: whether the layers after the last cut have already run, as one graph.
    """

    def __init__(self, setup: Setup, cuts: Cuts, side: SideStream) -> None:
        self.cuts = cuts
        self.is_through = False
        self._setup = setup
        self._side = side
        self._tokens: Tokens | None = None  # until the first layer is entered
        self._mask: Tensor | None = None
        self._pending: PendingScore | None = None
        self._tables: Tables | None = None  # rotary tables of the text rows, while these keep their positions

    def enter(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Make the cut before decoder layer `index`, if there is one, and prepare the arguments of the layer.

        Args:
            index: index of the layer. It is called for every layer from the first that scores a cut on, in order.
            hidden: `[1, W, D]` output of the layer before it.
            kwargs: the arguments from the model.

        Returns:
            The hidden states and the arguments to call the layer with instead.
        """
        cuts = self.cuts
        tokens = self._follow(hidden, kwargs)
        if index in cuts.ratios:
            tokens = self._cut(index, tokens)
        self._tokens = tokens
        if index >= min(cuts.ratios):
            kwargs = {
                **kwargs,
                "position_embeddings": tokens.tables,
                "position_ids": None,  # flash attention takes gaps in them for packed sequences
                "attention_mask": self._mask,
            }
        if index + 1 in cuts.ratios and not cuts.method.scores_itself:
            # if the caller wants no cache, the layer stores its keys in a temporary one
            cache = DynamicCache() if kwargs.get("past_key_values") is None else kwargs["past_key_values"]
            self._pending = PendingScore(index, cache)
            kwargs = {**kwargs, "past_key_values": cache}
        return tokens.hidden, kwargs

    @torch.no_grad()
    def project(self, index: int, projected: Tensor) -> None:
        """Store the text rows' queries from the query projection of layer `index`, if the layer scores a cut.

        Args:
            index: index of the layer.
            projected: `[1, W, H * d]` output of the query projection, before the rotation.
        """
        if not self._scores(index):
            return
        assert self._pending is not None
        assert self._tokens is not None
        tokens, family = self._tokens, self._setup.family
        rows = tokens.places.rows[0]
        if self._tables is None or self.cuts.renumbers:
            cos, sin = tokens.tables
            self._tables = cos.index_select(1, rows), sin.index_select(1, rows)
        self._pending.query = family.queries(family.decoder.layers[index], projected, *self._tables, rows=rows)

    @torch.no_grad()
    def ask(self, index: int, project: Callable[[Tensor, Tensor, Tables], Tensor]) -> None:
        """Compute and store the queries of layer `index`, if it scores a cut; for layers that run compiled.

        Args:
            index: index of the layer.
            project: computes queries from the layer's input, some of its rows and the rotary tables.
        """
        if not self._scores(index):
            return
        assert self._pending is not None
        assert self._tokens is not None
        tokens = self._tokens
        self._pending.query = project(tokens.hidden, tokens.places.rows[0], tokens.tables)

    def _scores(self, index: int) -> bool:
        return self._pending is not None and self._pending.layer == index

    def _follow(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tokens:
        """Return the tokens with the output of the layer before as their hidden states."""
        if self._tokens is not None:
            return self._tokens.follow(hidden)
        cos, sin = (table.to(hidden.device) for table in kwargs["position_embeddings"])
        return self.cuts.tokens(hidden, cos, sin)

    def _cut(self, index: int, tokens: Tokens) -> Tokens:
        setup = self._setup
        scorer = index if self.cuts.method.scores_itself else index - 1
        layer = setup.family.decoder.layers[scorer]
        query, key = self._project_unrun(layer, tokens) if scorer == index else self._taken()
        device = tokens.hidden.device
        if self.cuts.plan is None:
            self._side.join(*self.cuts.awaited)
        cut = self.cuts.cut(index, tokens, query.to(device), key.to(device), setup.family.scale(layer))
        self._mask = causal_mask(cut.hidden, setup.attention)
        return cut

    @torch.no_grad()
    def _project_unrun(self, layer: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Compute queries of the rows that score, and keys, of a layer that has not run yet."""
        return self._setup.family.project(layer, tokens.hidden, tokens.places.rows[0], *tokens.tables)

    def _taken(self) -> tuple[Tensor, Tensor]:
        """Return queries and keys of the layer that has run."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.take()
