"""Frames to segments (AdaTP, section 3.3)."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def partition(features: Tensor, tau_s: float) -> Tensor:
    """The segment of every frame: adjacent frames share one iff their cosine similarity is at least `tau_s`.

    Args:
        features: `[B, n, D]` a feature per frame, any floating dtype. A NaN similarity starts a new segment.
        tau_s: threshold, see `AdaTPConfig.tau_s`.

    Returns:
        `[B, n]` int64, counted from 0 in every sample.
    """
    features = features.float()
    similar = cosine_similarity(features[:, :-1], features[:, 1:], dim=-1) >= tau_s
    return torch.nn.functional.pad((~similar).long().cumsum(1), (1, 0))


def frames_per_segment(segment_of_frame: Tensor) -> Tensor:
    """`[B, n]` int64 segment ids to `[B, n]` int64 frame counts; slots past the last segment hold 0."""
    return torch.zeros_like(segment_of_frame).scatter_add_(1, segment_of_frame, torch.ones_like(segment_of_frame))


def mean_per_segment(values: Tensor, segment_of_frame: Tensor) -> Tensor:
    """`[B, n]` float values per frame to their `[B, n]` means per segment; slots past the last segment hold 0."""
    total = torch.zeros_like(values).scatter_add_(1, segment_of_frame, values)
    return total / frames_per_segment(segment_of_frame).clamp(min=1)
