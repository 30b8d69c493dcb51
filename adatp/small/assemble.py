"""Common parts of the small LLaVA-OneVision models that this package makes, for any size."""

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from adatp.models.processor import TorchOnlyProcessor
from adatp.models.video_processor import VideoProcessor

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")  # three of Qwen2, two of LLaVA


def byte_level(model: Any) -> Tokenizer:
    """Make a byte-level tokenizer around a BPE model, like that of Qwen2."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fast_tokenizer(tokenizer: Tokenizer, padding_side: str, **settings: Any) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for Hugging Face and add the special tokens, which must be in its vocabulary."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
        **settings,
    )


def onevision_config(
    vision: SiglipVisionConfig, tower_layers: int, decoder: Any, tokenizer: PreTrainedTokenizerFast
) -> LlavaOnevisionConfig:
    """Make the configuration of the whole model.

    Args:
        vision: configuration of the SigLIP's vision model.
        tower_layers: number of its layers in the vision tower. LLaVA leaves out the last layer and the head.
        decoder: configuration of the language model.
        tokenizer: tokenizer whose `<image>` and `<video>` stand for visual tokens.
    """
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            **{**vision.to_dict(), "num_hidden_layers": tower_layers, "vision_use_head": False}
        ),
        text_config=decoder,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_pinpoints(vision.image_size),
    )


def take_tower(model: Any, siglip: Any) -> None:
    """Copy the SigLIP's weights to the model's vision tower, so that the relevance can continue from the tower."""
    model.model.vision_tower.load_state_dict(siglip.vision_model.state_dict(), strict=False)


def onevision_processor(side: int, patch: int, tokenizer: PreTrainedTokenizerFast) -> TorchOnlyProcessor:
    """Make the processor of a model.

    Args:
        side: side of a frame, in pixels.
        patch: side of a patch, in pixels.
        tokenizer: tokenizer of the prompts.
    """
    size = {"height": side, "width": side}
    return TorchOnlyProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=_pinpoints(side)),
        tokenizer=tokenizer,
        video_processor=VideoProcessor(size=size),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def _pinpoints(side: int) -> list[list[int]]:
    """Return the sizes that an image may be cut into."""
    return [[side, side], [side, 2 * side]]
