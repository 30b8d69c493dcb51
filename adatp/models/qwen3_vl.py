"""The Qwen3-VL family: Qwen2-VL with a time stamp before every temporal patch, and deepstack.

Deepstack: after each of the first layers the decoder adds features of the vision tower to the visual tokens.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from adatp.errors import Unsupported
from adatp.layout import PromptLayout, VideoSize
from adatp.models.qwen2_vl import Qwen2VL

_TIME_STAMP = re.compile(r"<\d+\.\d seconds>$")


class Qwen3VL(Qwen2VL):
    """The family: its first layers add features of the vision tower to the visual tokens."""

    model_type = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration

    def read_config(self, config: Any) -> None:
        super().read_config(config)
        self.added_layers = len(config.vision_config.deepstack_visual_indexes)

    def runs(self, sizes: Sequence[VideoSize]) -> list[int]:
        return [video.grid.tokens for video in sizes for _ in range(video.frames)]

    def layout(self, input_ids: Tensor, sizes: Sequence[VideoSize] | None = None) -> PromptLayout | None:
        layout = super().layout(input_ids, sizes)
        if layout is not None:
            # a frame has one marker before it; the first of a video has that of the chat template as well
            before = (input_ids == self.config.vision_start_token_id).cumsum(0)[torch.tensor(layout.begins)]
            if any(bool((own.diff() > 1).any()) for own in before.split([video.frames for video in layout.videos])):
                raise Unsupported("video_grid_thw tells the videos of a prompt in another order than the prompt")
        return layout

    def clean_question(self, text: str) -> str:
        """Return the question without the time stamp of the video's first frame, which follows it."""
        return _TIME_STAMP.sub("", text).strip()

    def split_kwargs(
        self, kwargs: dict[str, Any], ids: Sequence[Tensor], padding: Sequence[int]
    ) -> Sequence[dict[str, Any]]:
        mask, levels = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        if mask is None or levels is None:
            return super().split_kwargs(kwargs, ids, padding)
        counts = [int(torch.isin(own, torch.tensor(self.placeholders)).sum()) for own in ids]
        parts = zip(*(level.split(counts) for level in levels), strict=True)
        return [
            {**kwargs, "visual_pos_masks": mask[b : b + 1, padding[b] :], "deepstack_visual_embeds": list(own)}
            for b, own in enumerate(parts)
        ]

    def kept_kwargs(self, kwargs: dict[str, Any], left: Tensor) -> dict[str, Any]:
        mask, levels = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        if mask is None or levels is None:
            return kwargs
        every = torch.ones(1, len(left), dtype=torch.bool, device=mask.device)
        return {
            **kwargs,
            "visual_pos_masks": every,
            "deepstack_visual_embeds": [_rows(level, mask, left) for level in levels],
        }

    def replacements(self, left: Callable[[], Tensor | None]) -> dict[str, Callable[..., Any]]:
        def add(whole: Callable[..., Tensor], hidden: Tensor, mask: Tensor, level: Tensor) -> Tensor:
            kept = left()
            if kept is None:
                return whole(hidden, mask, level)
            return hidden + _rows(level, mask, kept).to(hidden)

        return {"_deepstack_process": add}


def _rows(level: Tensor, mask: Tensor, left: Tensor) -> Tensor:
    """Return what is added to the tokens that are left, `[W, D]`; nothing of it is read by the host.

    Args:
        level: `[V, D]` features of the visual tokens.
        mask: `[1, L]` bool, the visual tokens of the whole prompt.
        left: `[W]` int64, indices in the whole prompt.
    """
    level, mask = level.to(left.device), mask[0].to(left.device)
    visual = (mask.cumsum(0) - 1).clamp(min=0)[left]
    return torch.where(mask[left, None], level[visual], 0)
