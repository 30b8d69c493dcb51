"""The untrained model as a LLaVA-Video."""

from adatp.evaluation.paper.standin import as_llava_video
from adatp.small.untrained import Untrained, load_untrained


def small_llava_video(
    *,
    layers: int = 16,
    image_size: int = 84,
    pool: str = "average",
    attention: str = "sdpa",
    seed: int = 2,
    add_time_instruction: bool = False,
) -> Untrained:
    """The weights and the tokenizer of `load_untrained`: at 84 pixels 6 x 6 patches, 3 rows of 4 tokens a frame."""
    onevision = load_untrained(seed=seed, layers=layers, image_size=image_size, attention=attention)
    return as_llava_video(onevision, pool=pool, attention=attention, add_time_instruction=add_time_instruction)
