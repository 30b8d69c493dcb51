"""The LLaVA-OneVision family: SigLIP, a projector, 2 x 2 pooling of each frame's features, and Qwen2.

A video is `frames * side * side` pooled tokens in raster order and one newline token at the end, which is not prunable.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from adatp.errors import Unsupported, UnsupportedType
from adatp.layout import Grid, PromptLayout, VideoSize, runs
from adatp.models.family import Family
from adatp.models.processor import load_processor
from adatp.models.siglip import NAME, WIDTHS


class LlavaOnevision(Family):
    """The family: a video ends with one newline token.

    Attributes:
        trailing_tokens: number of tokens after a video's last frame that are not prunable.
    """

    model_type = "llava_onevision"
    offers_attention = True
    trailing_tokens: ClassVar[int] = 1
    grid: Grid

    def __init__(self, model: Any) -> None:
        if not isinstance(model, LlavaOnevisionForConditionalGeneration):
            raise UnsupportedType(
                f"model must be the LlavaOnevisionForConditionalGeneration itself, got a {type(model).__name__}; "
                "unwrap it first"
            )
        decoder = model.config.text_config.model_type
        if decoder != "qwen2":
            raise UnsupportedType(f"model must have a Qwen2 decoder, the only one supported here; got {decoder!r}")
        self.read_config(model.config)
        self.body = model.model
        self.decoder = model.model.language_model
        self.tower = [model.model.vision_tower, model.model.multi_modal_projector]

    def read_config(self, config: Any) -> None:
        super().read_config(config)
        vision = config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        self.grid = Grid(side, side)

    @classmethod
    def load_processor(cls, checkpoint: str) -> Any:
        return load_processor(checkpoint)

    @property
    def siglip(self) -> str | None:
        return NAME if self.tower_width == WIDTHS["hidden_size"] else None

    @property
    def tower_layers(self) -> int:
        layer = self._feature_layer
        return layer if layer >= 0 else int(self.config.vision_config.num_hidden_layers) + 1 + layer

    @property
    def tower_width(self) -> int:
        return int(self.config.vision_config.hidden_size)

    @property
    def _feature_layer(self) -> int:
        """Index of the features in the tower's hidden states; the first hidden state is the embedding."""
        layer = self.config.vision_feature_layer
        return int(layer if isinstance(layer, int) else layer[-1])

    def layout(self, input_ids: Tensor, sizes: Sequence[VideoSize] | None = None) -> PromptLayout | None:
        is_video = self.is_video(input_ids)
        if not bool(is_video.any()):
            return None
        c = self.grid.tokens
        begins: list[int] = []
        videos: list[VideoSize] = []
        for begin, stop in runs(is_video):
            n, rest = divmod(stop - begin - self.trailing_tokens, c)
            if rest or n == 0:
                raise Unsupported(
                    f"a prompt holds {stop - begin} video tokens in a row, which is not frames * {c} + "
                    f"{self.trailing_tokens}: the whole video must be in one prefill (chunked prefill cannot be "
                    "pruned), and there must be text, at least a newline, between two videos"
                )
            begins += range(begin, begin + n * c, c)
            videos.append(VideoSize(n, self.grid))
        after = torch.arange(stop, len(input_ids))
        rows = after[input_ids[stop:] != self.config.image_token_id]
        return PromptLayout(len(input_ids), tuple(begins), rows, tuple(videos))

    def encoder_kwargs(self, *, attention: bool) -> dict[str, Any]:
        # by default transformers keeps only the hidden states that it projects
        return {"output_hidden_states": [self.tower_layers - 1, self.tower_layers]} if attention else {}

    def frame_features(self, outputs: Any, sizes: Sequence[VideoSize] | None) -> Tensor:
        return self.tower_states(outputs).float().mean(1)

    def tower_states(self, outputs: Any) -> Tensor:
        return self._state(outputs, self._feature_layer)

    def _state(self, outputs: Any, index: int) -> Tensor:
        states: Sequence[Tensor | None] | None = getattr(outputs, "hidden_states", None)
        state = None if states is None else states[index]
        if state is None:
            raise Unsupported(
                "the video features carry no hidden_states of the vision tower, which the method needs to compare "
                "frames or patches; pass the output of get_video_features(..., return_dict=True), called while the "
                "method is applied, and the whole prompt at once (chunked prefill cannot be pruned)"
            )
        return state

    def tower_attention(self, outputs: Any) -> tuple[Tensor, Tensor]:
        index = self.tower_layers - 1
        layer = self.body.vision_tower.encoder.layers[index]
        normed = layer.layer_norm1(self._state(outputs, index))  # the first state is the embedding
        head = (-1, layer.self_attn.head_dim)
        query, key = (
            projection(normed).unflatten(-1, head).transpose(1, 2)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        return query, key

    def pool(self, maps: Tensor) -> Tensor:
        pooled: Tensor = self.body.apply_pooling(maps)
        return pooled
