"""Qwen3-VL inside vLLM, pruned."""

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from adatp.vllm.runtime.models.checked_prompts import CheckedPrompts
from adatp.vllm.runtime.models.qwen import QwenVideos


class Processor(CheckedPrompts, Qwen3VLMultiModalProcessor):
    """vLLM's processor, which refuses prompts that cannot be pruned."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class AdaTPQwen3VLForConditionalGeneration(QwenVideos, Qwen3VLForConditionalGeneration):
    """The model: the decoder adds features of the tower to the visual tokens after its first layers (deepstack)."""

    @property
    def encoded_width(self) -> int:
        return int(self.visual_dim + self.multiscale_dim)

    def added_features(self, tokens: int) -> list[Tensor]:
        """Return the features of the tower for each token of the step, 0 for text; see `PrunedModel`."""
        added = self._get_deepstack_input_embeds(tokens)
        return [] if added is None else [added[f"deepstack_input_embeds_{i}"] for i in range(self.deepstack_num_level)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder for a step, and forget what was added in it; see vLLM."""
        output = super().forward(*args, **kwargs)
        self._clear_deepstack_input_embeds(getattr(self, "deepstack_input_embeds_num_tokens", 0))
        return output
