"""Samples of different lengths as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def stack_left(parts: Sequence[Tensor], width: int | None = None, *, square: bool = False) -> Tensor:
    """Stack tensors `[1, ..., W_b, D]`, one per sample, to one `[B, ..., W, D]`, padded on the left with zeros.

    Args:
        parts: one tensor per sample.
        width: W; None for the longest W_b. A single sample of that width is returned as it is, not copied.
        square: whether the tensors are `[1, ..., W_b, W_b]`, to be stacked to `[B, ..., W, W]`.
    """
    width = max(part.shape[-2] for part in parts) if width is None else width
    if len(parts) == 1 and parts[0].shape[-2] == width:
        return parts[0]
    missing = [width - part.shape[-2] for part in parts]
    return torch.cat([pad(part, (m if square else 0, 0, m, 0)) for part, m in zip(parts, missing, strict=True)])
