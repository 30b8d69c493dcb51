"""From a video file to the first token: what each stage takes."""

from pathlib import Path
from typing import Any

import torch

import adatp
from adatp.methods import Method
from adatp.models import family_of
from adatp.run import Loaded, decode, inputs_of
from adatp.stopwatch import Stopwatch, now
from e2e.models import Build

QUESTION = "What happens in the street?"


@torch.inference_mode()
def stages(loaded: Loaded, build: Build, video: Path, frames: int, method: Method) -> dict[str, Any]:
    """Seconds of every stage of one request, once it is warm.

    Args:
        loaded: the model.
        build: how it was built.
        video: a file.
        frames: to sample.
        method: to prune with.

    Returns:
        `seconds` by stage, "tower layer" being one of the vision tower's, the mean; and `whole_tower`, what all of the
        published tower's layers would take at that, which is measured where it has them all.
    """
    clip, decoding = decode(str(video), frames)
    begin = now()
    inputs = inputs_of(loaded, clip, QUESTION)
    preprocessing = now() - begin
    relevance, body, family = loaded.relevance, loaded.model.model, family_of(loaded.model)
    assert not isinstance(relevance, str)
    assert relevance is not None
    tower_layers = list(body.vision_tower.encoder.layers)
    watched = {
        "vision tower": [body.vision_tower],
        "tower layers": tower_layers,
        "projector": [body.multi_modal_projector],
        "SigLIP layer": list(relevance.layers),
        "SigLIP head": [relevance.head],
        "SigLIP text tower": [relevance.text_model],
        "decoder": [family.decoder],
    }
    with adatp.apply(loaded.model, loaded.processor, method, relevance=relevance), Stopwatch(watched) as watch:
        begin = now()
        loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        generating = now() - begin
    seconds = watch.seconds
    layer = seconds.pop("tower layers") / len(tower_layers)
    seconds["decoder"] -= sum(value for name, value in seconds.items() if name.startswith("SigLIP"))
    first = {"video decoding": decoding, "preprocessing": preprocessing, **seconds}
    first["rest"] = generating - sum(seconds.values())
    whole = seconds["vision tower"] + layer * (build.missing_tower_layers)
    return {"frames": len(clip.frames), "seconds": first, "tower_layer": layer, "whole_tower": whole}
