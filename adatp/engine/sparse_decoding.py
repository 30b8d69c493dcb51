"""Decoding that attends to only a share of the visual tokens in the cache, as in DyCoke."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from adatp.engine.scoring import Scoring
from adatp_kernels.select import FIXED, select

STEADY = 0.9  # from this cosine between the attention of two steps on, the authors attend to all tokens


class SparseVisual:
    """The visual tokens that the deeper layers attend to; the scoring layer chooses them in every decode step.

    This is the state of one batch. It is stored in the cache of the scoring layer, and reordered with it.

    Args:
        visual: `[B, K]` bool: the prompt's cache slots that may be left out.
        quota: `[B]` int64: how many of these slots are attended to.

    Attributes:
        attended: `[B, K]` bool: the prompt's slots to attend to in this step; None for all.
    """

    def __init__(self, visual: Tensor, quota: Tensor) -> None:
        self.attended: Tensor | None = None
        self._visual = visual
        self._quota = quota
        self._last: Tensor | None = None  # `[B, K]` attention of the previous step

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
            query: `[B, H, 1, d]` query of the new token.
            key: `[B, G, K', d]` keys of all tokens in the cache, including the new one.
            kept: `[B, K]` bool, False in left padding; None if no sample is padded.
            scale: factor of the attention logits.
            scoring: how scores are computed, and the implementation of the operations.
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
        """Keep the samples at `[B']` indices, in that order."""
        indices = indices.to(self._visual.device)
        self._visual, self._quota = self._visual[indices], self._quota[indices]
        self._last, self.attended = (
            None if tensor is None else tensor[indices] for tensor in (self._last, self.attended)
        )
