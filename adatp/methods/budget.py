"""How many tokens each segment may keep (AdaTP, eq. 4 and 5).

Quotas are computed where the segments are, on the device, so that the first cut waits for no host.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adatp.tensors.transfer import send


def round_half_up(value: Tensor) -> Tensor:
    """The nearest integer, halves upwards, as float64."""
    return (value + 0.5).floor()


def quotas(
    ratios: Sequence[float],
    frames: Tensor,
    significant: Tensor,
    tokens_per_frame: int,
    *,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The tokens every segment may keep at every cut.

    Significant segments get the ratio r1 of equation 4, the others r2 of equation 5; without significant segments all
    get r. A cut's quotas are rounded by largest remainder (ties to the earlier segment), so that they add up to its
    rounded total.

    Args:
        ratios: K retention ratios r, one a cut.
        frames: `[S]` int64 frames per segment; 0 for a slot without one.
        significant: `[S]` bool.
        tokens_per_frame: c.
        alpha: boost of the ratio of significant segments.
        gamma: cap on the share of the budget that they take.

    Returns:
        `[K, S]` int64.
    """
    size = frames.double()
    significant = significant & (frames > 0)
    n = size.sum()
    chosen = (size * significant).sum()
    rest = n - chosen
    # chosen = 0 leaves boost unused, rest = 0 leaves others unused; both divisions are kept finite
    boost = (n / chosen.clamp(min=1) * gamma).clamp(max=alpha)
    others = ((n - boost * chosen) / rest.clamp(min=1)).clamp(min=0)
    total = torch.where((chosen > 0) & (rest == 0), boost * n, n)  # exact where the sum of the shares would carry noise
    share = torch.where(significant, boost, torch.where(chosen > 0, others, torch.ones_like(n)))  # [S]
    ratio = send(torch.tensor(ratios, dtype=torch.float64), frames.device)[:, None]  # [K, 1]
    exact = share * size * tokens_per_frame * ratio
    return _largest_remainder(exact, total * tokens_per_frame * ratio)


def _largest_remainder(exact: Tensor, total: Tensor) -> Tensor:
    """`[K, S]` float64 and their `[K, 1]` sums to int64 that add up to the rounded sums."""
    whole = exact.floor()
    missing = round_half_up(total) - whole.sum(-1, keepdim=True)
    remainder = exact - whole
    rank = remainder.neg().argsort(dim=-1, stable=True).argsort(dim=-1)
    return (whole + (rank < missing)).long()
