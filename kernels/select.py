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
    start: int = 0,
    begin: Tensor | None = None,
    deduplicate: bool = True,
    impl: Impl = "auto",
) -> Tensor:
    """Which tokens stay.

    In every segment the `quota` highest scores are taken, ties to the earlier token, NaN after everything else. With
    `deduplicate`, of the taken tokens that share a spatial position within a segment only the best stays. A token is
    therefore kept iff it ranks below its segment's quota and is the best of its (segment, position) group.

    Args:
        score: `[B, C]` float32, float16 or bfloat16: of the tokens `start` to `start + C`.
        segment: `[B, L]` int64 in `[0, S)`, or `FIXED` (always kept), or `PADDING` (never kept). Segments stand in
            order: along the tokens their ids never fall; `FIXED` and `PADDING` may be anywhere among them.
        position: `[B, L]` int64 in `[0, positions)`, the index within the frame; read where `segment >= 0`.
        quota: `[B, S]` int64, how many tokens each segment may keep; may be 0 or more than it has.
        positions: spatial positions in a frame.
        start: the first token with a score. What lies outside the scores must not be prunable.
        begin: `[B, S]` int64 for a caller that knows it: the tokens of segment s lie from `begin[s]` up to
            `begin[s + 1]`. None has it found here (`segment_begins`).
        deduplicate: whether algorithm 1 runs after the top-k.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        `[B, L]` bool.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or no position at all.
    """
    _check(score, segment, position, quota, positions, start, begin)
    if resolve(impl, segment.device) == "triton":
        from adatp_kernels.select_triton import select_triton

        begin = segment_begins(segment, quota.shape[1]) if begin is None else begin
        keep: Tensor = select_triton(score, segment, position, quota, begin, start, positions, deduplicate)
        return keep
    return select_reference(score, segment, position, quota, positions=positions, start=start, deduplicate=deduplicate)


def segment_begins(segment: Tensor, segments: int) -> Tensor:
    """`[B, S]` int64: the first token whose segment is s or a later one; L where there is none.

    Args:
        segment: `[B, L]` int64 as `select` takes it, in order.
        segments: S.
    """
    if segment.shape[1] == 0:
        return torch.zeros(segment.shape[0], segments, dtype=torch.int64, device=segment.device)
    so_far = segment.cummax(1).values
    wanted = torch.arange(segments, device=segment.device).repeat(segment.shape[0], 1)
    return torch.searchsorted(so_far, wanted)


def select_reference(
    score: Tensor,
    segment: Tensor,
    position: Tensor,
    quota: Tensor,
    *,
    positions: int,
    start: int = 0,
    deduplicate: bool = True,
) -> Tensor:
    """`select` in PyTorch: two stable sorts give the rank within the segment, a segmented minimum deduplicates."""
    keep = segment == FIXED
    stop = start + score.shape[1]
    segment, position = segment[:, start:stop], position[:, start:stop]
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
    first = size.cumsum(1) - size  # where each segment begins in `order`
    place = torch.arange(length, device=score.device).expand(batch, length)
    rank = torch.empty_like(bucket).scatter_(1, order, place) - first.gather(1, bucket)

    taken = rank < quota.gather(1, home)
    if deduplicate:
        group = home * positions + torch.where(prunable, position, 0)
        best = torch.full((batch, segments * positions), length, dtype=torch.int64, device=score.device)
        best.scatter_reduce_(1, group, torch.where(prunable, rank, length), "amin")
        taken &= rank == best.gather(1, group)
    keep[:, start:stop] |= taken & prunable
    return keep


def _check(
    score: Tensor,
    segment: Tensor,
    position: Tensor,
    quota: Tensor,
    positions: int,
    start: int,
    begin: Tensor | None,
) -> None:
    if segment.ndim != 2 or position.shape != segment.shape:
        raise ValueError(
            f"segment and position must be [B, L] alike, got {tuple(segment.shape)} and {tuple(position.shape)}"
        )
    batch, length = segment.shape
    if score.ndim != 2 or score.shape[0] != batch:
        raise ValueError(f"score must be [B, C] with B = {batch}, got {tuple(score.shape)}")
    if score.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"score must be float32, float16 or bfloat16, got {score.dtype}")
    if not 0 <= start <= length - score.shape[1]:
        raise ValueError(f"start must leave the {score.shape[1]} scores within the {length} tokens, got {start}")
    if quota.ndim != 2 or quota.shape[0] != batch or quota.shape[1] < 1:
        raise ValueError(f"quota must be [B, S] with B = {batch} and S >= 1, got {tuple(quota.shape)}")
    if begin is not None and begin.shape != quota.shape:
        raise ValueError(f"begin must be [B, S] = {tuple(quota.shape)}, got {tuple(begin.shape)}")
    if positions < 1:
        raise ValueError(f"positions must be at least 1, got {positions}")
