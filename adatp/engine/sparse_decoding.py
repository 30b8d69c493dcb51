"""Decoding that attends to a share of the visual tokens in the cache, as DyCoke does."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from adatp.engine.scoring import Scoring
from adatp_kernels.select import FIXED, select

STEADY = 0.9  # cosine of two steps' attention from which the authors choose nothing


class SparseVisual:
    """Which visual tokens the deeper layers attend to, chosen anew at every step by the layer that scores.

    The state of a batch; it lives in the cache of the scoring layer and follows it.

    Args:
        visual: `[B, K]` bool: the prompt's slots of the cache that may be left out.
        quota: `[B]` int64: how many of them are attended to.

    Attributes:
        attended: `[B, K]` bool: the slots of the prompt to attend to in this step; None for all.
    """

    def __init__(self, visual: Tensor, quota: Tensor) -> None:
        self.attended: Tensor | None = None
        self._visual = visual
        self._quota = quota
        self._last: Tensor | None = None  # `[B, K]` attention of the step before

    def choose(
        self,
        query: Tensor,
        key: Tensor,
        kept: Tensor | None,
        *,
        scale: float,
        scoring: Scoring,
    ) -> None:
        """Set `attended` for a step of one token.

        Args:
            query: `[B, H, 1, d]` of the new token.
            key: `[B, G, K', d]` of all in the cache, the new token included.
            kept: `[B, K]` bool, False in left padding; None where no sample is padded.
            scale: of the attention.
            scoring: how scores are computed, and by which implementation the operations run.
        """
        batch, slots = self._visual.shape
        rows = torch.full((batch, 1), key.shape[2] - 1, device=key.device)
        first_key = None if kept is None else (~kept).sum(1)
        attention = scoring(query, key, rows, (0, slots), scale=scale, first_key=first_key)
        attention = attention.masked_fill(~self._visual, 0.0)
        best, _ = select(
            attention,
            torch.where(self._visual, 0, FIXED),
            torch.zeros(batch, 1, dtype=torch.int64, device=key.device),
            self._quota[:, None],
            positions=1,
            deduplicate=False,
            impl=scoring.impl,
        )
        if self._last is not None:
            steady = cosine_similarity(attention, self._last, dim=1) >= STEADY
            best |= steady[:, None]
        self._last, self.attended = attention, best

    def reorder(self, indices: Tensor) -> None:
        """Take the samples at `[B']` indices."""
        indices = indices.to(self._visual.device)
        self._visual, self._quota = self._visual[indices], self._quota[indices]
        self._last, self.attended = (
            None if tensor is None else tensor[indices] for tensor in (self._last, self.attended)
        )
