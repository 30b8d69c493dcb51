"""The Qwen2-VL family: frames of any size, two of them in a temporal patch, and positions of three axes (M-RoPE).

What the engine calls a frame is a temporal patch. It has `rows * columns` tokens in raster order; rows and columns
differ from video to video.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from adatp.checks.values import require
from adatp.errors import Unsupported, UnsupportedType
from adatp.layout import Grid, PromptLayout, VideoSize, runs
from adatp.models.family import Family


class Qwen2VL(Family):
    """The family: a video is a run of tokens between two markers.

    Attributes:
        model_class: the class of the models.
    """

    model_type = "qwen2_vl"
    scalar_positions = False
    size_arguments = ("video_grid_thw",)
    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration

    def __init__(self, model: Any) -> None:
        if not isinstance(model, self.model_class):
            raise UnsupportedType(
                f"model must be the {self.model_class.__name__} itself, got a {type(model).__name__}; unwrap it first"
            )
        self.read_config(model.config)
        self.body = model.model
        self.decoder = model.model.language_model
        self.tower = [model.model.visual]

    @classmethod
    def load_processor(cls, checkpoint: str) -> Any:
        return AutoProcessor.from_pretrained(checkpoint)

    @property
    def invisible(self) -> tuple[int, ...]:
        return (*self.placeholders, self.config.vision_start_token_id, self.config.vision_end_token_id)

    def sizes(self, given: Mapping[str, Any]) -> list[VideoSize] | None:
        grids = given.get("video_grid_thw")
        if grids is None:
            return None
        whole = isinstance(grids, Tensor) and grids.ndim == 2 and grids.shape[1] == 3 and not grids.is_floating_point()
        require(whole, "video_grid_thw", grids, "a [videos, 3] tensor of whole numbers")
        vision = self.config.vision_config
        merged = vision.spatial_merge_size
        sizes = []
        for t, h, w in grids.tolist():
            if min(t, h, w) < 1 or h % merged or w % merged:
                raise Unsupported(
                    f"video_grid_thw holds {[t, h, w]}: the temporal patches of a video, and rows and columns of "
                    f"patches that are multiples of {merged}"
                )
            sizes.append(VideoSize(t, Grid(h // merged, w // merged), vision.temporal_patch_size))
        pixels, told = given.get(self.pixels), int(grids.prod(1).sum())
        if pixels is not None and len(pixels) != told:
            raise Unsupported(f"{self.pixels} holds {len(pixels)} patches, but video_grid_thw tells {told}")
        return sizes

    def runs(self, sizes: Sequence[VideoSize]) -> list[int]:
        """Return the lengths of the runs of video tokens that a prompt with these videos has."""
        return [video.tokens for video in sizes]

    def layout(self, input_ids: Tensor, sizes: Sequence[VideoSize] | None = None) -> PromptLayout | None:
        is_video = self.is_video(input_ids)
        places = is_video.nonzero().flatten()
        if not len(places):
            return None
        if sizes is None:
            raise Unsupported(
                "video_grid_thw is missing: a prompt holds a video, and its grid tells how many tokens a frame has; "
                "pass the whole output of the processor"
            )
        if [stop - begin for begin, stop in runs(is_video)] != self.runs(sizes):
            grids = ", ".join(f"{video.frames} x {video.grid}" for video in sizes)
            raise Unsupported(
                f"the {len(places)} video tokens of a prompt do not stand as the videos of video_grid_thw do, {grids} "
                "tokens, in this order: the whole video must be in one prefill (chunked prefill cannot be pruned), and "
                "the text as the processor writes it"
            )
        tokens = torch.tensor([video.grid.tokens for video in sizes for _ in range(video.frames)])
        stop = tokens.cumsum(0)
        begins = places[stop - tokens].tolist()
        after = torch.arange(int(places[-1]) + 1, len(input_ids))
        rows = after[~torch.isin(input_ids[after], torch.tensor(self.invisible))]
        return PromptLayout(len(input_ids), tuple(begins), rows, tuple(sizes))

    def pictures(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Return the pictures that the patches were cut from; the first of a temporal patch stands for both."""
        vision = self.config.vision_config
        merged, side, pictures = vision.spatial_merge_size, vision.patch_size, []
        grids = given["video_grid_thw"].tolist()
        videos = given["pixel_values_videos"].split([t * h * w for t, h, w in grids])
        for (t, h, w), patches in zip(grids, videos, strict=True):
            cells = patches.view((t, h // merged, w // merged, merged, merged, 3, -1, side, side)).select(6, 0)
            pictures.append(cells.permute((0, 5, 1, 3, 6, 2, 4, 7)).reshape(t, 3, h * side, w * side))
        return pictures

    def frame_features(self, outputs: Any, sizes: Sequence[VideoSize] | None) -> Tensor:
        """Average the patches of a frame in the output of the tower's last block. Windows permute them in a frame."""
        assert sizes is not None
        merged = self.config.vision_config.spatial_merge_size**2
        videos = outputs.last_hidden_state.split([video.tokens * merged for video in sizes])
        means = [own.unflatten(0, (size.frames, -1)).float().mean(1) for own, size in zip(videos, sizes, strict=True)]
        return torch.cat(means)

    def kept_positions(self, positions: Tensor, left: Tensor) -> Tensor:
        # `generate` puts an axis before the three that is for masks alone: its gaps would be read as packed sequences
        return positions[-3:, ..., left]
