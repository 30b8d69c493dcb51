"""Features of frames that ride with a video's embeddings through vLLM's cache of encoder outputs.

Each frame has a float32 feature. Its bits are spread over the frame's tokens as more channels of their embeddings. So
whatever vLLM does with the embeddings (it keeps, drops, or recomputes them) it does with the features.
"""

import torch
from torch import Tensor


def pack(embeddings: Tensor, features: Tensor) -> Tensor:
    """Add features to a video's embeddings.

    Args:
        embeddings: `[n, c, D]`, the tokens of each frame.
        features: `[n, F]` float32.

    Returns:
        `[n, c, D + e]`.
    """
    tokens, channels = embeddings.shape[1], _channels(features.shape[1], embeddings)
    numbers = tokens * channels * embeddings.element_size() // features.element_size()
    padded = torch.nn.functional.pad(features, (0, numbers - features.shape[1]))
    return torch.cat((embeddings, padded.view(embeddings.dtype).view(-1, tokens, channels)), -1)


def unpack(channels: Tensor, width: int) -> Tensor:
    """Return the `[n, F]` float32 features from the added channels `[n, c, e]`.

    Args:
        channels: the added channels of a video's tokens.
        width: F.
    """
    return channels.flatten(1).contiguous().view(torch.float32)[:, :width]


def _channels(width: int, embeddings: Tensor) -> int:
    """Return e, so that a frame's tokens have room for `width` float32, and whole numbers of them."""
    tokens, size = embeddings.shape[1], embeddings.element_size()
    channels = -(-width * 4 // (tokens * size))
    return channels + (tokens * channels * size % 4 > 0)
