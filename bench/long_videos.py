"""Measure how the cuts of a prefill grow with the length of a video whose frames have text between them.

    python -m bench.long_videos [--json FILE]

All cuts of one prompt run on random tensors: 36 decoder layers, 24 tokens a frame, 10 tokens of text before each frame.
The peak counts all tensors that exist during the cuts, beyond those that a layer gives: hidden states and keys.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from adatp.engine.cuts import Cuts
from adatp.layout import Grid, PromptLayout, VideoSize
from adatp.methods import AdaTP
from bench.harness import machine
from bench.memory import with_peak

FRAMES = (96, 192, 384, 768)
GRID, STAMP, TEXT = Grid(4, 6), 10, 40
LAYERS, HEADS, GROUPS, DIM, WIDTH = 36, 32, 8, 64, 256
ROUNDS = 5
HEAD = ("frames", "tokens", "peak", "bytes a token", "ratio", "time", "time a token", "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write the results to (default: none).")
    arguments = parser.parse_args()
    result = {"machine": machine(), "rows": measure(FRAMES)}
    table = Table(*HEAD, title="All cuts of one prompt", box=box.SIMPLE)
    for row in rows_of(result):
        table.add_row(*row)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the seconds and the peak bytes of all cuts, by the number of frames; the lengths take turns."""
    videos = {frames: LongVideo(frames) for frames in lengths}
    seconds: dict[int, list[float]] = {frames: [] for frames in lengths}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for frames, video in videos.items():
            seconds[frames].append(video.cut())
    return [
        {
            "frames": frames,
            "tokens": video.layout.length,
            "bytes": with_peak(video.cut, "cpu")[1],
            "seconds": median(seconds[frames][1:]),
        }
        for frames, video in videos.items()
    ]


class LongVideo:
    """A prompt with one video on random tensors, on the CPU. Shots have four frames.

    Args:
        frames: number of frames that the decoder sees.
    """

    def __init__(self, frames: int) -> None:
        torch.manual_seed(0)
        begins = tuple(STAMP + frame * (STAMP + GRID.tokens) for frame in range(frames))
        end = begins[-1] + GRID.tokens
        self.layout = PromptLayout(
            length=end + TEXT,
            begins=begins,
            rows=torch.arange(end, end + TEXT),
            videos=(VideoSize(frames, GRID),),
        )
        self._frames = torch.randn(-(-frames // 4), 64).repeat_interleave(4, 0)[:frames]
        self._similarity = torch.rand(frames) - 0.4
        self._given = [torch.randn(1, self.layout.length, width) for width in (WIDTH, DIM, DIM)]
        self._query = torch.randn(1, HEADS, TEXT, DIM)
        self._key = torch.randn(1, GROUPS, self.layout.length, DIM)

    @torch.no_grad()
    def cut(self) -> float:
        """Make all cuts, and return the seconds that they took."""
        begin = time.perf_counter()
        cuts = Cuts(AdaTP(), LAYERS, self.layout, frames=self._frames, similarity=self._similarity)
        tokens = cuts.tokens(*self._given)
        for layer in cuts.ratios:
            tokens = cuts.cut(layer, tokens, self._query, self._key[:, :, : tokens.width], DIM**-0.5)
        return time.perf_counter() - begin


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table: ratios are those of a token to the shortest video."""
    first, *_ = result["rows"]
    rows = []
    for row in result["rows"]:
        size, took = (row[name] / row["tokens"] for name in ("bytes", "seconds"))
        size_ratio, time_ratio = size / (first["bytes"] / first["tokens"]), took / (first["seconds"] / first["tokens"])
        rows.append(
            [
                f"{row['frames']}",
                f"{row['tokens']}",
                f"{row['bytes'] / 2**20:.0f} MiB",
                f"{size:.0f}",
                f"{size_ratio:.2f}",
                f"{1e3 * row['seconds']:.0f} ms",
                f"{1e6 * took:.1f} µs",
                f"{time_ratio:.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
