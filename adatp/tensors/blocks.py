"""What acts on each token alone, a block of tokens at a time: what it makes in between is never there for all."""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

TOKENS = 4096  # of a block at most: enough to fill a GPU


def in_blocks(
    function: Callable[[Tensor], Tensor], tensor: Tensor, dim: int, tokens: int = 1, most: int | None = None
) -> Tensor:
    """`function(tensor)`, where it acts on every entry along `dim` alone, in blocks of nearly the same size.

    Args:
        function: returns as many entries along `dim` as it is given.
        tensor: of any shape.
        dim: along which it is split.
        tokens: that an entry along `dim` holds.
        most: tokens of a block at most; None for `TOKENS`.
    """
    count = ceil(tensor.shape[dim] / max(1, (most or TOKENS) // tokens))
    if count <= 1:
        return function(tensor)
    return torch.cat([function(block) for block in tensor.tensor_split(count, dim)], dim)
