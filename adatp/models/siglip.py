"""The SigLIP whose vision tower the published LLaVA checkpoints have."""

from typing import Any

NAME = "google/siglip-so400m-patch14-384"
# of each of its two towers, vision and text
WIDTHS = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
LAYERS = 27
LLAVA_LAYERS = LAYERS - 1  # of the vision tower that LLaVA ships: its authors drop the last layer, and the head
SIDE, PATCH = 384, 14  # pixels
# the `SiglipVisionConfig` of the whole tower, and of LLaVA's
VISION: dict[str, Any] = {**WIDTHS, "num_hidden_layers": LAYERS, "image_size": SIDE, "patch_size": PATCH}
LLAVA_TOWER = {**VISION, "num_hidden_layers": LLAVA_LAYERS, "vision_use_head": False}
