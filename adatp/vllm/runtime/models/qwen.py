"""What the pruned Qwen-VL models have in common: each video has a grid of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adatp.vllm.runtime.models.pruned import PrunedModel


class QwenVideos(PrunedModel):
    """Encodes videos with the features of their frames. It stands before vLLM's class in the bases of a model.

    Attributes:
        visual: the vision tower.
    """

    visual: Any

    def _process_video_input(self, video_input: Any) -> list[Tensor]:
        """Encode videos to `[tokens, D]` each, with the features that ride along."""
        with _inputs_of(self.visual, "merger") as states:
            videos = super()._process_video_input(video_input)  # type: ignore[misc]
        family, grids = self.pruning.family, {"video_grid_thw": video_input["video_grid_thw"]}
        sizes = family.sizes(grids)
        assert sizes is not None
        if self.relevance is None:
            merged = self.config.vision_config.spatial_merge_size**2
            patches = states[0].flatten(0, -2).split([size.tokens * merged for size in sizes])
            seen = [own.unflatten(0, (size.frames, -1)) for own, size in zip(patches, sizes, strict=True)]
        else:
            pixels = self.visual.input_norm(video_input[family.pixels], torch.float32)
            seen = family.pictures({family.pixels: pixels, **grids})
        return [
            self.with_frames(video.unflatten(0, (len(own), -1)), own).flatten(0, 1)
            for video, own in zip(videos, seen, strict=True)
        ]


@contextmanager
def _inputs_of(parent: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Take what a submodule is called with in the `with` block. Modules that vLLM may compile run no hooks."""
    module, seen = getattr(parent, name), []

    class Watch(nn.Module):
        def forward(self, given: Tensor) -> Any:
            seen.append(given)
            return module(given)

    setattr(parent, name, Watch())
    try:
        yield seen
    finally:
        setattr(parent, name, module)
