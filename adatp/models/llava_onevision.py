"""LLaVA-OneVision: SigLIP, a projector, 2 x 2 pooling of each frame's features, Qwen2.

A video is `frames * side * side` pooled tokens in raster order and one trailing newline token, which is not prunable.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from adatp.models.family import Family
from adatp.prefill import PromptLayout
from adatp_kernels.select import FIXED, PADDING


class LlavaOnevision(Family):
    model_type = "llava_onevision"

    def __init__(self, model: Any) -> None:
        if not isinstance(model, LlavaOnevisionForConditionalGeneration):
            raise TypeError(
                f"model must be the LlavaOnevisionForConditionalGeneration itself, got a {type(model).__name__}; "
                "unwrap it first"
            )
        decoder = model.config.text_config.model_type
        if decoder != "qwen2":
            raise TypeError(f"model must have a Qwen2 decoder, whose queries are known here; got {decoder!r}")
        self.config = model.config
        self.body = model.model
        self.decoder = model.model.language_model
        self.tower = [model.model.vision_tower, model.model.multi_modal_projector]
        vision = self.config.vision_config
        self.tokens_per_frame = math.ceil(vision.image_size // vision.patch_size / 2) ** 2

    @property
    def siglip(self) -> str | None:
        return "google/siglip-so400m-patch14-384" if self.tower_width == 1152 else None

    @property
    def tower_layers(self) -> int:
        layer = self._feature_layer
        return layer if layer >= 0 else self.config.vision_config.num_hidden_layers + 1 + layer

    @property
    def tower_width(self) -> int:
        return int(self.config.vision_config.hidden_size)

    @property
    def _feature_layer(self) -> int:
        """Index into the tower's hidden states, the first of which is the embedding."""
        layer = self.config.vision_feature_layer
        return int(layer if isinstance(layer, int) else layer[-1])

    def has_video(self, input_ids: Tensor) -> bool:
        return bool((input_ids == self.config.video_token_id).any())

    def layout(self, input_ids: Tensor, attention_mask: Tensor | None) -> PromptLayout:
        present = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        video = (input_ids == self.config.video_token_id) & present
        image = input_ids == self.config.image_token_id
        frame = torch.where(present, FIXED, PADDING)
        position = torch.zeros_like(input_ids)
        text = torch.zeros_like(video)
        frames = 0
        for b in range(input_ids.shape[0]):
            place = video[b].nonzero().flatten()
            if place.numel() == 0:
                continue
            begin, count = int(place[0]), place.numel()
            if int(place[-1]) - begin + 1 != count:
                raise ValueError(f"sample {b} holds more than one video; only one video a prompt can be pruned")
            n, rest = divmod(count - 1, self.tokens_per_frame)  # one newline token ends the video
            if rest or n == 0:
                raise ValueError(
                    f"sample {b} holds {count} video tokens, which is not frames * {self.tokens_per_frame} + 1; "
                    "the whole video must be in one prefill (chunked prefill cannot be pruned), and only one a prompt"
                )
            index = torch.arange(n * self.tokens_per_frame)
            frame[b, begin : begin + len(index)] = index // self.tokens_per_frame
            position[b, begin : begin + len(index)] = index % self.tokens_per_frame
            text[b, begin + count :] = (present & ~image)[b, begin + count :]
            frames = max(frames, n)
        return PromptLayout(frame, position, text, frames, self.tokens_per_frame)

    def question(self, input_ids: Tensor, layout: PromptLayout, tokenizer: Any) -> list[str]:
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        questions = []
        for ids, text in zip(input_ids, layout.text, strict=True):
            turn: list[int] = []
            for token in ids[text].tolist():
                if token in special:
                    break
                turn.append(token)
            questions.append(str(tokenizer.decode(turn)).strip())
        return questions

    def tower_states(self, outputs: Any) -> Tensor:
        states = getattr(outputs, "hidden_states", None)
        if states is None:
            raise ValueError(
                "the video features carry no hidden_states of the vision tower, which segments and relevance are "
                "computed from; pass what get_video_features(..., return_dict=True) returns, and the whole prompt at "
                "once (chunked prefill cannot be pruned)"
            )
        selected: Tensor = states[self._feature_layer]
        return selected

    def queries(self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention = layer.self_attn
        query = attention.q_proj(layer.input_layernorm(hidden))
        query = query.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        rotated: Tensor = query * cos[:, None] + rotate_half(query) * sin[:, None]
        return rotated

    def scale(self, layer: Any) -> float:
        return float(layer.self_attn.scaling)
