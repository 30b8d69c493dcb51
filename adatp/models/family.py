"""The interface to a model family: all that the engine must know about a model.

Every model of a family must have:

- a method `get_video_features` of the body. Its output has the vision tower's `hidden_states`, and the body may be
  given it as `mm_encoder_outputs["video"]`;
- decoder layers that are called with `position_embeddings`, `position_ids`, `attention_mask` and `past_key_values` by
  keyword, and that leave post-rotary keys in `past_key_values.layers[i].keys`;
- a language model that the body calls with keywords only, and whose `rotary_emb` computes the tables of position ids;
- a SigLIP vision tower, for text relevance;
- a decoder whose layers can be built by themselves from its configuration, for the FLOPs of the report.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from adatp.layout import PromptLayout


class Family(ABC):
    """The parts of one model instance, for a family of models.

    Attributes:
        model_type: `config.model_type` of the family's models.
        body: the module whose forward receives `input_ids` and the video.
        decoder: the language model, with `layers` and a Hugging Face `config`.
        tower: the modules that turn pixels into visual tokens; timings call the time of their first run "tower".
        grid: rows and columns of a frame's prunable tokens, in raster order.
    """

    model_type: ClassVar[str]
    body: Any
    decoder: Any
    tower: list[nn.Module]
    grid: tuple[int, int]

    @abstractmethod
    def __init__(self, model: Any) -> None: ...

    @classmethod
    @abstractmethod
    def load_processor(cls, checkpoint: str) -> Any:
        """Load the processor of a checkpoint of this family, by name or path, with or without torchvision."""

    @property
    @abstractmethod
    def siglip(self) -> str | None:
        """Name of the SigLIP checkpoint that the vision tower was trained from; None if unknown."""

    @property
    @abstractmethod
    def tower_layers(self) -> int:
        """Number of encoder layers of the vision tower before the features that the projector reads."""

    @property
    @abstractmethod
    def tower_states_wanted(self) -> list[int]:
        """Indices, from 0, of the tower's hidden states that `tower_states` and `tower_attention` read."""

    @property
    @abstractmethod
    def tower_width(self) -> int:
        """Hidden size of the vision tower."""

    @abstractmethod
    def has_video(self, input_ids: Tensor) -> bool:
        """Tell whether `[B, L]` prompts have any video token."""

    @abstractmethod
    def ids_of(self, embeds: Tensor) -> Tensor:
        """Find the video and image placeholders in prompts that are given as `[B, L, D]` embeddings.

        Returns:
            `[B, L]` int64: the id of the placeholder at each of its embeddings, -1 elsewhere.
        """

    @abstractmethod
    def layout(self, input_ids: Tensor) -> PromptLayout | None:
        """Find the videos' tokens and the text after them.

        Args:
            input_ids: `[L]` int64 on the host, a prompt without padding.

        Returns:
            The layout of the prompt; None for a prompt without a video.

        Raises:
            Unsupported: the prompt cannot be pruned; the message says why.
        """

    @abstractmethod
    def question(self, input_ids: Tensor, layout: PromptLayout, tokenizer: Any) -> str:
        """Read from a prompt `[L]` the question about its videos; empty if there is none."""

    @abstractmethod
    def tower_states(self, outputs: Any) -> Tensor:
        """Return `[videos * n, patches, D]`, the output of the tower's layer `tower_layers - 1`.

        Args:
            outputs: the output of `get_video_features`.
        """

    @abstractmethod
    def tower_attention(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Compute queries and keys of the last layer before the features, `[videos * n, heads, patches, d]` each.

        Args:
            outputs: the output of `get_video_features`.
        """

    @abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """Pool `[F, patches, D]` values of F frames' patches as their features, to `[F, P, D]` without newlines."""

    # What follows is that of a decoder layer of Llama's kind, such as those of Qwen2 and Qwen3.

    def query_projection(self, layer: Any) -> nn.Module:
        """Return the module of a decoder layer that computes its queries, `[B, W, H * d]`, heads side by side."""
        projection: nn.Module = layer.self_attn.q_proj
        return projection

    def mlp(self, layer: Any) -> nn.Module:
        """Return the module of a decoder layer that acts on each token of `[B, W, D]` independently."""
        mlp: nn.Module = layer.mlp
        return mlp

    def scale(self, layer: Any) -> float:
        """Return the factor of the attention logits of a decoder layer."""
        return float(layer.self_attn.scaling)

    def queries(self, layer: Any, projected: Tensor, cos: Tensor, sin: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Select post-rotary queries from the output of a layer's query projection.

        Args:
            layer: one of `decoder.layers`.
            projected: `[B, W, H * d]` output of its query projection.
            cos, sin: `[B, T, d]` rotary tables; these and `rows` may be on other devices.
            rows: `[T]` int64, the tokens whose queries are needed; None for all, T = W.

        Returns:
            `[B, H, T, d]`.
        """
        device = projected.device
        chosen = projected if rows is None else projected.index_select(1, rows.to(device))
        return _rotated(layer.self_attn, "q_norm", chosen, cos.to(device), sin.to(device))

    def project(self, layer: Any, hidden: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Compute post-rotary queries of some of the tokens that enter a decoder layer, and keys of all tokens.

        Args:
            layer: one of `decoder.layers`.
            hidden: `[1, W, D]` input of the layer.
            rows: `[T]` int64, the tokens whose queries are needed.
            cos, sin: `[1, W, d]` rotary tables.

        Returns:
            `[1, H, T, d]` queries and `[1, G, W, d]` keys.
        """
        normed = layer.input_layernorm(hidden)
        query, query_cos, query_sin = (part.index_select(1, rows) for part in (normed, cos, sin))
        return (
            self.queries(layer, self.query_projection(layer)(query), query_cos, query_sin),
            _rotated(layer.self_attn, "k_norm", layer.self_attn.k_proj(normed), cos, sin),
        )

    @property
    def has_sliding_windows(self) -> bool:
        """Whether some decoder layers do not attend to all tokens."""
        return "sliding_attention" in (getattr(self.decoder.config, "layer_types", None) or ())


def _rotated(attention: Any, norm: str, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, T, H * d]` projected tokens to `[B, H, T, d]`, normed by the attention's `norm` if it has one."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, norm):
        heads = getattr(attention, norm)(heads)
    heads = heads.transpose(1, 2)
    return torch.addcmul(heads * cos[:, None], rotate_half(heads), sin[:, None])
