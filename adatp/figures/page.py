"""One HTML page that shows where a model looks and what each method keeps; it needs no server and no network."""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adatp.errors import InputError
from adatp.evaluation import bias
from adatp.evaluation.bias import Bias
from adatp.hf.attention_map import AttentionMap
from adatp.report import Sample
from adatp.video import Clip

FRAME_SIDES = (640, 480, 384, 320, 256, 192, 128)  # pixels of a frame's longer side; the first that fits is taken ...
FRAMES_BYTES = 1_500_000  # ... into this, all frames together
_PLACE = "@STUDY@"  # where the template takes its data


@dataclass(frozen=True)
class Run:
    """A method on the clip.

    Attributes:
        name: how it is written.
        settings: in a line.
        answer: what the model said.
        flops: FLOPs of the prefill over those of the unpruned one.
        sample: what was kept.
    """

    name: str
    settings: str
    answer: str
    flops: float
    sample: Sample


@dataclass(frozen=True)
class Study:
    """What the page shows.

    Attributes:
        model: its name.
        video: the file's name.
        question: what was asked.
        answer: what the unpruned model said.
        clip: the frames.
        attention: of the unpruned model.
        runs: the methods, by what they are asked for as, in the order of the page.
        notes: what a reader has to know to take nothing for more than it is.
    """

    model: str
    video: str
    question: str
    answer: str
    clip: Clip
    attention: AttentionMap
    runs: dict[str, Run]
    notes: tuple[str, ...] = ()


def write_page(path: Path, study: Study) -> None:
    """Write the page.

    Raises:
        InputError: a run that does not have the frames, tokens and layers of the attention.
    """
    for name, run in study.runs.items():
        shown, kept = tuple(study.attention.scores.shape), run.sample
        if (len(kept.kept), kept.frames, kept.tokens_per_frame) != shown:
            raise InputError(
                f"runs[{name!r}] must have the attention's {shown} layers, frames and tokens a frame, "
                f"got {(len(kept.kept), kept.frames, kept.tokens_per_frame)}"
            )
    before, after = files("adatp.figures").joinpath("page.html").read_text(encoding="utf-8").split(_PLACE)
    # what the page's data holds cannot end the script element that it is in
    data = json.dumps(_study(study), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(f"{before}{data}{after}", encoding="utf-8")


def _study(study: Study) -> dict[str, Any]:
    attention, clip = study.attention, study.clip
    return {
        "model": study.model,
        "video": {"name": study.video, "duration": clip.duration},
        "question": study.question,
        "answer": study.answer,
        "notes": list(study.notes),
        "grid": list(attention.grid),
        "times": [round(time, 3) for time in clip.times.tolist()],
        "frames": _jpegs(clip.frames),
        "lastFrames": min(bias.LAST_FRAMES, attention.frames),
        "ends": bias.frames_at_ends(attention.frames).tolist(),
        **_attention(attention),
        "runs": [_run(name, run) for name, run in study.runs.items()],
    }


def _attention(attention: AttentionMap) -> dict[str, Any]:
    scores = attention.scores
    found = bias.measure(scores, attention.grid)
    times_mean = scores / scores.mean((1, 2), keepdim=True)
    most = times_mean.amax((1, 2))
    levels = (times_mean / most[:, None, None] * 65535).round()
    layers = [
        {
            "perFrame": _short(found.per_frame[layer]),
            "perPosition": _short(found.per_position[layer].flatten()),
            "most": most[layer].item(),
            "inLast": found.in_last[layer].item(),
            "kinds": kinds.tolist(),
            "peak": {name: values[layer].item() for name, values in found.peak._asdict().items()},
        }
        for layer, kinds in enumerate(bias.shares(found.kinds))
    ]
    return {
        "layers": layers,
        "scores": _base64(levels.numpy().astype("<u2").tobytes()),  # of each layer's `most`, over the layer's mean
        "kinds": [_bits(found.kinds == kind) for kind in Bias if kind],
    }


def _run(name: str, run: Run) -> dict[str, Any]:
    sample = run.sample
    return {
        "id": name,
        "name": run.name,
        "settings": run.settings,
        "answer": run.answer,
        "flops": run.flops,
        "kept": list(sample.kept),
        "masks": _bits(torch.stack([sample.kept_mask(layer) for layer in range(len(sample.kept))])),
        "similarity": None if sample.similarity is None else _short(sample.similarity),
        "segments": [
            {"start": s.start, "stop": s.stop, "similarity": s.similarity, "significant": s.significant}
            for s in sample.segments
        ],
    }


def _jpegs(frames: np.ndarray) -> dict[str, Any]:
    """`[n, H, W, 3]` uint8 frames, as large as all of them may be."""
    height, width = frames.shape[1:3]
    for side in FRAME_SIDES:
        scale = min(1.0, side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        files = [_jpeg(frame, size) for frame in frames]
        if sum(map(len, files)) <= FRAMES_BYTES:
            break
    return {"width": size[0], "height": size[1], "jpeg": [_base64(file) for file in files]}


def _jpeg(frame: np.ndarray, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def _bits(masks: Tensor) -> str:
    """`[N, n, c]` bool, a bit a token; each layer begins with a byte of its own."""
    return _base64(np.packbits(masks.flatten(1).numpy(), axis=1).tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _short(values: Iterable[Any]) -> list[float]:
    """Five digits are more than a pixel shows."""
    return [float(f"{float(value):.5g}") for value in values]
