"""LLaVA-Video inside vLLM, pruned. vLLM has no such model: it is its LLaVA-OneVision with other pooling and prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor
from transformers.video_utils import VideoMetadata
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs

from adatp.errors import InputError
from adatp.models.llava_video import LlavaVideo, LlavaVideoConfig, LlavaVideoProcessor, Pooling, time_instruction
from adatp.vllm.runtime.models.checked_prompts import CheckedPrompts
from adatp.vllm.runtime.models.llava_onevision import AdaTPLlavaOnevisionForConditionalGeneration

_HINT = (
    "pass the video as (frames, {'fps': ..., 'frames_indices': [...], 'total_num_frames': ...}), or start vLLM with "
    """--mm-processor-kwargs '{"add_time_instruction": false}'"""
)
_METADATA = {field.name for field in fields(VideoMetadata)}


class _Info(LlavaOnevisionProcessingInfo):
    """Sizes of videos, and the parts of the checkpoint."""

    def get_hf_config(self) -> LlavaVideoConfig:
        config: LlavaVideoConfig = self.ctx.get_hf_config(LlavaVideoConfig)
        return config

    def get_hf_processor(self, **kwargs: object) -> LlavaVideoProcessor:
        processor: LlavaVideoProcessor = self.ctx.get_hf_processor(LlavaVideoProcessor, **kwargs)
        return processor

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        return num_frames * LlavaVideo.of_config(self.get_hf_config()).grid.tokens


class _DummyInputs(LlavaOnevisionDummyInputsBuilder):
    """What vLLM measures its memory with."""

    def _get_dummy_videos(self, **kwargs: Any) -> list[Any]:
        videos = super()._get_dummy_videos(**kwargs)
        return [(v, {"fps": 1, "frames_indices": range(len(v)), "total_num_frames": len(v)}) for v in videos]


class _Processor(CheckedPrompts, LlavaOnevisionMultiModalProcessor):
    """Makes the inputs of the model. The times of a video's frames are text of the prompt, as they are on transformers.

    They are written before vLLM writes the placeholders, so that vLLM's cache of processed videos does not hold them:
    the same frames may have other times.
    """

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> Any:
        """Process a prompt; see vLLM."""
        videos = inputs.mm_data_items.get("video")
        if videos and self.info.get_hf_processor(**inputs.hf_processor_mm_kwargs).add_time_instruction:
            metadata = [_metadata(given) for given in videos.metadata]
            told = (time_instruction(videos.get_num_frames(i), own, _HINT) for i, own in enumerate(metadata))
            video = self.info.get_hf_config().video_token_id
            inputs = replace(inputs, prompt=_with_text(self.info.get_tokenizer(), inputs.prompt, video, told))
        return super().apply(inputs, *args, **kwargs)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, {**hf_kwargs, "add_time_instruction": False})
        for i, pixels in enumerate(processed.get("pixel_values_videos", ())):
            if len(pixels) != (given := mm_items["video"].get_num_frames(i)):
                raise InputError(
                    f"do_sample_frames is true: the processor takes {len(pixels)} of the {given} frames of a video, "
                    "whose times are then not known. Set it to false in --mm-processor-kwargs, and let vLLM sample: "
                    '--media-io-kwargs \'{"video": {"num_frames": 32}}\''
                )
        return processed


def _metadata(given: Any) -> VideoMetadata:
    """Return what vLLM or a client tells about a video; nothing is required yet."""
    told = given if isinstance(given, Mapping) else {}
    return VideoMetadata(**{"total_num_frames": None, **{name: told[name] for name in told if name in _METADATA}})


def _with_text(tokenizer: Any, prompt: list[int], video: int, texts: Iterator[str]) -> list[int]:
    """Write a text after each video of a prompt, and encode it with the text that follows, as processors do.

    Args:
        tokenizer: the tokenizer.
        prompt: the ids of the prompt, with one placeholder a video.
        video: the placeholder.
        texts: the texts.
    """
    special = set(tokenizer.get_added_vocab().values())
    written: list[int] = []
    rest = prompt
    while video in rest:
        begin = rest.index(video) + 1
        stop = next((i for i in range(begin, len(rest)) if rest[i] in special), len(rest))
        follows = tokenizer.decode(rest[begin:stop], clean_up_tokenization_spaces=False)
        text = next(texts, "") + follows
        written += [*rest[:begin], *tokenizer.encode(text, add_special_tokens=False)]
        rest = rest[stop:]
    return written + rest


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=_DummyInputs)
class AdaTPLlavaVideoForConditionalGeneration(Pooling, AdaTPLlavaOnevisionForConditionalGeneration):
    """The model: a video is its frames' tokens, with a newline token at the end of every row."""

    config: LlavaVideoConfig

    def whole_video(self, tokens: Tensor) -> Tensor:
        return tokens
