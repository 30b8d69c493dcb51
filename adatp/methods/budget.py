"""Quotas: the number of tokens that each segment may keep (AdaTP, eq. 4 and 5).

Quotas are computed on the device, where the segments are, so that the first cut does not wait for the host.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adatp.tensors.transfer import send


def round_half_up(value: Tensor) -> Tensor:
    """Round to the nearest integer, halves upwards, as float64."""
    return (value + 0.5).floor()


def quotas(
    ratios: Sequence[float],
    sizes: Tensor,
    significant: Tensor,
    unit: int,
    *,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Compute the number of tokens that every segment may keep at every cut.

    Significant segments get the ratio r1 of equation 4, the others r2 of equation 5. Without significant segments all
    get r. The quotas of a cut are rounded by largest remainder (ties to the earlier segment), so their sum is the
    rounded total of the cut.

    Args:
        ratios: K retention ratios r, one per cut.
        sizes: `[S]` int64 size of each segment, in units of `unit` tokens; 0 for an empty slot.
        significant: `[S]` bool.
        unit: number of tokens; if all frames have c tokens, a unit is a frame, and it is c.
        alpha: boost of the ratio of significant segments.
        gamma: largest share of the budget that significant segments take.

    Returns:
        `[K, S]` int64.
    """
    size = sizes.double()
    significant = significant & (sizes > 0)
    n = size.sum()
    chosen = (size * significant).sum()
    rest = n - chosen
    # boost is not used if chosen = 0, others is not used if rest = 0; the clamps keep both divisions finite
    boost = (n / chosen.clamp(min=1) * gamma).clamp(max=alpha)
    others = ((n - boost * chosen) / rest.clamp(min=1)).clamp(min=0)
    total = torch.where((chosen > 0) & (rest == 0), boost * n, n)  # exact; a sum of the shares would have errors
    share = torch.where(significant, boost, torch.where(chosen > 0, others, torch.ones_like(n)))  # [S]
    ratio = send(torch.tensor(ratios, dtype=torch.float64), sizes.device)[:, None]  # [K, 1]
    exact = share * size * unit * ratio
    return _largest_remainder(exact, total * unit * ratio)


def _largest_remainder(exact: Tensor, total: Tensor) -> Tensor:
    """Round `[K, S]` float64 to int64 whose sums are the rounded `[K, 1]` `total`."""
    whole = exact.floor()
    missing = round_half_up(total) - whole.sum(-1, keepdim=True)
    remainder = exact - whole
    rank = remainder.neg().argsort(dim=-1, stable=True).argsort(dim=-1)
    return (whole + (rank < missing)).long()
