"""Processors for machines without torchvision, which Hugging Face's video processors need."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from adatp.errors import InputError


class VideoProcessor(BaseVideoProcessor):
    """LLaVA-OneVision's video processor in torch: resize (bicubic, antialiased), rescale, normalise.

    Args:
        size: `{"height": H, "width": W}` of a frame, in pixels.
        image_mean, image_std: mean and standard deviation per channel, for values in [0, 1].
    """

    size: dict[str, int] = {"height": 384, "width": 384}  # noqa: RUF012  as in Hugging Face's classes
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD

    def preprocess(self, videos: Any, **_: Any) -> BatchFeature:
        """Convert videos to `pixel_values_videos`, `[V, n, 3, H, W]` float32.

        Args:
            videos: one video or a list of videos, each `[n, H, W, 3]` uint8 (array or tensor), all with the same n.

        Raises:
            InputError: a video has another shape or dtype, or the videos have different lengths.
        """
        videos = list(videos) if isinstance(videos, list | tuple) or getattr(videos, "ndim", 0) == 5 else [videos]
        pixels = [self._one(torch.as_tensor(np.asarray(video))) for video in videos]
        if len({len(p) for p in pixels}) > 1:
            raise InputError(f"all videos of a batch must have the same length, got {[len(p) for p in pixels]} frames")
        return BatchFeature({"pixel_values_videos": torch.stack(pixels)})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in a form that Hugging Face's own video processor of this model can read."""
        return {**super().to_dict(), "video_processor_type": "LlavaOnevisionVideoProcessor"}

    def _one(self, video: Tensor) -> Tensor:
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8:
            raise InputError(f"a video must be [n, H, W, 3] uint8, got {tuple(video.shape)} {video.dtype}")
        size = (self.size["height"], self.size["width"])
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        frames = []
        for frame in video:  # one by one: full-size frames in fp32 are large
            pixels = frame.permute(2, 0, 1)[None].float()
            resized = interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]
            frames.append((resized.round().clamp(0, 255) / 255 - mean) / std)
        return torch.stack(frames)


class TorchOnlyProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor with the `VideoProcessor` of this module."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accept the `VideoProcessor` of this module; check other arguments as Hugging Face does."""
        if argument_name == "video_processor":
            return VideoProcessor
        return super().check_argument_for_proper_class(argument_name, argument)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in a form that Hugging Face's own processor can read."""
        return {**super().to_dict(), "processor_class": "LlavaOnevisionProcessor"}


def load_processor(checkpoint: str) -> Any:
    """Load the processor of a LLaVA-OneVision checkpoint, by name or path, with or without torchvision."""
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(checkpoint)
    image_processor, tokenizer, video_processor = load_parts(checkpoint)
    settings, _ = LlavaOnevisionProcessor.get_processor_dict(checkpoint)
    names = ("num_image_tokens", "vision_feature_select_strategy", "image_token", "video_token", "vision_aspect_ratio")
    return TorchOnlyProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
        **{name: settings[name] for name in names if name in settings},
    )


def load_parts(checkpoint: Any, **kwargs: Any) -> tuple[Any, Any, VideoProcessor]:
    """Load image processor, tokenizer and video processor of a checkpoint without torchvision; each gets `kwargs`."""
    video, _ = VideoProcessor.get_video_processor_dict(checkpoint, **kwargs)
    return (
        LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint, **kwargs),
        AutoTokenizer.from_pretrained(checkpoint, **kwargs),
        VideoProcessor(**{name: video[name] for name in ("size", "image_mean", "image_std")}),
    )
