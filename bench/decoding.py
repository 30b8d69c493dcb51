"""Measure what sampling frames costs by the size of the stored frames, and what scaling while decoding changes.

    python -m bench.decoding [--json FILE]

Each clip of 40 frames is sampled to 32 in a process of its own: the peak of its memory above that of a process that has
only imported the package, and of that the part that NumPy's arrays take. The rest is FFmpeg's: a decoder keeps whole
frames that later ones refer to.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate

from adatp.video import SHORTEST_EDGE, Limits, sample_frames
from bench.harness import machine
from bench.sample_video import sample_video

SIZES = {"480p": (854, 480), "1080p": (1920, 1080), "4K": (3840, 2160), "8K": (7680, 4320)}
CODECS = {"H.264": "libx264", "MJPEG": "mjpeg"}
BASE = "480p"
HEADS = ("codec", "stored", "arrays", "ratio", "process", "ratio", "time")

CHILD = """
import re, sys, time, tracemalloc
from adatp.video import sample_frames
import av.video.reformatter
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, begin = peak(), time.perf_counter()
if sys.argv[2] == "arrays":
    tracemalloc.start()
clip = sample_frames(sys.argv[1])
taken = tracemalloc.get_traced_memory()[1] if sys.argv[2] == "arrays" else peak() - before
print(taken, time.perf_counter() - begin, len(clip.frames))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write the results to (default: none).")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), codec, size) for codec in CODECS for size in SIZES]
    result = {"machine": machine(), "edge": SHORTEST_EDGE, "rows": rows, "difference": difference()}
    Console().print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, codec: str, size: str) -> dict[str, Any]:
    """Measure the memory, in bytes, and the time, in seconds, of sampling a clip of moving blocks."""
    path = folder / "a.mp4"
    write(path, CODECS[codec], *SIZES[size])
    arrays, _ = child(path, "arrays")
    runs = [child(path, "process") for _ in range(3)]
    process, seconds = (sorted(values)[1] for values in zip(*runs, strict=True))
    return {"codec": codec, "size": size, "arrays": arrays, "process": process, "seconds": seconds}


def child(path: Path, what: str) -> tuple[int, float]:
    command = [sys.executable, "-c", CHILD, str(path), what]
    taken, seconds, frames = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(frames) == 32
    return int(taken), float(seconds)


def write(path: Path, codec: str, width: int, height: int) -> None:
    import av

    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(40):
            blocks = draw.integers(0, 255, (9, 16, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(blocks, format="rgb24").reformat(width, height, stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def difference() -> dict[str, Any]:
    """Compare, on a real clip, the pixels that the model sees: scaled while decoding, and only afterwards."""
    video = sample_video("bigbuckbunny.mp4")
    scaled, stored = (
        seen(sample_frames(video, 32, shortest_edge=edge, limits=Limits())) for edge in (SHORTEST_EDGE, None)
    )
    levels = (scaled - stored).abs().flatten().numpy()
    within = {str(step): float((levels <= step).mean()) for step in (1, 2, 4, 8)}
    return {"video": video.name, "mean": float(levels.mean()), "largest": float(levels.max()), "within": within}


def seen(clip: Any) -> torch.Tensor:
    """Resize frames as the processor does: [n, 3, 384, 384], in levels of 255."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float()
    size = (SHORTEST_EDGE, SHORTEST_EDGE)
    each = [interpolate(frame[None], size=size, mode="bicubic", antialias=True) for frame in frames]
    return torch.cat(each).round().clamp(0, 255)


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table: the ratio is that to 480p by the same codec."""
    base = {row["codec"]: row for row in result["rows"] if row["size"] == BASE}
    return [
        [
            row["codec"],
            row["size"],
            f"{row['arrays'] / 2**20:.0f} MiB",
            f"{row['arrays'] / base[row['codec']]['arrays']:.2f}",
            f"{row['process'] / 2**20:.0f} MiB",
            f"{row['process'] / base[row['codec']]['process']:.2f}",
            f"{row['seconds']:.2f} s",
        ]
        for row in result["rows"]
    ]


def table(result: dict[str, Any]) -> Table:
    shown = Table(*HEADS, title="Sampling 32 of 40 frames", box=box.SIMPLE)
    for row in rows_of(result):
        shown.add_row(*row)
    shown.caption = in_words(result["difference"])
    return shown


def in_words(found: dict[str, Any]) -> str:
    """Return what scaling while decoding changes, as a sentence."""
    return (
        f"On a real clip ({found['video']}) the pixels that the model sees differ from those of "
        f"full-size frames by {found['mean']:.2f} of 255 levels on average, {found['within']['4']:.1%} of them by at "
        f"most 4, and by {found['largest']:.0f} at most."
    )


if __name__ == "__main__":
    main()
