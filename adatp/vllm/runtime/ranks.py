"""Tensor parallelism: the heads of attention are split over ranks."""

from collections.abc import Callable

from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce


def average_over_ranks() -> Callable[[Tensor], Tensor] | None:
    """Return the function that turns the mean over a rank's heads into the mean over all heads; None for one rank."""
    ranks = get_tensor_model_parallel_world_size()
    return None if ranks == 1 else lambda values: tensor_model_parallel_all_reduce(values.contiguous()) / ranks
