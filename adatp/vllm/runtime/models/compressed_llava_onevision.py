"""LLaVA-OneVision inside vLLM, with fewer tokens of each video before the decoder.

How many tokens stay of a video is known from its frames. So the prompt has as many placeholders, and the rest is vLLM
as it is: its cache, its scheduler and its attention know nothing of the others.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from adatp.engine.scoring import Scoring
from adatp.engine.tower import saliency_and_keys
from adatp.methods.method import BeforeDecoder, Video
from adatp.models.llava_onevision import LlavaOnevision
from adatp.vllm.arguments import NAME
from adatp.vllm.runtime.layers import asking
from adatp.vllm.runtime.models.llava_onevision import AdaTPLlavaOnevisionForConditionalGeneration
from adatp.vllm.runtime.ranks import average_over_ranks
from adatp.vllm.runtime.reports import Reports
from adatp.vllm.runtime.requirements import check
from adatp.vllm.settings import Settings

# Frames that the tower sees at a time, and frames of the longest video that vLLM measures its memory with. vLLM limits
# the tokens that a step encodes, but few tokens may be many frames.
FRAMES = 16


class CompressedProcessingInfo(LlavaOnevisionProcessingInfo):
    """What vLLM knows of prompts: a video is the tokens that stay of it, and one newline token."""

    @cached_property
    def method(self) -> BeforeDecoder:
        """The method of the server."""
        method = Settings.of(getattr(self.get_hf_config(), NAME)).method
        assert isinstance(method, BeforeDecoder)
        return method

    @property
    def model_id(self) -> str:
        """What vLLM's caches of videos tell models apart by; some are shared by several servers."""
        return f"{super().model_id} {self.method}"

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        """Return the number of a video's placeholders."""
        family = LlavaOnevision.of_config(self.get_hf_config())
        return self.method.count(num_frames, family.grid) + family.trailing_tokens

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Return the number of frames of the longest video that vLLM measures its memory with."""
        # vLLM adds frames until they fill the prompt, which a small share of them may never do
        videos, size = max(mm_counts.get("video", 0), 1), self.get_image_size_with_most_features()
        sizes = {"image_width": size.width, "image_height": size.height}
        fitting = (
            frames
            for frames in range(1, FRAMES + 1)
            if videos * self.get_num_video_tokens(**sizes, num_frames=frames) <= seq_len
        )
        return max(fitting, default=1)


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionMultiModalProcessor, info=CompressedProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class AdaTPCompressedLlavaOnevisionForConditionalGeneration(LlavaOnevisionForConditionalGeneration):
    """The model: its method prunes each video before the decoder."""

    hf_to_vllm_mapper = AdaTPLlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        method = Settings.read(vllm_config).method
        assert isinstance(method, BeforeDecoder)
        self._method = method
        self._grid = LlavaOnevision.of_config(self.config).grid
        self._scoring = Scoring(average=average_over_ranks())
        self._reports = Reports(method.name, is_first=get_tensor_model_parallel_rank() == 0)
        self._cache = vllm_config.cache_config

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        """Encode videos, each `[n, 3, side, side]`, to `[W + 1, D]`: the tokens that stay, and a newline."""
        encoded = []
        for pixels in inputs["pixel_values_videos"]:
            parts = [self._encode(part) for part in pixels.split(FRAMES)]
            tokens, *attention = (torch.cat(own) for own in zip(*parts, strict=True))
            _, kept = self._method.compress(Video(tokens, self._grid, *attention))
            encoded.append(torch.cat((kept, self.image_newline[None])))
            if self._cache.num_gpu_blocks is not None:  # until then vLLM measures its memory, with videos of its own
                self._reports.add_video(len(pixels), len(pixels) * self._grid.tokens, len(kept))
        return encoded

    def _encode(self, pixels: Tensor) -> list[Tensor]:
        """Encode frames to their `[n, c, D]` tokens, and their saliency and keys if the method wants them."""
        attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
        with asking(attention.attn) as asked:
            tokens = self._video_pixels_to_features(self.vision_tower, pixels)
        if not self._method.wants_tower:
            return [tokens]
        query, key = (part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in asked)
        return [tokens, *saliency_and_keys(query, key, self.apply_pooling, self._scoring)]
