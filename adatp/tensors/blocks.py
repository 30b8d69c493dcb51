"""Run a function on a block of tokens at a time, so that its intermediate tensors are never there for all tokens."""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

TOKENS = 4096  # most tokens in a block: enough to fill a GPU


def in_blocks(
    function: Callable[[Tensor], Tensor], tensor: Tensor, dim: int, tokens: int = 1, most: int | None = None
) -> Tensor:
    """Compute `function(tensor)` in blocks of nearly the same size along `dim`.

    Args:
        function: acts on every entry along `dim` independently, and returns as many entries as it is given.
        tensor: a tensor of any shape.
        dim: the dimension that is split.
        tokens: number of tokens in an entry along `dim`.
        most: most tokens in a block; None for `TOKENS`.
    """
    count = ceil(tensor.shape[dim] / max(1, (most or TOKENS) // tokens))
    if count <= 1:
        return function(tensor)
    return torch.cat([function(block) for block in tensor.tensor_split(count, dim)], dim)
