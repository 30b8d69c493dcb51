"""The InternVL family: InternVL3 and InternVL3.5, which see the frames of a video as images.

For the first frame of a video the processor writes "Frame1: <img>", c placeholders and "</img>". An image has
the same placeholders, c for each of its tiles. So only the text before it tells a frame from an image: whoever writes
"Frame1: " before an image makes it a video; if that image has several tiles, it is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, InternVLForConditionalGeneration

from adatp.errors import Unsupported, UnsupportedType
from adatp.layout import Grid, PromptLayout, VideoSize, runs
from adatp.models.family import Family

_NAME = re.compile(r"Frame([1-9]\d*): $")
_NAME_TOKENS = 16  # a tokenizer makes at most so many of a name


class InternVL(Family):
    """The family: a frame is a run of c placeholders after its name."""

    model_type = "internvl"
    modality = "image"
    pixels = "pixel_values"
    needs_tokenizer = True
    grid: Grid

    def __init__(self, model: Any) -> None:
        if not isinstance(model, InternVLForConditionalGeneration):
            raise UnsupportedType(
                f"model must be the InternVLForConditionalGeneration itself, got a {type(model).__name__}; "
                "unwrap it first"
            )
        self.read_config(model.config)
        self.body = model.model
        self.decoder = model.model.language_model
        self.tower = [model.model.vision_tower, model.model.multi_modal_projector]
        if not self.is_like_llama:
            decoder = self.config.text_config.model_type
            raise UnsupportedType(f"model must have a decoder like Qwen2, Qwen3 or Llama, got {decoder!r}")

    def read_config(self, config: Any) -> None:
        super().read_config(config)
        vision, ratio = config.vision_config, config.downsample_ratio
        rows, columns = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
        self.grid = Grid(int(rows * ratio), int(columns * ratio))

    @classmethod
    def load_processor(cls, checkpoint: str) -> Any:
        return AutoProcessor.from_pretrained(checkpoint)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    @property
    def invisible(self) -> tuple[int, ...]:
        marks = self.tokenizer.convert_tokens_to_ids(["<img>", "</img>"])
        if {None, self.tokenizer.unk_token_id} & set(marks):
            raise Unsupported("processor must be the model's own, but its tokenizer lacks '<img>' or '</img>'")
        return (*marks, *self.placeholders)

    def is_video(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim > 1:
            return torch.stack([self.is_video(ids) for ids in input_ids])
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for number, begin, stop in self._images(input_ids.cpu()):
            found[begin:stop] = number > 0
        return found

    def frames_encoded(self, input_ids: Tensor, layout: PromptLayout | None) -> Tensor:
        of_video = self.is_video(input_ids)[input_ids == self.config.image_token_id]
        return of_video[:: self.grid.tokens]

    def layout(self, input_ids: Tensor, sizes: Sequence[VideoSize] | None = None) -> PromptLayout | None:
        frames = [(number, begin) for number, begin, _ in self._images(input_ids) if number]
        if not frames:
            return None
        numbers, begins = zip(*frames, strict=True)
        last = [number for number, later in zip(numbers, (*numbers[1:], 1), strict=True) if later == 1]
        after = torch.arange(begins[-1] + self.grid.tokens, len(input_ids))
        rows = after[~torch.isin(input_ids[after], torch.tensor(self.invisible))]
        return PromptLayout(len(input_ids), begins, rows, tuple(VideoSize(count, self.grid) for count in last))

    def _images(self, ids: Tensor) -> list[tuple[int, int, int]]:
        """Find the runs of placeholders in `[L]` ids on the host.

        Returns:
            Of each run the number of the frame in its video (0 for an image), and where it begins and stops.

        Raises:
            Unsupported: a video is not whole, or the text before a run is not known.
        """
        is_image = ids == self.config.image_token_id
        if not bool(is_image.any()):
            return []
        if self.tokenizer is None:
            raise Unsupported("processor is needed to find the frames of a video; pass the model's processor")
        if bool((ids < 0).any()):
            raise Unsupported(
                "inputs_embeds hold images, but only the text before an image tells whether it is a frame of a video; "
                "pass input_ids"
            )
        mark, c = self.invisible[0], self.grid.tokens
        found, last = [], 0
        for begin, stop in runs(is_image):
            text = self.tokenizer.decode(ids[max(0, begin - 1 - _NAME_TOKENS) : max(0, begin - 1)])
            name = _NAME.search(text) if begin and ids[begin - 1] == mark else None
            number = int(name[1]) if name else 0
            fault = None
            if number > 1 and number != last + 1:
                fault = f"Frame{number} comes after {f'Frame{last}' if last else 'no frame'}"
            elif number and stop - begin != c:
                fault = f"Frame{number} has {stop - begin} tokens, not {c}"
            if fault is not None:
                raise Unsupported(
                    f"a prompt holds part of a video: {fault}; the whole video must be in one prefill (chunked prefill "
                    "cannot be pruned)"
                )
            found.append((number, begin, stop))
            last = number or last
        return found

    def clean_question(self, text: str) -> str:
        """Return the question without the name of a frame after it."""
        return _NAME.sub("", text).strip()

    def pictures(self, given: Mapping[str, Any]) -> list[Tensor]:
        return [given["pixel_values"]]

    def frame_features(self, outputs: Any, sizes: Sequence[VideoSize] | None) -> Tensor:
        """Average the patches in the output of the tower's last layer; its first token is no patch."""
        states: Tensor | None = getattr(outputs, "last_hidden_state", None)
        if states is None:
            raise Unsupported(
                "the image features carry no last_hidden_state of the vision tower, which the method needs to compare "
                "frames; pass the output of get_image_features(..., return_dict=True)"
            )
        return states[:, 1:].float().mean(1)
