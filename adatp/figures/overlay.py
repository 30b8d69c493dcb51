"""Frames with their dropped tokens in white, as in the paper's figure 5."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adatp.layout import VideoSize
from adatp.report import Sample

COLUMNS = 8
VEIL = 0.82  # opacity of the white over a dropped token
NEWLINE = 60  # grey of a newline token
SIGNIFICANT, ORDINARY = "#d95f02", "#9aa0a6"
_WIDTH = 320  # width of a drawn frame, in pixels


def default_layers(sample: Sample) -> list[int]:
    """Return the layers to draw by default: the first pruned one, and the first with the final count."""
    return sorted({sample.first_cut, sample.kept.index(sample.kept[-1])})


def first_frames(size: VideoSize, total: int) -> list[int]:
    """Return the frame of a video to draw for each frame of the prompt: the first of a temporal patch.

    Args:
        size: size of the video in the prompt.
        total: number of the video's own frames.
    """
    return [own.start for own in size.own_frames(total)]


def patch_note(size: VideoSize) -> str:
    """Tell which frame of a temporal patch is drawn."""
    return f"each picture is the first of the {size.temporal_patch} frames of a temporal patch"


def veil(frame: np.ndarray, kept: np.ndarray, *, newlines: bool = False) -> np.ndarray:
    """Cover the dropped tokens of one frame with white.

    Args:
        frame: `[H, W, 3]` uint8.
        kept: `[rows, columns]` bool, the frame's token grid.
        newlines: whether the last column stands for newlines; it is drawn as a margin on the right.

    Returns:
        `[H, W', 3]` uint8; W' includes the margin.
    """
    margin = frame.shape[1] // (kept.shape[1] - 1) if newlines else 0
    frame = np.pad(frame, ((0, 0), (0, margin), (0, 0)), constant_values=NEWLINE)
    height, width = frame.shape[:2]
    mask = np.asarray(Image.fromarray(kept).resize((width, height), Image.Resampling.NEAREST))
    veiled = frame * (1 - VEIL) + 255 * VEIL
    return np.where(mask[..., None], frame, veiled).astype(np.uint8)


def draw_overlay(path: Path, frames: np.ndarray, times: Sequence[float], sample: Sample, layers: Sequence[int]) -> None:
    """Draw the frames at the inputs of some layers to a PNG. Significant segments have an orange frame.

    Of a temporal patch, the first frame is drawn, with the time of this frame.

    Args:
        path: file to write; ends in .png.
        frames: `[n, H, W, 3]` uint8, the video's own.
        times: n times in seconds, one for each frame.
        sample: the tokens that were kept.
        layers: the layers whose inputs to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (size,) = sample.videos
    drawn = first_frames(size, len(frames))
    frames, times = frames[drawn], [times[i] for i in drawn]
    significant = {i for s in sample.segments if s.significant for i in range(s.start, s.stop)}
    number = {i: k for k, s in enumerate(sample.segments) for i in range(s.start, s.stop)}
    rows = math.ceil(len(frames) / COLUMNS)
    columns = math.ceil(len(frames) / rows)
    height = round(_WIDTH * frames.shape[1] / frames.shape[2])
    small = [np.asarray(Image.fromarray(f).resize((_WIDTH, height), Image.Resampling.BICUBIC)) for f in frames]

    cell, grid = 1.6, sample.grid
    block = rows * (cell * height / _WIDTH + 0.22) + 0.4
    figure = Figure(figsize=(max(columns, 3) * cell, len(layers) * block), dpi=150, layout="constrained")
    for part, layer in zip(figure.subfigures(len(layers), 1, squeeze=False).flat, layers, strict=True):
        kept = sample.kept_mask(layer).view(-1, *grid.shape).numpy()
        share = sample.kept[layer] / sample.visual_tokens
        part.suptitle(f"layer {layer}: {sample.kept[layer]} of {sample.visual_tokens} tokens ({share:.1%})", fontsize=8)
        axes = part.subplots(rows, columns, squeeze=False).flatten()
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        for i, frame in enumerate(small):
            axes[i].imshow(veil(frame, kept[i], newlines=grid.newlines))
            axes[i].set_title(f"{times[i]:.1f} s · segment {number[i]}", fontsize=5, pad=2)
            axes[i].set_frame_on(True)
            for spine in axes[i].spines.values():
                spine.set_color(SIGNIFICANT if i in significant else ORDINARY)
                spine.set_linewidth(1.6 if i in significant else 0.6)
    notes = ["orange: segments that match the question"] if significant else []
    notes += [patch_note(size)] if size.temporal_patch > 1 else []
    if notes:
        figure.supxlabel("; ".join(notes), fontsize=6)
    FigureCanvasAgg(figure).print_png(str(path))
