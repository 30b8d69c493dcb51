"""The small model's shape: SigLIP of four layers, LLaVA-OneVision on its first three, Qwen2 of sixteen."""

from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from adatp.processor import TorchOnlyProcessor, VideoProcessor
from adatp.world.clips import SIDE

WIDTH = 128
PATCH = 8  # pixels; 8 x 8 patches a frame, pooled to 4 x 4 tokens
TOWER_LAYERS = 3  # of SigLIP's four: LLaVA ships the tower without the last one
DECODER_LAYERS = 16  # the paper's schedule cuts before layers 2 to N - 12 = 4
TEXT_LENGTH = 32  # tokens that the text tower reads


def make_siglip(vocabulary: int) -> Any:
    """A `SiglipModel` with random weights."""
    common = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    vision = SiglipVisionConfig(**common, num_hidden_layers=TOWER_LAYERS + 1, image_size=SIDE, patch_size=PATCH)
    text = SiglipTextConfig(
        **common,
        num_hidden_layers=2,
        vocab_size=vocabulary,
        max_position_embeddings=TEXT_LENGTH,
        projection_size=WIDTH,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def make_model(siglip: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A `LlavaOnevisionForConditionalGeneration` with the SigLIP's first layers as its tower, the rest random."""
    vision = siglip.config.vision_config.to_dict()
    tower = SiglipVisionConfig(**{**vision, "num_hidden_layers": TOWER_LAYERS, "vision_use_head": False})
    decoder = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # Qwen2's
        initializer_range=WIDTH**-0.5,  # so narrow a model learns slowly from the usual 0.02
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(siglip.vision_model.state_dict(), strict=False)
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """The processor of the small model."""
    size = {"height": SIDE, "width": SIDE}
    return TorchOnlyProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]]
        ),
        tokenizer=tokenizer,
        video_processor=VideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
