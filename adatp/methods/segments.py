"""Frames to segments (AdaTP, section 3.3)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def partition(features: Tensor, tau_s: float, videos: Sequence[int] = ()) -> Tensor:
    """The segment of every frame: adjacent frames share one iff their cosine similarity is at least `tau_s`.

    Args:
        features: `[n, D]` a feature per frame, any floating dtype: SigLIP's pooled output where there is an aligned
            one, else the mean of the frame's patch features. A NaN similarity starts a new segment.
        tau_s: threshold, see `AdaTP.tau_s`.
        videos: frames of each video, where the frames are of several: no segment holds frames of two.

    Returns:
        `[n]` int64, counted from 0.
    """
    features = features.double()
    square = features.square().sum(-1)
    # the root of a product, not the product of roots: so equal frames have a cosine of exactly 1
    norms = (square[:-1] * square[1:]).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    similar = (features[:-1] * features[1:]).sum(-1) / norms >= tau_s
    for first in list(accumulate(videos))[:-1]:
        similar[first - 1] = False
    return torch.nn.functional.pad((~similar).long().cumsum(0), (1, 0))


def frames_per_segment(segment_of_frame: Tensor) -> Tensor:
    """`[n]` int64 segment ids to `[n]` int64 frame counts; slots past the last segment hold 0."""
    return torch.zeros_like(segment_of_frame).scatter_add_(0, segment_of_frame, torch.ones_like(segment_of_frame))


def mean_per_segment(values: Tensor, segment_of_frame: Tensor) -> Tensor:
    """`[n]` float values per frame to their `[n]` means per segment; slots past the last segment hold 0."""
    slots = torch.arange(len(values), device=values.device)
    member = segment_of_frame[:, None] == slots  # [n, S]
    # a sum over frames, not a scatter: on a GPU that would add in an order of its own
    total = torch.where(member, values[:, None], 0).sum(0)
    return total / frames_per_segment(segment_of_frame).clamp(min=1)
