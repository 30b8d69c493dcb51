"""Per-segment top-k with one token per spatial position (AdaTP, section 3.3 and algorithm 1)."""

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve

FIXED = -1  # segment id of a token that is never dropped: text, special tokens, a trailing newline
PADDING = -2  # segment id of a slot that holds no token and is always dropped


def select(
    score: Tensor,
    segment: Tensor,
    position: Tensor,
    quota: Tensor,
    *,
    positions: int,
    deduplicate: bool = True,
    impl: Impl = "auto",
) -> Tensor:
    """Which tokens stay.

    In every segment the `quota` highest scores are taken, ties to the earlier token, NaN after everything else. With
    `deduplicate`, of the taken tokens that share a spatial position within a segment only the best stays. A token is
    therefore kept iff it ranks below its segment's quota and is the best of its (segment, position) group.

    Args:
        score: `[B, L]` float.
        segment: `[B, L]` int64 in `[0, S)`, or `FIXED` (always kept), or `PADDING` (never kept). In any order.
        position: `[B, L]` int64 in `[0, positions)`, the index within the frame; read where `segment >= 0`.
        quota: `[B, S]` int64, how many tokens each segment may keep; may be 0 or more than it has.
        positions: spatial positions in a frame.
        deduplicate: whether algorithm 1 runs after the top-k.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        `[B, L]` bool.

    Raises:
        ValueError: shapes that do not fit together, or no position at all.
    """
    if not score.shape == segment.shape == position.shape or score.ndim != 2:
        raise ValueError(
            "score, segment and position must be [B, L] alike, got "
            f"{tuple(score.shape)}, {tuple(segment.shape)} and {tuple(position.shape)}"
        )
    if quota.ndim != 2 or quota.shape[0] != score.shape[0] or quota.shape[1] < 1:
        raise ValueError(f"quota must be [B, S] with B = {score.shape[0]} and S >= 1, got {tuple(quota.shape)}")
    if positions < 1:
        raise ValueError(f"positions must be at least 1, got {positions}")
    resolve(impl)
    return select_reference(score, segment, position, quota, positions=positions, deduplicate=deduplicate)


def select_reference(
    score: Tensor, segment: Tensor, position: Tensor, quota: Tensor, *, positions: int, deduplicate: bool
) -> Tensor:
    """`select` in PyTorch: two stable sorts give the rank within the segment, a segmented minimum deduplicates."""
    batch, length = score.shape
    segments = quota.shape[1]
    prunable = segment >= 0
    home = segment.clamp(min=0)

    # ascending order of -score puts NaN last; stable, so ties go to the earlier token
    by_score = score.neg().argsort(dim=1, stable=True)
    bucket = torch.where(prunable, home, segments)  # what is not prunable goes behind every segment
    by_segment = bucket.gather(1, by_score).argsort(dim=1, stable=True)
    order = by_score.gather(1, by_segment)  # tokens by (segment, rank)

    size = torch.zeros(batch, segments + 1, dtype=torch.int64, device=score.device)
    size.scatter_add_(1, bucket, torch.ones_like(bucket))
    begin = size.cumsum(1) - size  # where each segment begins in `order`
    place = torch.arange(length, device=score.device).expand(batch, length)
    rank = torch.empty_like(bucket).scatter_(1, order, place) - begin.gather(1, bucket)

    keep = rank < quota.gather(1, home)
    if deduplicate:
        group = home * positions + torch.where(prunable, position, 0)
        best = torch.full((batch, segments * positions), length, dtype=torch.int64, device=score.device)
        best.scatter_reduce_(1, group, torch.where(prunable, rank, length), "amin")
        keep &= rank == best.gather(1, group)
    return torch.where(prunable, keep, segment == FIXED)
