"""Sizes of the SigLIP whose vision tower is part of the published LLaVA checkpoints."""

from typing import Any

NAME = "google/siglip-so400m-patch14-384"
# sizes of both towers, vision and text
WIDTHS = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
LAYERS = 27
LLAVA_LAYERS = LAYERS - 1  # layers of LLaVA's vision tower: its authors drop the last layer and the head
SIDE, PATCH = 384, 14  # pixels
# `SiglipVisionConfig` of the whole vision tower, and of LLaVA's
VISION: dict[str, Any] = {**WIDTHS, "num_hidden_layers": LAYERS, "image_size": SIDE, "patch_size": PATCH}
LLAVA_TOWER = {**VISION, "num_hidden_layers": LLAVA_LAYERS, "vision_use_head": False}
