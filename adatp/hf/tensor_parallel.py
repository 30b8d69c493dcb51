"""Tensor parallelism in Hugging Face's way: every rank has some of each layer's heads."""

from collections.abc import Callable
from typing import Any

import torch.distributed
from torch import Tensor


def average_over_ranks(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Make the function that turns the mean over a rank's heads into the mean over all heads.

    All ranks get the same bits. If each rank selected tokens by its own heads, the ranks would keep different tokens,
    and their parts would no longer fit together.

    Args:
        model: a model, loaded with or without `tp_plan`.

    Returns:
        A function of a contiguous tensor, which all ranks of the group must call together; None without tensor
        parallelism.
    """
    ranks = getattr(model, "_tp_size", None) or 1
    if ranks == 1:
        return None
    mesh = model._device_mesh
    group = (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()

    def average(values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values, group=group)
        return values / ranks

    return average
