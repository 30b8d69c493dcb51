"""LLaVA-OneVision's processor for machines without torchvision, which Hugging Face's video processor needs."""

from typing import Any

from transformers import AutoProcessor, AutoTokenizer, LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from adatp.errors import InputError
from adatp.models.video_input import check_videos
from adatp.models.video_processor import VideoProcessor


class TorchOnlyProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor with this package's `VideoProcessor`."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accept any of Hugging Face's video processors and this package's; check other arguments as Hugging Face does.

        Raises:
            InputError: the video processor is of another class.
        """
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if argument is not None and not isinstance(argument, BaseVideoProcessor):
            raise InputError(f"video_processor must be a VideoProcessor, got a {type(argument).__name__}")
        return VideoProcessor

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        """Check the videos, then do what Hugging Face's processor does before it counts them."""
        videos = videos if videos is None else check_videos(videos)
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

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
    return (
        LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint, **kwargs),
        AutoTokenizer.from_pretrained(checkpoint, **kwargs),
        VideoProcessor.from_pretrained(checkpoint, **kwargs),
    )
