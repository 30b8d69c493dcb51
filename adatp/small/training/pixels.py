"""Frames as the small model's processor would make them, many at once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def to_pixels(frames: NDArray[np.uint8]) -> Tensor:
    """Convert `[n, 64, 64, 3]` uint8 to `[n, 3, 64, 64]` float32, normalised; frames of that size need no resizing."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - mean) / std
