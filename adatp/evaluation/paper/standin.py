"""A narrow stand-in for a published model: same layers, frames and tokens, so the same schedule; random weights."""

import torch
from transformers import LlavaOnevisionConfig

from adatp.evaluation.paper.shapes import ModelShape
from adatp.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration, LlavaVideoProcessor
from adatp.small.assemble import CHAT_TEMPLATE
from adatp.small.untrained import Untrained, load_untrained

PATCHES = 27  # a side of a frame in SigLIP, before pooling


def load_standin(shape: ModelShape, attention: str = "sdpa") -> Untrained:
    """Load an untrained model with the layout of a published one, in fp32 on the CPU.

    Args:
        shape: the published model, whose number of layers and token grid the stand-in has.
        attention: Hugging Face's `attn_implementation`.
    """
    standin = load_untrained(layers=shape.layers, image_size=14 * PATCHES, attention=attention)
    return as_llava_video(standin, attention=attention) if shape.grid.newlines else standin


def llava_video_config(onevision: LlavaOnevisionConfig, pool: str) -> LlavaVideoConfig:
    """Convert a LLaVA-OneVision configuration to a LLaVA-Video one, with `pool` as its `spatial_pool_mode`."""
    names = ("vision_config", "text_config", "image_token_index", "video_token_index", "image_grid_pinpoints")
    return LlavaVideoConfig(**{name: getattr(onevision, name) for name in names}, spatial_pool_mode=pool)


def as_llava_video(
    onevision: Untrained, *, pool: str = "average", attention: str = "sdpa", add_time_instruction: bool = True
) -> Untrained:
    """Convert a LLaVA-OneVision to a LLaVA-Video with the same weights and tokenizer. Its rows end with newline tokens.

    Args:
        onevision: as `load_untrained` returns it.
        pool: `LlavaVideoConfig`'s `spatial_pool_mode`.
        attention: Hugging Face's `attn_implementation`.
        add_time_instruction: see `LlavaVideoProcessor`.
    """
    model, parts = onevision.model, onevision.processor
    config = llava_video_config(model.config, pool)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        video = LlavaVideoForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    video.load_state_dict(model.state_dict())
    video.generation_config = model.generation_config
    processor = LlavaVideoProcessor(
        parts.image_processor,
        parts.tokenizer,
        parts.video_processor,
        num_image_tokens=parts.num_image_tokens,
        vision_feature_select_strategy=parts.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
        spatial_pool_mode=pool,
        add_time_instruction=add_time_instruction,
    )
    return Untrained(video, processor, onevision.relevance)
