"""Per-segment top-k with one token per spatial position (AdaTP, section 3.3 and algorithm 1)."""

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve

FIXED = -1  # position of a token that is never dropped: text, special tokens, a trailing newline
PADDING = -2  # position of a slot that holds no token and is always dropped


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

    In every segment the `quota` highest scores are taken, ties to the earlier token, NaN after everything else. With
    `deduplicate`, of the taken tokens that share a spatial position within a segment only the best stays. A token is
    therefore kept iff it ranks below its segment's quota and is the best of its (segment, position) group.

    A segment is one stretch of tokens, or several in a row: at a first cut the host knows where every frame begins, and
    the device which segment it belongs to.

    Args:
        score: `[B, C]` float32, float16 or bfloat16: of the tokens `start` to `start + C`.
        position: `[B, L]` int64: the index within the frame, in `[0, positions)`, of a token that may be dropped;
            `FIXED` is always kept, `PADDING` and whatever else is out of range never.
        begin: `[B, R]` int64: the first token of every stretch, never falling. A stretch reaches to where the next one
            begins, the last one to L; it may be empty. What lies before the first one must not be prunable.
        quota: `[B, S]` int64, how many tokens each segment may keep; may be 0 or more than it has.
        positions: spatial positions in a frame.
        start: the first token with a score. What lies outside the scores must not be prunable.
        segment: `[B, R]` int64 in `[0, S)`, never falling: the segment of every stretch. None: each is one, R = S.
        deduplicate: whether algorithm 1 runs after the top-k.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        `[B, L]` bool, the tokens that stay, and `[B, S]` int64, how many prunable tokens of each segment do.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or no position at all.
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
    """`select` in PyTorch: two stable sorts give the rank within the segment, a segmented minimum deduplicates."""
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
    bucket = torch.where(prunable, home, segments)  # what is not prunable goes behind every segment
    by_segment = bucket.gather(1, by_score).argsort(dim=1, stable=True)
    order = by_score.gather(1, by_segment)  # tokens by (segment, rank)

    def count(of: Tensor) -> Tensor:
        """`[B, S + 1]`: the tokens of each bucket."""
        return torch.zeros(batch, segments + 1, dtype=torch.int64, device=score.device).scatter_add_(1, bucket, of)

    size = count(torch.ones_like(bucket))
    first = size.cumsum(1) - size  # where each segment begins in `order`
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
