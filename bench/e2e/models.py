"""Published models with random weights, and prompts for them.

The time depends on shapes alone, except for deduplication. Random features differ between frames, so every frame is a
segment, and no token is deduplicated. The number of kept tokens is then that of the schedule, the largest possible.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adatp.evaluation.paper.shapes import MODEL_SHAPES, ModelShape
from adatp.evaluation.paper.standin import llava_video_config
from adatp.evaluation.session import Loaded
from adatp.models.llava_video import LlavaVideoForConditionalGeneration
from adatp.models.siglip import LAYERS, LLAVA_LAYERS, PATCH, SIDE, WIDTHS
from adatp.relevance import Relevance
from adatp.small.assemble import onevision_config, onevision_processor, take_tower
from adatp.small.untrained import byte_tokenizer

SIGLIP = WIDTHS
TOWER_LAYERS, TEXT_LAYERS = LLAVA_LAYERS, LAYERS  # of the published models
VOCABULARY = 151936  # Qwen2's


@dataclass(frozen=True)
class Build:
    """A published model as it is built here.

    Attributes:
        name: name of the published model, in `MODEL_SHAPES`.
        layers: number of decoder layers.
        tower_layers: number of layers of the vision tower.
        text_layers: number of layers of SigLIP's text tower.
    """

    name: str
    layers: int
    tower_layers: int = TOWER_LAYERS
    text_layers: int = TEXT_LAYERS

    @property
    def shape(self) -> ModelShape:
        """The shape, with the number of layers of this build."""
        shape = MODEL_SHAPES[self.name]
        return replace(shape, text_config={**shape.text_config, "num_hidden_layers": self.layers})

    @property
    def is_whole(self) -> bool:
        """Whether the decoder has all layers of the published model."""
        return self.layers == MODEL_SHAPES[self.name].layers

    @property
    def missing_tower_layers(self) -> int:
        """Number of layers of the published vision tower that this build lacks."""
        return TOWER_LAYERS - self.tower_layers

    def __str__(self) -> str:
        whole = MODEL_SHAPES[self.name].layers
        return self.name if self.is_whole else f"{self.name}, {self.layers} of {whole} layers"


@torch.no_grad()
def make(build: Build, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Make the model with its aligned SigLIP, with random weights."""
    tokenizer, shape = byte_tokenizer("left"), build.shape
    vision = SiglipVisionConfig(**SIGLIP, num_hidden_layers=build.tower_layers + 1, image_size=SIDE, patch_size=PATCH)
    text = SiglipTextConfig(
        **SIGLIP,
        num_hidden_layers=build.text_layers,
        vocab_size=32000,
        max_position_embeddings=64,
        projection_size=SIGLIP["hidden_size"],
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    decoder = Qwen2Config(
        **shape.text_config,
        vocab_size=VOCABULARY,
        tie_word_embeddings=build.name == "onevision-0.5b",
        max_position_embeddings=1 << 20,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config: Any = onevision_config(vision, build.tower_layers, decoder, tokenizer)
    kind: Any = LlavaOnevisionForConditionalGeneration
    if shape.grid.newlines:
        config = llava_video_config(config, "average")
        kind = LlavaVideoForConditionalGeneration
    torch.manual_seed(0)
    with torch.device(device):
        siglip = SiglipModel._from_config(
            SiglipConfig(text_config=text, vision_config=vision), attn_implementation="sdpa", dtype=dtype
        ).eval()
        model = kind._from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
    take_tower(model, siglip)
    relevance = Relevance(siglip, byte_tokenizer("right"), build.tower_layers).eval()
    return Loaded(str(build), model, onevision_processor(SIDE, PATCH, tokenizer), relevance)


def prompt(
    loaded: Loaded,
    frames: int,
    text_tokens: int,
    tokens_per_frame: int,
    question: str = "Which animal runs across the street? ",
) -> dict[str, Tensor]:
    """Make a prompt with one video and `text_tokens` other tokens.

    Args:
        loaded: the model.
        frames: number of frames of the video.
        text_tokens: number of tokens that are not visual, 16 or more; includes the model's newline after the video.
        tokens_per_frame: visual tokens of a frame. The pixels are black, since only the tower reads them.
        question: text that is repeated and cut to the wanted number of tokens.
    """
    tokenizer, config = loaded.processor.tokenizer, loaded.model.config
    newline = config.model_type == "llava_onevision"
    before = tokenizer.encode("<|im_start|>user ")
    ending = tokenizer.encode("<|im_end|><|im_start|>")
    asked = text_tokens - len(before) - len(ending) - newline
    if asked < 1:
        raise ValueError(f"text_tokens must be at least {text_tokens - asked + 1}, got {text_tokens}")
    words = tokenizer.encode(question * (asked // len(question) + 1))[:asked]
    video = [config.video_token_id] * (frames * tokens_per_frame + newline)
    ids = torch.tensor([[*before, *video, *words, *ending]], device=loaded.model.device)
    pixels = torch.zeros(1, frames, 3, SIDE, SIDE, dtype=loaded.model.dtype, device=loaded.model.device)
    return {"input_ids": ids, "pixel_values_videos": pixels}


class _Given(nn.Module):
    """A stand-in for the vision tower that returns given states."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.config = tower.config
        self.encoder = tower.encoder  # methods read its weights
        self.states: Tensor = torch.empty(0)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        states = self.states[: len(pixel_values)]
        return BaseModelOutputWithPooling(
            last_hidden_state=states, hidden_states=(states,) * (self.config.num_hidden_layers + 1)
        )


@contextmanager
def given_states(loaded: Loaded, frames: int) -> Iterator[None]:
    """Within the `with` block, let the vision tower return random states for that many frames, without running.

    So many prefills of one video can be measured without the tower, whose time is the same for all of them.
    """
    body, make = loaded.model.model, torch.Generator().manual_seed(0)
    tower = body.vision_tower
    given = _Given(tower)
    width = SIGLIP["hidden_size"]
    states = torch.randn(frames, (SIDE // PATCH) ** 2, width, generator=make)
    states += 2 * torch.randn(frames, 1, width, generator=make)  # the part of a frame that pooling keeps
    given.states = states.to(loaded.model.device, loaded.model.dtype)
    body.vision_tower = given
    try:
        yield
    finally:
        body.vision_tower = tower
