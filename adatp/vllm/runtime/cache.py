"""The cache of pruned layers: blocks for the tokens that may enter them, not for the whole prompt.

vLLM gives each group of layers a block table of its own. A group of pruned layers has the spec and the manager of this
module. They are registered with vLLM when the module is imported, for which a process has only to receive a spec. The
manager asks for the prompts of the requests, which the scheduler of this package knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from adatp.layout import Videos
from adatp.methods.method import BetweenLayers


@dataclass(frozen=True, kw_only=True)
class PrunedSpec(AttentionSpec):
    """The cache of a group of pruned layers.

    Attributes:
        method: the method.
        layers: number of decoder layers, N.
        first: the first layer of the group. No later layer of the group sees more tokens.
    """

    method: BetweenLayers
    layers: int
    first: int

    @classmethod
    def like(cls, spec: FullAttentionSpec, method: BetweenLayers, layers: int, first: int) -> "PrunedSpec":
        """Return the spec of a group of pruned layers whose blocks are like those of `spec`."""
        shape = {
            name: getattr(spec, name)
            for name in ("block_size", "num_kv_heads", "head_size", "head_size_v", "dtype", "kv_quant_mode")
        }
        packing = {
            name: getattr(spec, name)
            for name in ("page_size_padded", "num_head_slots", "state_content_bytes", "block_stride_alignment")
        }
        return cls(**shape, **packing, method=method, layers=layers, first=first)

    @property
    def prefix_cacheable(self) -> bool:
        return False

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Return the bytes of the longest request, which may have no video."""
        blocks = -(-vllm_config.model_config.max_model_len // self.block_size)
        return int(blocks * self.page_size_bytes)

    def dropped(self, videos: Videos) -> int:
        """Return the number of visual tokens that certainly do not enter the layers of the group.

        A method's counts are an upper bound of what stays: deduplication can only drop more.
        """
        return videos.visual_tokens - self.method.counts(videos, self.layers)[self.first]


def no_videos(request_id: str) -> Videos | None:
    """Return None: without a scheduler that knows better, every request needs room for all of its tokens."""
    return None


class PrunedManager(FullAttentionManager):
    """Gives a request the blocks that its tokens in a group of pruned layers need.

    Attributes:
        videos_of: returns the videos of a request's prompt by the id of the request; None if it has none.
    """

    videos_of: Callable[[str], Videos | None] = staticmethod(no_videos)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dropped: dict[str, int] = {}  # by request: it is asked for in every step

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[Any],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Return the number of new blocks that a request of `num_tokens` tokens needs."""
        held = -(-self._held(request_id, num_tokens) // self.block_size)
        return int(max(held - len(self.req_to_blocks.get(request_id, ())), 0))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[Any]:
        """Give the request its new blocks, and return them."""
        held = self._held(request_id, num_tokens)
        new: list[Any] = super().allocate_new_blocks(request_id, held, num_tokens_main_model)
        return new

    def pop_blocks_for_free(self, request_id: str) -> list[Any]:
        """Return the blocks of a request that ends or is preempted, and forget it."""
        self._dropped.pop(request_id, None)
        blocks: list[Any] = super().pop_blocks_for_free(request_id)
        return blocks

    def _held(self, request_id: str, num_tokens: int) -> int:
        """Return how many of a request's tokens the group holds at most. A prompt is computed in one step."""
        if request_id not in self._dropped:
            videos = self.videos_of(request_id)
            self._dropped[request_id] = 0 if videos is None else self.kv_cache_spec.dropped(videos)
        return num_tokens - self._dropped[request_id]


KVCacheSpecRegistry.check_kv_cache_spec_registry({})  # vLLM registers its own specs only while there is none
KVCacheSpecRegistry.register(PrunedSpec, PrunedManager, uniform_type_base_spec=PrunedSpec)
