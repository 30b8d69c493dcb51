"""FLOPs of the vision tower and the projector, which no method prunes. They are counted as in `adatp.flops`."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from adatp.models.siglip import LLAVA_TOWER


def tower_flops(frames: int, hidden_size: int) -> int:
    """Count the FLOPs of the vision tower and the projector; a multiply-add counts as two.

    Args:
        frames: number of frames. Each is encoded on its own and projected before pooling.
        hidden_size: hidden size of the language model.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig, SiglipVisionModel
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**LLAVA_TOWER),
        text_config=Qwen2Config(hidden_size=hidden_size),
    )
    with torch.device("meta"):
        # eager: plain matrix products, which the counter sees
        tower = SiglipVisionModel._from_config(config.vision_config, attn_implementation="eager")
        projector = LlavaOnevisionMultiModalProjector(config)
        side = config.vision_config.image_size
        frame = torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        projector(tower(frame).last_hidden_state)
    return int(counter.get_total_flops()) * frames
