"""The small model's shape: SigLIP of four layers, LLaVA-OneVision on its first three, Qwen2 of sixteen."""

from typing import Any

from transformers import (
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from adatp.models.processor import TorchOnlyProcessor
from adatp.small.assemble import onevision_config, onevision_processor, take_tower
from adatp.world.clips import SIDE

WIDTH = 128
PATCH = 8  # pixels
TOKENS = (SIDE // PATCH // 2) ** 2  # a frame's: 8 x 8 patches pooled to 4 x 4
TOWER_LAYERS = 3  # of SigLIP's four: LLaVA ships the tower without the last one
DECODER_LAYERS = 16  # the paper's schedule cuts before layers 2 to N - 12 = 4
TEXT_LENGTH = 32  # tokens that the text tower reads


def make_siglip(vocabulary: int) -> Any:
    """Make a `SiglipModel` with random weights."""
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
    """Make a `LlavaOnevisionForConditionalGeneration` with the SigLIP's first layers as its tower, the rest random."""
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
    config = onevision_config(siglip.config.vision_config, TOWER_LAYERS, decoder, tokenizer)
    model = LlavaOnevisionForConditionalGeneration(config)
    take_tower(model, siglip)
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast) -> TorchOnlyProcessor:
    """Make the processor of the small model."""
    return onevision_processor(SIDE, PATCH, tokenizer)
