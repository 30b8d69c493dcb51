"""Per-segment top-k with one token per spatial position (AdaTP, section 3.3 and algorithm 1)."""

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve

FIXED = -1  # position of a token that is never dropped: text, a special token, a trailing newline
PADDING = -2  # position of a slot without a token, which is always dropped


def select(
    score: Tensor,
    position: Tensor,
    begin: Tensor,
    quota: Tensor,
    *,
    positions: int,
    start: int = 0,
    segment: Tensor | None = None,
    deduplicate: bool = True,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Choose which tokens stay, and count them by segment.

    Each segment takes its `quota` tokens with the highest scores. Of equal scores, the earlier token comes first; NaN
    comes last. With `deduplicate`, if several taken tokens of a segment share a spatial position, only the best stays.
    So a token is kept iff its rank (from 0) is below its segment's quota and it is the best of its (segment, position)
    group.

    A segment is one stretch of tokens, or several neighbouring ones. At a first cut, each frame is a stretch: the host
    knows where the frames begin, and the device knows their segments.

    Args:
        score: `[B, C]` float32, float16 or bfloat16, scores of the tokens `[start, start + C)`.
        position: `[B, L]` int64. A token that may be dropped has its index within the frame, in `[0, positions)`. A
            token with `FIXED` is always kept; one with `PADDING` or any other value is never kept.
        begin: `[B, R]` int64, the first token of every stretch, in ascending order. A stretch ends where the next one
            begins, and the last one ends at L. It may be empty. Tokens before the first stretch must not be prunable.
        quota: `[B, S]` int64, the largest number of tokens that each segment may keep; may be 0, or more than it has.
        positions: number of spatial positions in a frame.
        start: the first token with a score. Tokens without a score must not be prunable.
        segment: `[B, R]` int64 in `[0, S)`, the segment of every stretch, in ascending order. None if each stretch is a
            segment (R = S).
        deduplicate: whether algorithm 1 runs after the top-k.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        `[B, L]` bool, the tokens that stay, and `[B, S]` int64, the number of prunable tokens that stay, by segment.

    Raises:
        ValueError: the shapes or dtypes do not fit together, or `positions` is below 1.
    """
    _check(score, position, begin, quota, positions, start, segment)
    if resolve(impl, position.device) == "triton":
        from adatp_kernels.select_triton import select_triton

        selected: tuple[Tensor, Tensor] = select_triton(
            score, position, begin, quota, segment, start, positions, deduplicate
        )
        return selected
    return select_reference(
        score, position, begin, quota, positions=positions, start=start, segment=segment, deduplicate=deduplicate
    )


def select_reference(
    score: Tensor,
    position: Tensor,
    begin: Tensor,
    quota: Tensor,
    *,
    positions: int,
    start: int = 0,
    segment: Tensor | None = None,
    deduplicate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run `select` in PyTorch: two stable sorts give the rank within the segment, a segmented minimum deduplicates."""
    batch, length = score.shape
    segments = quota.shape[1]
    keep = position == FIXED
    position = position[:, start : start + length]
    prunable = (position >= 0) & (position < positions)

    place = torch.arange(length, device=score.device).expand(batch, length)
    stretch = torch.searchsorted(begin.contiguous(), place + start, right=True).sub(1).clamp(min=0)
    home = stretch if segment is None else segment.gather(1, stretch)

    # ascending order of -score puts NaN last; stable, so ties go to the earlier token
    by_score = score.neg().argsort(dim=1, stable=True)
    bucket = torch.where(prunable, home, segments)  # tokens that are not prunable go after all segments
    by_segment = bucket.gather(1, by_score).argsort(dim=1, stable=True)
    order = by_score.gather(1, by_segment)  # tokens by (segment, rank)

    def count(of: Tensor) -> Tensor:
        """Add up `of` by bucket, `[B, S + 1]`."""
        return torch.zeros(batch, segments + 1, dtype=torch.int64, device=score.device).scatter_add_(1, bucket, of)

    size = count(torch.ones_like(bucket))
    first = size.cumsum(1) - size  # the first index of each segment in `order`
    rank = torch.empty_like(bucket).scatter_(1, order, place) - first.gather(1, bucket)

    taken = prunable & (rank < quota.gather(1, home))
    if deduplicate:
        group = home * positions + torch.where(prunable, position, 0)
        best = torch.full((batch, segments * positions), length, dtype=torch.int64, device=score.device)
        best.scatter_reduce_(1, group, torch.where(prunable, rank, length), "amin")
        taken &= rank == best.gather(1, group)
    keep[:, start : start + length] |= taken
    return keep, count(taken.long())[:, :segments].contiguous()


def _check(
    score: Tensor, position: Tensor, begin: Tensor, quota: Tensor, positions: int, start: int, segment: Tensor | None
) -> None:
    if position.ndim != 2:
        raise ValueError(f"position must be [B, L], got {tuple(position.shape)}")
    batch, length = position.shape
    if score.ndim != 2 or score.shape[0] != batch:
        raise ValueError(f"score must be [B, C] with B = {batch}, got {tuple(score.shape)}")
    if score.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"score must be float32, float16 or bfloat16, got {score.dtype}")
    if not 0 <= start <= length - score.shape[1]:
        raise ValueError(f"start must leave the {score.shape[1]} scores within the {length} tokens, got {start}")
    if quota.ndim != 2 or quota.shape[0] != batch or quota.shape[1] < 1:
        raise ValueError(f"quota must be [B, S] with B = {batch} and S >= 1, got {tuple(quota.shape)}")
    if segment is None and begin.shape != quota.shape:
        raise ValueError(f"begin must be [B, S] = {tuple(quota.shape)} without segment, got {tuple(begin.shape)}")
    if begin.ndim != 2 or begin.shape[0] != batch or begin.shape[1] < 1:
        raise ValueError(f"begin must be [B, R] with B = {batch} and R >= 1, got {tuple(begin.shape)}")
    if segment is not None and segment.shape != begin.shape:
        raise ValueError(f"segment must be [B, R] = {tuple(begin.shape)}, got {tuple(segment.shape)}")
    if positions < 1:
        raise ValueError(f"positions must be at least 1, got {positions}")
