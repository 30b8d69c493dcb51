"""Tensor parallelism, as Hugging Face does it: every rank has some of each layer's heads."""

from collections.abc import Callable
from typing import Any

import torch.distributed
from torch import Tensor


def average_over_ranks(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What makes a rank's mean over its own heads the mean over all, the same bits on every rank.

    Ranks that selected by their own heads would keep different tokens and no longer hold parts of one model.

    Args:
        model: loaded with `tp_plan`, or not.

    Returns:
        A function of a contiguous tensor that all ranks of the group must call together; None for a model in one part.
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
