"""Measure the peak memory of a prefill on a long video, and the bytes of its KV cache, with and without pruning.

    python -m bench.memory [--frames 256] [--json FILE]

The peak counts tensors, including those inside kernels. It does not count memory that was in use before, such as the
model.
"""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import adatp
from adatp.small.untrained import load_untrained
from bench.harness import machine

RATIOS = ("unpruned", "2.0", "1.5", "1.0")  # p
HEADS, LAYERS, IMAGE = 8, 18, 196  # a LLaVA-OneVision with 49 tokens a frame

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from printing to stderr
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=256, help="Number of frames of the video (default: 256).")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write the results to (default: none).")
    arguments = parser.parse_args()
    errors = Console(stderr=True)
    rows = [measure(row, arguments.frames) for row in track(RATIOS, "measuring", console=errors)]
    result = {"machine": machine(), "frames": arguments.frames, "rows": rows}
    Console().print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def measure(row: str, frames: int) -> dict[str, Any]:
    """Measure the bytes of one prefill: its peak, the vision tower's peak, and its cache, measured and as reported."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    untrained = load_untrained(image_size=IMAGE, layers=LAYERS, heads=HEADS)
    model, relevance = untrained.model.to(device), untrained.relevance.to(device)
    side = IMAGE // 28
    ids = [6] * 12 + [model.config.video_token_id] * (frames * side * side + 1) + [7] * 40
    shots = torch.randn(8, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    video = shots.repeat_interleave(frames // len(shots) + 1, 0)[:frames]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values_videos": video[None]}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    pruning = (
        nullcontext()
        if row == "unpruned"
        else adatp.apply(model, method=adatp.AdaTP(p=float(row)), relevance=relevance, question="What happens?")
    )
    with pruning as pruned:
        # a short first run, because a first run needs extra memory
        short = frames // 16 * side * side
        model(
            input_ids=inputs["input_ids"][:, -(short + 41) :],
            pixel_values_videos=video[None, : frames // 16].to(device),
        )
        output, used = with_peak(lambda: model(**inputs, logits_to_keep=1, use_cache=True), device)
    _, tower = with_peak(lambda: model.model.get_video_features(inputs["pixel_values_videos"]), device)
    cache = output.past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    report = None if pruned is None else pruned.report
    return {
        "row": row,
        "peak_bytes": used,
        "tower_bytes": tower,
        "cache_bytes": held,
        "cache_bytes_reported": None if report is None else report.cache_bytes,
        "flops_ratio": 1.0 if report is None else round(report.flops.ratio, 4),
    }


def with_peak(run: Callable[[], T], device: str) -> tuple[T, int]:
    """Return the result of `run`, and the peak bytes of its tensors, without those that existed before.

    On a CPU, PyTorch's profiler counts the tensors of the calling thread.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return run(), torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        result = run()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return result, max(accumulate((event.nbytes() for event in events), initial=0))


def table(result: dict[str, Any]) -> Table:
    """Return a table with one line for each row, and ratios to the first row."""
    where = result["machine"]
    visual = result["frames"] * (IMAGE // 28) ** 2
    title = (
        f"one prefill, {result['frames']} frames, {visual} visual tokens, {LAYERS} layers of width {32 * HEADS}; "
        f"{where['gpu'] or where['cpu']}, {where['dtype']}, torch {where['torch']}; "
        f"the vision tower alone peaks at {result['rows'][0]['tower_bytes'] / 1e6:.1f} MB"
    )
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("p", "peak MB", "ratio", "KV cache MB", "ratio", "as reported", "FLOPs"):
        made.add_column(name, justify="right", no_wrap=True)
    whole = result["rows"][0]
    for row in result["rows"]:
        cells = []
        for name in ("peak_bytes", "cache_bytes"):
            cells += [f"{row[name] / 1e6:.1f}", f"{row[name] / whole[name]:.3f}"]
        same = row["cache_bytes_reported"] == row["cache_bytes"]
        told = "-" if row["cache_bytes_reported"] is None else "the same" if same else "OTHER"
        made.add_row(row["row"], *cells, told, f"{row['flops_ratio']:.1%}")
    return made


if __name__ == "__main__":
    main()
