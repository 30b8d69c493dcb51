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
from adatp.layout import PromptLayout
from adatp.models.family import Family
from adatp.models.processor import load_processor
from adatp.models.siglip import NAME, WIDTHS


class LlavaOnevision(Family):
    """The family: a video ends with one newline token.

    Attributes:
        trailing_tokens: number of tokens after a video's last frame that are not prunable.
    """

    model_type = "llava_onevision"
    trailing_tokens: ClassVar[int] = 1

    def __init__(self, model: Any) -> None:
        if not isinstance(model, LlavaOnevisionForConditionalGeneration):
            raise UnsupportedType(
                f"model must be the LlavaOnevisionForConditionalGeneration itself, got a {type(model).__name__}; "
                "unwrap it first"
            )
        decoder = model.config.text_config.model_type
        if decoder != "qwen2":
            raise UnsupportedType(f"model must have a Qwen2 decoder, the only one supported here; got {decoder!r}")
        self.config = model.config
        self.body = model.model
        self.decoder = model.model.language_model
        self.tower = [model.model.vision_tower, model.model.multi_modal_projector]
        vision = self.config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        self.grid = (side, side)

    @classmethod
    def load_processor(cls, checkpoint: str) -> Any:
        return load_processor(checkpoint)

    @property
    def siglip(self) -> str | None:
        return NAME if self.tower_width == WIDTHS["hidden_size"] else None

    @property
    def tower_layers(self) -> int:
        layer = self._feature_layer
        return layer if layer >= 0 else self.config.vision_config.num_hidden_layers + 1 + layer

    @property
    def tower_states_wanted(self) -> list[int]:
        return [self.tower_layers - 1, self.tower_layers]

    @property
    def tower_width(self) -> int:
        return int(self.config.vision_config.hidden_size)

    @property
    def _feature_layer(self) -> int:
        """Index of the features in the tower's hidden states; the first hidden state is the embedding."""
        layer = self.config.vision_feature_layer
        return int(layer if isinstance(layer, int) else layer[-1])

    def has_video(self, input_ids: Tensor) -> bool:
        return bool((input_ids == self.config.video_token_id).any())

    def ids_of(self, embeds: Tensor) -> Tensor:
        # the model itself finds the placeholders in the same way
        ids = torch.full(embeds.shape[:2], -1)
        for token in (self.config.video_token_id, self.config.image_token_id):
            embedding = self.body.get_input_embeddings()(torch.tensor(token, device=embeds.device))
            ids[(embeds == embedding.to(embeds.dtype)).all(-1).cpu()] = token
        return ids

    def layout(self, input_ids: Tensor) -> PromptLayout | None:
        is_video = input_ids == self.config.video_token_id
        if not bool(is_video.any()):
            return None
        c = self.grid[0] * self.grid[1]
        begins: list[int] = []
        videos: list[int] = []
        for begin, stop in _runs(is_video):
            n, rest = divmod(stop - begin - self.trailing_tokens, c)
            if rest or n == 0:
                raise Unsupported(
                    f"a prompt holds {stop - begin} video tokens in a row, which is not frames * {c} + "
                    f"{self.trailing_tokens}: the whole video must be in one prefill (chunked prefill cannot be "
                    "pruned), and there must be text, at least a newline, between two videos"
                )
            begins += range(begin, begin + n * c, c)
            videos.append(n)
        after = torch.arange(stop, len(input_ids))
        rows = after[input_ids[stop:] != self.config.image_token_id]
        return PromptLayout(len(input_ids), tuple(begins), rows, tuple(videos), self.grid)

    def question(self, input_ids: Tensor, layout: PromptLayout, tokenizer: Any) -> str:
        """Read the last user turn that is not empty, from the turn with the video on.

        If all are empty, the question is the text before the video.
        """
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        placeholders = {self.config.video_token_id, self.config.image_token_id}

        def pieces(ids: Tensor) -> list[str]:
            """Decode the text between special tokens."""
            split: list[list[int]] = [[]]
            for token in ids.tolist():
                if token in placeholders:
                    continue
                if token in special:
                    split.append([])
                else:
                    split[-1].append(token)
            return [str(tokenizer.decode(piece)) for piece in split]

        asked, *later = pieces(input_ids[layout.end :])
        turns = [asked, *(piece.removeprefix("user") for piece in later if piece.startswith("user"))]
        before = pieces(input_ids[: layout.begins[0]])[-1].removeprefix("user")
        return next(filter(None, map(self.clean_question, [*reversed(turns), before])), "")

    def clean_question(self, text: str) -> str:
        """Return the question without any other text that the prompt has in its place."""
        return text.strip()

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


def _runs(chosen: Tensor) -> list[tuple[int, int]]:
    """Return begin and end of every run of True in a `[L]` bool tensor."""
    edges = torch.nn.functional.pad(chosen.int(), (1, 1)).diff()
    begins, ends = ((edges == step).nonzero().flatten().tolist() for step in (1, -1))
    return list(zip(begins, ends, strict=True))
