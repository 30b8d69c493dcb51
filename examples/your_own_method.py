"""Write a method of your own, and run it on the same engine as the others.

This one drops whole frames before the decoder: of every k frames it keeps the first.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import adatp
from adatp.evaluation.heldout import paper_of
from adatp.layout import Grid
from adatp.methods.method import BeforeDecoder, Video
from adatp.small.checkpoint import FOLDER


@dataclass(frozen=True)
class EveryOtherFrame(BeforeDecoder):
    """One frame of every `stride`, the first of them, with all of its tokens."""

    name: ClassVar[str] = "every-other-frame"

    stride: int = 2

    def count(self, frames: int, grid: Grid) -> int:
        """Tokens that are left of a video: what every layer will see, known before anything runs."""
        return -(-frames // self.stride) * grid.tokens

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        """Which of the n * c tokens are left, `[W]`, and what they are, `[W, D]`."""
        tokens = video.tokens  # [n, c, D]
        index = torch.arange(tokens[..., 0].numel(), device=tokens.device).view(tokens.shape[:2])
        return index[:: self.stride].flatten(), tokens[:: self.stride].flatten(0, 1)


model = AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype="float32")
processor = adatp.load_processor(FOLDER / "model")
paper = paper_of("heldout", 101, questions=4, options=False)
clip = paper.clip()

for asked in paper.questions:
    content = [{"type": "video"}, {"type": "text", "text": asked.text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, videos=[clip.frames], video_metadata=[clip.metadata], return_tensors="pt")
    print(f"{asked.text}  (right: {asked.answer})")
    for method in (EveryOtherFrame(), EveryOtherFrame(stride=4)):
        with adatp.apply(model, processor, method) as pruned:
            output = model.generate(**inputs, max_new_tokens=8)
        said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        print(f"  stride {method.stride}, {100 * pruned.report.flops.ratio:.1f} % of the FLOPs: {said}")
