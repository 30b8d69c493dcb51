"""A processor for the small models of the newer families, where torchvision, which the real ones need, is not there."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_prompts import Video, make_tokenizer, user_turn, write
from transformers import BatchFeature

SIDE = 32  # pixels of a resized frame: 8 x 8 patches of 4 x 4
PLACE = "@VIDEO@"
_PADS = "<|image_pad|>", "<|video_pad|>"


class StubProcessor:
    """What the package asks of a processor. It takes one video, all of its frames, and resizes them to one size.

    Attributes:
        calls: the keywords of every call.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tokenizer = make_tokenizer(kind)
        self.calls: list[dict[str, Any]] = []
        self.video_processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        internvl = kind.startswith("internvl")
        self.image_token, self.video_token = ("<IMG_CONTEXT>", "<video>") if internvl else _PADS

    def apply_chat_template(self, conversation, add_generation_prompt):
        (turn,) = conversation
        parts = [PLACE if part["type"] == "video" else part["text"] for part in turn["content"]]
        return "".join(user_turn(*parts))

    def __call__(self, text, videos, **kwargs):
        self.calls.append(kwargs)
        (frames,) = videos
        small = np.stack([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE))) for frame in frames])
        pixels = torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1  # [n, 3, 32, 32]
        if self.kind.startswith("internvl"):
            video, given = Video(len(pixels)), {"pixel_values": pixels}
        else:
            video, given = self._patches(pixels)
        told = self.tokenizer(text.replace(PLACE, write(self.kind, video)), return_tensors="pt")
        inputs = {name: told[name] for name in ("input_ids", "attention_mask")}
        if "video_grid_thw" in given:
            pad = self.tokenizer.convert_tokens_to_ids("<|video_pad|>")
            inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == pad).long()
        return BatchFeature({**inputs, **given})

    def _patches(self, pixels):
        """Flatten frames as Qwen's video processors do: two to a patch, the last twice if need be."""
        if len(pixels) % 2:
            pixels = torch.cat([pixels, pixels[-1:]])
        t = len(pixels) // 2
        blocks = pixels.view(t, 2, 3, 4, 2, 4, 4, 2, 4).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        given = {"pixel_values_videos": blocks.reshape(t * 64, -1), "video_grid_thw": torch.tensor([[t, 8, 8]])}
        if self.kind == "qwen2_5_vl":
            given["second_per_grid_ts"] = torch.tensor([1.0])
        return Video(t), given

    def decode(self, ids, skip_special_tokens=False):
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
