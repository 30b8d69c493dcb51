"""LLaVA-OneVision inside vLLM, pruned."""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from adatp.vllm.runtime.models.checked_prompts import CheckedPrompts
from adatp.vllm.runtime.models.pruned import PrunedModel


class Processor(CheckedPrompts, LlavaOnevisionMultiModalProcessor):
    """vLLM's processor of LLaVA-OneVision, which refuses prompts that cannot be pruned."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class AdaTPLlavaOnevisionForConditionalGeneration(PrunedModel, LlavaOnevisionForConditionalGeneration):
    """The model: a video is its frames' tokens and one newline token."""

    # transformers from version 5 on saves the vision tower without `vision_model` in its names
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={
            f"vision_tower.{part}.": f"vision_tower.vision_model.{part}."
            for part in ("embeddings", "encoder", "post_layernorm")
        }
    )

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        """Encode videos, each `[n, 3, side, side]`, to `[n * c + 1, D]`, with the features that ride along."""
        videos = list(inputs["pixel_values_videos"])
        states = self.vision_tower(
            torch.cat(videos), feature_select_strategy=self.config.vision_feature_select_strategy
        )
        frames = self.with_frames(self.apply_pooling(self.multi_modal_projector(states)), states)
        return [self.whole_video(own.flatten(0, 1)) for own in frames.split([len(video) for video in videos])]

    def whole_video(self, tokens: Tensor) -> Tensor:
        """Return a video `[n * c + 1, D]` of its frames' tokens `[n * c, D]`, which may have more channels."""
        newline = torch.zeros_like(tokens[:1])
        newline[:, : len(self.image_newline)] = self.image_newline
        return torch.cat((tokens, newline))
