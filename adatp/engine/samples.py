"""The report's entry for one prompt after its prefill. Nothing here reads the device."""

import torch
from torch import Tensor

from adatp.engine.compression import Compression
from adatp.engine.cuts import Cuts
from adatp.layout import by_layer
from adatp.report import Sample, Segment


def whole_sample(layers: int, length: int) -> Sample:
    """Describe a prompt of `length` tokens without a video: every layer sees all of it."""
    return Sample(
        videos=(),
        other_tokens=length,
        question=None,
        kept=(0,) * layers,
        similarity=None,
        segments=(),
        method=None,
        _visual=torch.zeros(0, dtype=torch.int64),
        _origins={},
    )


def cut_sample(cuts: Cuts, length: int, question: str | None) -> Sample:
    """Describe a prompt that was cut between the layers, after its prefill. Reads nothing from the device.

    Args:
        cuts: the cuts of the prompt.
        length: number of tokens of the prompt.
        question: the question that the frames were compared with; None if they were not compared.
    """
    plan, layout = cuts.plan, cuts.layout
    assert plan is not None, "a finished prefill has made its first cut"

    def kept(whole: int, after: Tensor) -> tuple[int, ...]:
        return tuple(by_layer(cuts.layers, whole, dict(zip(cuts.ratios, after.tolist(), strict=True))))

    home, similar, tokens = plan.segment_of_frame.tolist(), plan.similarity.tolist(), layout.frame_tokens
    segments = []
    for s in sorted(set(home)):
        members = [i for i, value in enumerate(home) if value == s]
        segments.append(
            Segment(
                start=members[0],
                stop=members[-1] + 1,
                similarity=None if question is None else sum(similar[i] for i in members) / len(members),
                significant=bool(plan.significant[s]),
                kept=kept(sum(tokens[members[0] : members[-1] + 1]), plan.kept[:, s]),
            )
        )
    return Sample(
        videos=layout.videos,
        other_tokens=length - layout.visual_tokens,
        question=question,
        kept=kept(layout.visual_tokens, plan.kept.sum(1)),
        similarity=None if question is None else tuple(similar),
        segments=tuple(segments),
        method=plan.method,
        _visual=layout.visual,
        _origins={layer: origin[0] for layer, origin in cuts.origins.items()},
    )


def compressed_sample(compression: Compression, layers: int, length: int) -> Sample:
    """Describe a prompt of `length` tokens whose videos were pruned before the decoder with `layers` layers."""
    layout, kept = compression.layout, (compression.kept,) * layers
    assert compression.left is not None, "a finished prefill has been compressed"
    return Sample(
        videos=layout.videos,
        other_tokens=length - layout.visual_tokens,
        question=None,
        kept=kept,
        similarity=None,
        segments=(Segment(0, layout.frames, None, False, kept),),
        method=compression.method,
        _visual=layout.visual,
        _origins={0: compression.left},
    )
