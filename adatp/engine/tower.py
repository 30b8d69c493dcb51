"""What methods before the decoder read from the attention of a vision tower."""

from collections.abc import Callable

import torch
from torch import Tensor

from adatp.engine.scoring import Scoring


def saliency_and_keys(
    query: Tensor, key: Tensor, pool: Callable[[Tensor], Tensor], scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Compute the saliency and the keys of patches; see `adatp.methods.method.Video`.

    Args:
        query, key: `[n, heads, patches, d]` queries and keys of the last layer that the tower runs.
        pool: pools `[n, patches, D]` values as the features are pooled, to `[n, P, D]`.
        scoring: how the attention is computed, and averaged over ranks if the tower's heads are split over them.

    Returns:
        `[n, P]` and `[n, P, d]`, both float32.
    """
    patches = key.shape[2]
    rows = torch.full((len(key), patches), patches - 1, device=key.device)  # every patch sees all of them
    received = scoring(query, key, rows, (0, patches), scale=key.shape[-1] ** -0.5)
    keys = key.mean(1, dtype=torch.float32)
    if scoring.average is not None:
        keys = scoring.average(keys)
    return pool(received[..., None])[..., 0], pool(keys)
