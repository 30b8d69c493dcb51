"""Time of each stage from a video file to the first token."""

from pathlib import Path
from typing import Any

import torch

from adatp.evaluation.measure import applied
from adatp.evaluation.session import Loaded, decode, inputs_of
from adatp.hf.stopwatch import now
from adatp.methods import Method
from adatp.models import family_of
from adatp.relevance import Relevance
from adatp.video import Limits
from bench.e2e.exclusive import Exclusive
from bench.e2e.models import Build
from bench.e2e.prefill import causal

QUESTION, ANOTHER = "What happens in the street?", "Who?"  # different, because a repeated question is not encoded again
RELEVANCE = ("SigLIP layer", "SigLIP head", "SigLIP text tower")
LAYER = "tower layer"


@torch.inference_mode()
def stages(loaded: Loaded, build: Build, video: Path, frames: int, method: Method | None) -> dict[str, Any]:
    """Measure every stage of one request, after a short first request.

    Args:
        loaded: the model.
        build: the build of the model.
        video: path of a video file.
        frames: number of frames to sample.
        method: the method to prune with; None for no pruning.

    Returns:
        `frames`, the number of sampled frames; `seconds` by stage; `missing_tower`, the estimated seconds of the vision
        tower's missing layers, from the time of one layer. For a pruned video also `kept`, the visual tokens at every
        layer's input, and `ratio_causal`, the decoder's FLOPs over the unpruned ones.
    """
    assert isinstance(loaded.relevance, Relevance)
    body = loaded.model.model
    tower, layers = body.vision_tower, body.vision_tower.encoder.layers
    with applied(loaded, method) as pruned:
        short, _ = decode(str(video), 2, Limits())
        loaded.model.generate(**inputs_of(loaded, short, ANOTHER), max_new_tokens=1, do_sample=False)
        clip, decoding = decode(str(video), frames, Limits())
        begin = now()
        inputs = inputs_of(loaded, clip, QUESTION)
        preprocessing = now() - begin
        with Exclusive() as spent:
            spent.watch("vision tower", tower)
            for layer in layers:
                spent.watch(LAYER, layer)
            spent.watch("projector", body.multi_modal_projector)
            for layer in loaded.relevance.layers:
                spent.watch(RELEVANCE[0], layer)
            spent.watch(RELEVANCE[1], loaded.relevance.head)
            spent.watch(RELEVANCE[2], loaded.relevance.text_model)
            spent.watch("decoder", family_of(loaded.model).decoder)
            begin = now()
            loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            generating = now() - begin
        report = None if pruned is None else pruned.report
    own = spent.seconds
    seconds = {
        "video decoding": decoding,
        "preprocessing": preprocessing,
        "vision tower": own["vision tower"] + own[LAYER],
        "projector": own["projector"],
        **{name: own[name] for name in RELEVANCE},
        "decoder": own["decoder"],
        "rest": generating - sum(own.values()),
    }
    found = {
        "frames": len(clip.frames),
        "seconds": seconds,
        "missing_tower": own[LAYER] / len(layers) * build.missing_tower_layers,
    }
    if report is None:
        return found
    return {**found, "kept": list(report.samples[0].kept), "ratio_causal": causal(report.flops)}
