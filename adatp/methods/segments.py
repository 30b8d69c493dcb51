"""Segments of frames (AdaTP, section 3.3)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def adjacent_cosines(features: Tensor) -> Tensor:
    """Compute `[n - 1]` float64, the cosine similarity of every frame and the next one.

    Args:
        features: `[n, D]` one feature per frame, any floating dtype.
    """
    features = features.double()
    square = features.square().sum(-1)
    # the root of a product, not the product of roots: then equal frames have a cosine of exactly 1
    norms = (square[:-1] * square[1:]).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return (features[:-1] * features[1:]).sum(-1) / norms


def partition(features: Tensor, tau_s: float, videos: Sequence[int] = ()) -> Tensor:
    """Group frames into segments: adjacent frames share one iff their cosine similarity is at least `tau_s`.

    Args:
        features: `[n, D]` one feature per frame, any floating dtype: SigLIP's pooled output if there is an aligned
            SigLIP, else the mean of the frame's patch features. A NaN similarity starts a new segment.
        tau_s: threshold, see `AdaTP.tau_s`.
        videos: number of frames of each video, if there are several: no segment holds frames of two videos.

    Returns:
        `[n]` int64 segment of every frame, counted from 0.
    """
    similar = adjacent_cosines(features) >= tau_s
    for first in list(accumulate(videos))[:-1]:
        similar[first - 1] = False
    return torch.nn.functional.pad((~similar).long().cumsum(0), (1, 0))


def total_per_segment(values: Tensor, segment_of_frame: Tensor) -> Tensor:
    """Add up `[n]` int64 values of frames to `[n]` int64 totals of segments, 0 after the last segment."""
    return torch.zeros_like(segment_of_frame).scatter_add_(0, segment_of_frame, values)


def mean_per_segment(values: Tensor, segment_of_frame: Tensor) -> Tensor:
    """Average `[n]` float values of frames to `[n]` means of segments; slots after the last segment hold 0."""
    slots = torch.arange(len(values), device=values.device)
    member = segment_of_frame[:, None] == slots  # [n, S]
    # a sum, not a scatter: on a GPU a scatter adds in no fixed order
    total = torch.where(member, values[:, None], 0).sum(0)
    frames = total_per_segment(torch.ones_like(segment_of_frame), segment_of_frame)
    return total / frames.clamp(min=1)
