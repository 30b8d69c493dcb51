"""What the page shows, of a small model."""

import numpy as np
import torch
from videollm import make_clip, make_inputs

from adatp.figures.page import Run, Study
from adatp.hf.attention_map import visual_attention
from adatp.pruning import apply
from adatp.small.untrained import Untrained
from adatp.video import Clip

METHODS = ("adatp", "fastv", "uniform")


def small_study(untrained: Untrained, question: str = "What happens?", frames: int = 10) -> Study:
    """Three methods on a clip of coloured blocks; its frames are dark, so that white over them is seen."""
    inputs = make_inputs(untrained, [question], frames)
    attention = visual_attention(untrained.model, inputs)
    runs = {}
    for name in METHODS:
        with (
            torch.no_grad(),
            apply(untrained.model, untrained.processor, name, relevance=untrained.relevance) as pruned,
        ):
            untrained.model(**inputs)
        report = pruned.report
        runs[name] = Run(
            name.upper(), f"settings of {name}", f"answer of {name}", report.flops.ratio, report.samples[0]
        )
    clip = Clip(make_clip(frames) // 2, np.arange(frames) / 4, frames / 4, frames, None)
    return Study("a model", "blocks.mp4", question, "the unpruned answer", clip, attention, runs, ("a note",))
