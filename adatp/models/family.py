"""What the engine has to know of a model family.

Taken for granted, so a model must have it to become a family: a method `get_video_features` of the body, whose output
carries the vision tower's `hidden_states`, and which the body may be handed as `mm_encoder_outputs["video"]`; decoder
layers that are called with `position_embeddings`, `position_ids`, `attention_mask` and `past_key_values` by keyword and
leave post-rotary keys in `past_key_values.layers[i].keys`; a language model that the body calls with keywords only and
whose `rotary_emb` makes tables of position ids; a SigLIP vision tower, where there is to be text relevance; and, for
the FLOPs of the report, a decoder of Qwen2's layers.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from adatp.layout import PromptLayout


class Family(ABC):
    """One model instance, seen as its family lays it out.

    Attributes:
        model_type: `config.model_type` of the family, by which it is found.
        body: the module whose forward receives `input_ids` and the video.
        decoder: the language model, with `layers` and a Hugging Face `config`.
        tower: the modules that turn pixels into visual tokens; their first runs are the "tower" in timings.
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
        """The processor of a checkpoint of this family, by name or path, with torchvision or without."""

    @property
    @abstractmethod
    def siglip(self) -> str | None:
        """Name of the SigLIP checkpoint that the vision tower was trained from; None if it is not known."""

    @property
    @abstractmethod
    def tower_layers(self) -> int:
        """Encoder layers of the vision tower that lie before the features the projector reads."""

    @property
    @abstractmethod
    def tower_states_wanted(self) -> list[int]:
        """Which of the tower's hidden states `tower_states` and `tower_attention` read, numbered from 0."""

    @property
    @abstractmethod
    def tower_width(self) -> int:
        """Hidden size of the vision tower."""

    @abstractmethod
    def has_video(self, input_ids: Tensor) -> bool:
        """Whether `[B, L]` prompts hold any video token."""

    @abstractmethod
    def ids_of(self, embeds: Tensor) -> Tensor:
        """The ids of prompts that came as `[B, L, D]` embeddings, as far as they say where videos and images are.

        Returns:
            `[B, L]` int64: the placeholders' ids where their embeddings are, -1 elsewhere.
        """

    @abstractmethod
    def layout(self, input_ids: Tensor) -> PromptLayout | None:
        """Where the videos' tokens and the text after them are.

        Args:
            input_ids: `[L]` int64 on the host, a prompt without padding.

        Returns:
            None for a prompt without a video.

        Raises:
            ValueError: a prompt that cannot be pruned, saying why.
        """

    @abstractmethod
    def question(self, input_ids: Tensor, layout: PromptLayout, tokenizer: Any) -> str:
        """What a prompt `[L]` asks about its videos; empty where it asks nothing."""

    @abstractmethod
    def tower_states(self, outputs: Any) -> Tensor:
        """`[videos * n, patches, D]`: the tower's layer `tower_layers - 1`, from what `get_video_features` returns."""

    @abstractmethod
    def tower_attention(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys of the last layer before the features, `[videos * n, heads, patches, d]` each.

        Args:
            outputs: what `get_video_features` returns.
        """

    @abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """`[F, patches, D]` values of F frames' patches, pooled as their features are, `[F, P, D]` without newlines."""

    @abstractmethod
    def query_projection(self, layer: Any) -> nn.Module:
        """The module of a decoder layer that puts out its queries, `[B, W, H * d]`, all its heads side by side."""

    @abstractmethod
    def mlp(self, layer: Any) -> nn.Module:
        """The module of a decoder layer that acts on each token of `[B, W, D]` alone."""

    @abstractmethod
    def project(self, layer: Any, hidden: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Post-rotary queries of some of the tokens that enter a decoder layer, and keys of all.

        Args:
            layer: one of `decoder.layers`.
            hidden: `[1, W, D]` what enters it.
            rows: `[T]` int64, the tokens whose queries are wanted.
            cos, sin: `[1, W, d]` rotary tables.

        Returns:
            `[1, H, T, d]` and `[1, G, W, d]`.
        """

    def queries(self, layer: Any, projected: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Post-rotary queries of some of the tokens that a decoder layer has projected, `[1, H, T, d]`.

        Args:
            layer: one of `decoder.layers`.
            projected: `[1, W, H * d]` what its query projection has put out for all.
            rows: `[T]` int64, the tokens whose queries are wanted.
            cos, sin: `[1, T, d]` rotary tables of these tokens; these and `rows` may be on other devices.
        """
        device = projected.device
        return self.rotate(layer, projected.index_select(1, rows.to(device)), cos.to(device), sin.to(device))

    @property
    def has_sliding_windows(self) -> bool:
        """Whether some decoder layers do not attend to all tokens."""
        return "sliding_attention" in (getattr(self.decoder.config, "layer_types", None) or ())

    @abstractmethod
    def rotate(self, layer: Any, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Post-rotary queries or keys of a decoder layer.

        Args:
            layer: one of `decoder.layers`.
            projected: `[B, T, H * d]` what its projection has put out.
            cos, sin: `[B, T, d]` rotary tables.

        Returns:
            `[B, H, T, d]`.
        """

    @abstractmethod
    def scale(self, layer: Any) -> float:
        """Factor of the attention logits of a decoder layer."""
