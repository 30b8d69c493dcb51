"""An HTML page with a model's attention and the tokens that methods keep. It needs no server and no network."""

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
from adatp.figures.overlay import first_frames
from adatp.hf.attention_map import AttentionMap
from adatp.report import Sample
from adatp.video import Clip

FRAME_SIDES = (640, 480, 384, 320, 256, 192, 128)  # pixels of a frame's longer side, in the order they are tried
FRAMES_BYTES = 1_500_000  # largest size of all frames together
_PLACE = "@STUDY@"  # the template's mark for the data


@dataclass(frozen=True)
class Run:
    """A method's run on the clip.

    Attributes:
        name: name of the method, as it is shown.
        settings: its settings, on one line.
        answer: the model's answer.
        flops: FLOPs of the prefill over those of the unpruned prefill.
        sample: the tokens that were kept.
    """

    name: str
    settings: str
    answer: str
    flops: float
    sample: Sample


@dataclass(frozen=True)
class Study:
    """The content of the page.

    Attributes:
        model: name of the model.
        video: name of the video file.
        question: the question.
        answer: the unpruned model's answer.
        clip: the frames; of a temporal patch, the first is shown.
        attention: attention of the unpruned model.
        runs: runs of the methods, by the name that selects the method, in the order of the page.
        notes: notes for the reader on the limits of the results.
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
        InputError: the layers, frames and tokens of a run differ from those of the attention.
    """
    for name, run in study.runs.items():
        shown, kept = tuple(study.attention.scores.shape), run.sample
        if (len(kept.kept), kept.frames, kept.tokens_per_frame) != shown:
            raise InputError(
                f"runs[{name!r}] must have the attention's {shown} layers, frames and tokens a frame, "
                f"got {(len(kept.kept), kept.frames, kept.tokens_per_frame)}"
            )
    before, after = files("adatp.figures").joinpath("page.html").read_text(encoding="utf-8").split(_PLACE)
    # without "<", no text in the data can close the script element around it
    data = json.dumps(_study(study), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(f"{before}{data}{after}", encoding="utf-8")


def _study(study: Study) -> dict[str, Any]:
    attention, clip = study.attention, study.clip
    (size,) = attention.videos
    drawn = first_frames(size, len(clip.frames))
    return {
        "model": study.model,
        "video": {"name": study.video, "duration": clip.duration},
        "question": study.question,
        "answer": study.answer,
        "notes": list(study.notes),
        "grid": [attention.grid.rows, attention.grid.columns, attention.grid.patch_columns],
        "times": [round(time, 3) for time in clip.times[drawn].tolist()],
        "frames": _jpegs(clip.frames[drawn]),
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
        "scores": _base64(levels.numpy().astype("<u2").tobytes()),  # as shares of the layer's `most`
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
    """Encode `[n, H, W, 3]` uint8 frames, at the largest size that fits into `FRAMES_BYTES`."""
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
    """Pack `[N, n, c]` bool to one bit for each token. Each layer begins at a new byte."""
    return _base64(np.packbits(masks.flatten(1).numpy(), axis=1).tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _short(values: Iterable[Any]) -> list[float]:
    """Round to five digits, which is finer than a pixel."""
    return [float(f"{float(value):.5g}") for value in values]
