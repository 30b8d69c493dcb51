"""Qwen2.5-VL inside vLLM, pruned."""

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from adatp.vllm.runtime.models.checked_prompts import CheckedPrompts
from adatp.vllm.runtime.models.qwen import QwenVideos


class Processor(CheckedPrompts, Qwen2_5_VLMultiModalProcessor):
    """vLLM's processor, which refuses prompts that cannot be pruned."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class AdaTPQwen25VLForConditionalGeneration(QwenVideos, Qwen2_5_VLForConditionalGeneration):
    """The model: a video is the tokens of its temporal patches."""
