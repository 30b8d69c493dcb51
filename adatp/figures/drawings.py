"""The paper's figures of attention bias and of kept tokens, as PNGs. Each function takes arrays and writes a file."""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adatp.evaluation.bias import Bias
from adatp.figures.overlay import veil

LAYERS = 32  # largest number of layers in a figure, evenly chosen
ACROSS = 16  # number of frames side by side
# similar to the paper's red and green; Okabe and Ito's colours, distinct with any colour vision
COLOURS = {Bias.ENDS: "#d55e00", Bias.POSITION: "#009e73", Bias.BOTH: "#5b3fa8", Bias.NEITHER: "#7d848d"}
NAMES = {
    Bias.ENDS: "at the ends (global bias)",
    Bias.POSITION: "at a recurring position (local bias)",
    Bias.BOTH: "both",
    Bias.NEITHER: "neither",
}
_BARS, _REST = "#4b86bb", "#d0cec8"
_FRAME_WIDTH, _GAP = 160, 4  # pixels


def draw_per_frame(path: Path, per_frame: np.ndarray, title: str) -> None:
    """Draw figures 2 and 7: the attention to each frame.

    Args:
        path: file to write; ends in .png.
        per_frame: `[N, n]` attention to each frame, as `adatp.evaluation.bias.per_frame` returns it.
        title: the question and the model.
    """
    figure, panels = _panels(per_frame, columns=4, cell=(3.0, 1.25), title=title)
    for layer, axis in panels.items():
        axis.bar(np.arange(per_frame.shape[1]), 100 * per_frame[layer], width=0.85, color=_BARS)
        axis.axhline(100 * per_frame[layer].mean(), color="#565d66", linewidth=0.7, linestyle=":")
        axis.set_xlim(-0.5, per_frame.shape[1] - 0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("frame", fontsize=8)
    figure.supylabel("attention to its tokens, % of the text's; dotted: the mean", fontsize=8)
    _write(figure, path)


def draw_per_position(path: Path, per_position: np.ndarray, title: str, *, newlines: bool = False) -> None:
    """Draw figures 3 and 6: the attention to each position.

    Args:
        path: file to write; ends in .png.
        per_position: `[N, rows, columns]` over the mean, as `adatp.evaluation.bias.per_position` returns it.
        title: the question and the model.
        newlines: whether the last column holds newlines; it is drawn apart from the others.
    """
    figure, panels = _panels(per_position, columns=8, cell=(1.45, 1.5), title=title)
    for layer, axis in panels.items():
        picture = per_position[layer]
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        if newlines:
            picture = np.insert(picture, picture.shape[1] - 1, np.nan, axis=1)
        axis.imshow(picture, cmap="Blues", vmin=0, interpolation="nearest")
        axis.set_title(f"layer {layer}: {per_position[layer].max():.2f}x at {row}, {column}", fontsize=6, loc="left")
        axis.set_axis_off()
    note = "; at the right, newlines" if newlines else ""
    figure.supxlabel(f"attention to each position in all frames; peak over mean at row, column{note}", fontsize=8)
    _write(figure, path)


def draw_top_tokens(path: Path, scores: np.ndarray, kinds: np.ndarray, title: str) -> None:
    """Draw figure 1 for every layer: the scores along the sequence, with the top 10 % in colour.

    Args:
        path: file to write; ends in .png.
        scores: `[N, n, c]`.
        kinds: `[N, n, c]` as `adatp.evaluation.bias.classify` returns them.
        title: the question and the model.
    """
    figure, panels = _panels(scores, columns=2, cell=(6.0, 0.95), title=title)
    for layer, axis in panels.items():
        heights = (scores[layer] / scores[layer].mean()).flatten()
        found = kinds[layer].flatten()
        axis.fill_between(np.arange(len(heights)), heights, step="mid", color=_REST, linewidth=0)
        for kind, colour in COLOURS.items():
            (places,) = np.nonzero(found == kind)
            axis.vlines(places, 0, heights[places], color=colour, linewidth=0.6)
        axis.set_yscale("function", functions=(np.sqrt, np.square))
        axis.set_ylim(0, heights.max())
        axis.set_yticks([0, heights.max()], ["0", f"{heights.max():.1f}x"])
        axis.set_xlim(0, len(heights))
        axis.spines[["top", "right"]].set_visible(False)
    handles = [_line(colour) for colour in COLOURS.values()]
    figure.legend(handles, [NAMES[kind] for kind in COLOURS], loc="outside lower center", ncols=4, fontsize=7)
    figure.supylabel("attention to a token over the mean, root scale", fontsize=8)
    _write(figure, path)


def draw_kept(
    path: Path, frames: np.ndarray, kept: dict[str, np.ndarray], title: str, *, newlines: bool = False
) -> None:
    """Draw figure 5: the frames of each method, with dropped tokens in white.

    Args:
        path: file to write; ends in .png.
        frames: `[n, H, W, 3]` uint8.
        kept: `[n, rows, columns]` bool, by the method's name.
        title: the question, the model, and the layer whose input is drawn.
        newlines: whether the last column of a frame holds newlines.
    """
    height = round(_FRAME_WIDTH * frames.shape[1] / frames.shape[2])
    small = [np.asarray(Image.fromarray(f).resize((_FRAME_WIDTH, height), Image.Resampling.LANCZOS)) for f in frames]
    sheets = {
        name: _sheet([veil(*pair, newlines=newlines) for pair in zip(small, masks, strict=True)])
        for name, masks in kept.items()
    }
    first = next(iter(sheets.values()))
    width = 12.0
    figure = _figure((width, 0.5 + len(sheets) * (width * first.shape[0] / first.shape[1] + 0.3)))
    for axis, (name, sheet) in zip(figure.subplots(len(sheets), 1, squeeze=False).flat, sheets.items(), strict=True):
        count, total = int(kept[name].sum()), kept[name].size
        axis.imshow(sheet, interpolation="lanczos")
        axis.set_title(f"{name}: {count} of {total} tokens ({count / total:.1%})", fontsize=8, loc="left", pad=3)
        axis.set_axis_off()
    _title(figure, title)
    _write(figure, path)


def _sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """Join pictures of one size on white, `ACROSS` of them side by side."""
    height, width = pictures[0].shape[:2]
    across = min(ACROSS, len(pictures))
    down = math.ceil(len(pictures) / across)
    sheet = np.full((down * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // across * (height + _GAP), i % across * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _panels(values: np.ndarray, columns: int, cell: tuple[float, float], title: str) -> tuple[Any, dict[int, Any]]:
    """Return a figure, and by layer the axes of each drawn layer, `cell` inches each."""
    depth = len(values)
    shown = sorted(set(np.linspace(0, depth - 1, min(depth, LAYERS)).round().astype(int).tolist()))
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = _figure((columns * cell[0], rows * cell[1] + 0.7))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(shown) :]:
        axis.remove()
    panels = dict(zip(shown, axes, strict=False))
    for layer, axis in panels.items():
        axis.set_title(f"layer {layer}", fontsize=7, loc="left", pad=2)
        axis.tick_params(labelsize=6, length=2)
    _title(figure, title)
    return figure, panels


def _title(figure: Any, title: str) -> None:
    lines = textwrap.fill(title, width=round(9 * figure.get_figwidth()))
    figure.suptitle(lines, fontsize=9, parse_math=False)  # a question may contain dollar signs


def _figure(inches: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=inches, dpi=150, layout="constrained")


def _line(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=3)


def _write(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path))
