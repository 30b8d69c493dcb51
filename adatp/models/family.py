"""The interface to a model family: all that the engine must know about a model.

Every model of a family must have:

- a method `get_video_features` of the body (or `get_image_features`, see `modality`). The body may be given its output
  as `mm_encoder_outputs[modality]`;
- decoder layers that are called with `position_embeddings`, `position_ids`, `attention_mask` and `past_key_values` by
  keyword, and that leave post-rotary keys in `past_key_values.layers[i].keys`;
- a language model that the body calls with keywords only, and whose `rotary_emb` computes the tables of position ids;
- a decoder whose layers can be built by themselves from its configuration, for the FLOPs of the report.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adatp.layout import Grid, PromptLayout, VideoSize
from adatp.models.decoder_layers import DecoderLayers
from adatp.models.question import read_question


class Family(DecoderLayers, ABC):
    """The parts of one model instance, for a family of models.

    Attributes:
        model_type: `config.model_type` of the family's models.
        modality: "video", or "image" if the model sees the frames of a video as images.
        pixels: the argument of the body with the pixels of the videos.
        scalar_positions: whether a position is one number, so that kept tokens can be renumbered. If not, position ids
            are `[axes, B, L]`.
        offers_attention: whether `tower_attention` and `pool` can be used.
        needs_tokenizer: whether `tokenizer` is needed to find the videos in a prompt.
        size_arguments: the arguments that `sizes` needs, with a row for each video.
        added_layers: number of the first decoder layers whose output the decoder adds something to.
        config: the configuration of the model.
        body: the module whose forward receives `input_ids` and the video.
        tower: the modules that turn pixels into visual tokens; timings call the time of their first run "tower".
        grid: the tokens of every frame; None if each video has a grid of its own.
        tokenizer: the model's tokenizer; None if it is not known.
    """

    model_type: ClassVar[str]
    modality: ClassVar[str] = "video"
    pixels: ClassVar[str] = "pixel_values_videos"
    scalar_positions: ClassVar[bool] = True
    offers_attention: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False
    size_arguments: ClassVar[tuple[str, ...]] = ()
    added_layers: int = 0
    config: Any
    body: Any
    tower: list[nn.Module]
    grid: Grid | None = None
    tokenizer: Any = None

    @abstractmethod
    def __init__(self, model: Any) -> None: ...

    @classmethod
    def of_config(cls, config: Any, tokenizer: Any = None) -> Self:
        """Return the family of a model whose modules are not those of transformers: it reads prompts, and no more.

        Args:
            config: the configuration of the model.
            tokenizer: the model's tokenizer; None if it is not known.
        """
        family = cls.__new__(cls)
        family.read_config(config)
        family.tokenizer = tokenizer
        return family

    def read_config(self, config: Any) -> None:
        """Set the attributes that the configuration of a model tells."""
        self.config = config

    @classmethod
    @abstractmethod
    def load_processor(cls, checkpoint: str) -> Any:
        """Load the processor of a checkpoint of this family, by name or path, with or without torchvision."""

    # The prompt

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The ids that stand for visual tokens, of videos and of images."""
        return self.config.video_token_id, self.config.image_token_id

    @property
    def invisible(self) -> tuple[int, ...]:
        """The ids that belong to videos and images; they are no text."""
        return self.placeholders

    def is_video(self, input_ids: Tensor) -> Tensor:
        """Return which of the ids stand for tokens of a video, bool."""
        found: Tensor = input_ids == self.config.video_token_id
        return found

    def has_video(self, input_ids: Tensor) -> bool:
        """Tell whether `[B, L]` prompts have any video token."""
        return bool(self.is_video(input_ids).any())

    def ids_of(self, embeds: Tensor) -> Tensor:
        """Find the video and image placeholders in prompts that are given as `[B, L, D]` embeddings.

        Returns:
            `[B, L]` int64: the id of the placeholder at each of its embeddings, -1 elsewhere.
        """
        # the model itself finds the placeholders in the same way
        ids = torch.full(embeds.shape[:2], -1)
        for token in self.placeholders:
            embedding = self.body.get_input_embeddings()(torch.tensor(token, device=embeds.device))
            ids[(embeds == embedding.to(embeds.dtype)).all(-1).cpu()] = token
        return ids

    def sizes(self, given: Mapping[str, Any]) -> list[VideoSize] | None:
        """Read the sizes of the videos, in order, from the arguments of a call; None if the arguments do not tell."""
        return None

    @abstractmethod
    def layout(self, input_ids: Tensor, sizes: Sequence[VideoSize] | None = None) -> PromptLayout | None:
        """Find the videos' tokens and the text after them.

        Args:
            input_ids: `[L]` int64 on the host, a prompt without padding.
            sizes: sizes of the videos of the prompt, in order; None if `sizes` does not tell.

        Returns:
            The layout of the prompt; None for a prompt without a video.

        Raises:
            Unsupported: the prompt cannot be pruned; the message says why.
        """

    def question(self, input_ids: Tensor, layout: PromptLayout, tokenizer: Any) -> str:
        """Read from a prompt `[L]` the question about its videos; empty if there is none. See `read_question`."""
        return read_question(input_ids, layout, tokenizer, self.invisible, self.clean_question)

    def clean_question(self, text: str) -> str:
        """Return the question without any other text that the prompt has in its place."""
        return text.strip()

    # The vision tower

    @property
    def siglip(self) -> str | None:
        """Name of the SigLIP checkpoint that the vision tower was trained from; None if unknown."""
        return None

    @property
    def tower_layers(self) -> int | None:
        """Number of layers of a SigLIP tower before the features that the projector reads; None for another tower."""
        return None

    @property
    def tower_width(self) -> int | None:
        """Hidden size of a SigLIP tower; None for another tower."""
        return None

    def encoder_kwargs(self, *, attention: bool) -> dict[str, Any]:
        """Return arguments of `get_video_features` that keep what is read of its output.

        Args:
            attention: whether `tower_attention` will read it.
        """
        return {}

    def pictures(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Return a picture of each frame of the encoded videos, `[n, 3, H, W]` a video, as the processor normalises it.

        Args:
            given: the arguments of `get_video_features`.
        """
        raise NotImplementedError

    @abstractmethod
    def frame_features(self, outputs: Any, sizes: Sequence[VideoSize] | None) -> Tensor:
        """Compute `[F, D]` float32, a feature of each frame of all videos, where no SigLIP is at hand.

        Args:
            outputs: the output of `get_video_features`.
            sizes: sizes of the videos that were encoded, in order; None if `sizes` does not tell.
        """

    def frames_encoded(self, input_ids: Tensor, layout: PromptLayout | None) -> Tensor:
        """Return which of what the tower encodes for a prompt are frames, `[T]` bool on the host.

        Only a tower that sees frames as images encodes anything else with them: the tiles of images.

        Args:
            input_ids: `[L]` int64 on the host, a prompt without padding.
            layout: its layout; None for a prompt without a video.
        """
        return torch.ones(0 if layout is None else layout.frames, dtype=torch.bool)

    def tower_states(self, outputs: Any) -> Tensor:
        """Return `[F, patches, D]`, the output of a SigLIP tower's layer `tower_layers - 1` for F frames.

        Args:
            outputs: the output of `get_video_features`.
        """
        raise NotImplementedError

    def tower_attention(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Compute queries and keys of the last layer before the features, `[F, heads, patches, d]` each.

        Args:
            outputs: the output of `get_video_features`.
        """
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Pool `[F, patches, D]` values of F frames' patches as their features, to `[F, P, D]` without newlines."""
        raise NotImplementedError

    # What the body gives its decoder beside embeddings, positions, mask and cache

    def split_kwargs(
        self, kwargs: dict[str, Any], ids: Sequence[Tensor], padding: Sequence[int]
    ) -> Sequence[dict[str, Any]]:
        """Split the other arguments of the decoder for a batch into those of each prompt.

        Args:
            kwargs: the arguments for the batch.
            ids: ids of each prompt on the host, without padding and draft.
            padding: number of left padding tokens of each prompt.
        """
        return [kwargs] * len(ids)

    def kept_kwargs(self, kwargs: dict[str, Any], left: Tensor) -> dict[str, Any]:
        """Return the arguments of one prompt for those of its tokens that are left.

        Args:
            kwargs: the arguments for the whole prompt, as `split_kwargs` returns them.
            left: `[W]` int64 on the device, indices in the whole prompt.
        """
        return kwargs

    def kept_positions(self, positions: Tensor, left: Tensor) -> Tensor:
        """Return `[..., 1, W]` position ids of the tokens that are left of one prompt, where these keep theirs.

        Args:
            positions: `[..., 1, L]`, those of the whole prompt.
            left: `[W]` int64 on the device, indices in the whole prompt.
        """
        return positions[..., left]

    def replacements(self, left: Callable[[], Tensor | None]) -> dict[str, Callable[..., Any]]:
        """Return the methods of the decoder, by name, that must know which tokens are left in a prefill.

        Each is called with the method that it replaces and that method's arguments.

        Args:
            left: returns `[W]` int64 on the device, indices in the whole prompt of the tokens that are left; None if
                no token has been dropped.
        """
        return {}
