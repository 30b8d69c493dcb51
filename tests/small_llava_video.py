"""The built-in model as a LLaVA-Video."""

from adatp.builtin import CHAT_TEMPLATE, Builtin, load_builtin
from adatp.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration, LlavaVideoProcessor


def small_llava_video(
    *,
    layers: int = 16,
    image_size: int = 84,
    pool: str = "average",
    attention: str = "sdpa",
    seed: int = 2,
    add_time_instruction: bool = False,
) -> Builtin:
    """The weights and the tokenizer of `load_builtin`: at 84 pixels 6 x 6 patches, 3 rows of 4 tokens a frame."""
    onevision = load_builtin(seed=seed, layers=layers, image_size=image_size, attention=attention)
    source = onevision.model.config
    names = ("vision_config", "text_config", "image_token_index", "video_token_index", "image_grid_pinpoints")
    config = LlavaVideoConfig(**{name: getattr(source, name) for name in names}, spatial_pool_mode=pool)
    model = LlavaVideoForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(onevision.model.state_dict())
    model.generation_config = onevision.model.generation_config
    parts = onevision.processor
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
    return Builtin(model, processor, onevision.relevance)
