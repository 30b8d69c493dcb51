"""FLOPs of what stands before the language model, counted as `adatp.flops` counts: no method prunes it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from adatp.models.siglip import LLAVA_TOWER


def tower_flops(frames: int, hidden_size: int) -> int:
    """FLOPs of the vision tower and the projector; a multiply-add counts as two.

    Args:
        frames: of the video. Each is encoded by itself and projected before it is pooled.
        hidden_size: of the language model.
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
