"""Scores of visual tokens, by the chosen implementation, averaged over all ranks."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score


@dataclass(frozen=True)
class Scoring:
    """How scores are computed.

    Attributes:
        impl: implementation of the three operations score, select and compact.
        average: averages a tensor, such as `[B, C]` scores, over ranks, if the heads are split over ranks (tensor
            parallelism). A rank gives the mean over its own heads and gets the mean over all heads. None without
            tensor parallelism.
    """

    impl: Impl = "auto"
    average: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        rows: Tensor,
        columns: tuple[int, int],
        *,
        scale: float,
        first_key: Tensor | None = None,
    ) -> Tensor:
        """Score the columns, `[B, C]` float32; see `adatp_kernels.score.score`."""
        scores = score(query, key, rows, columns, scale=scale, first_key=first_key, impl=self.impl)
        return scores if self.average is None else self.average(scores)
