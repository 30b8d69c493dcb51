"""`adatp tables`: print the FLOPs columns of the paper's Tab. 1, 2 and 3 beside ours."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatp.cli import options
from adatp.errors import InputError

if TYPE_CHECKING:  # the command line starts without torch
    from adatp.evaluation.paper.rows import Row
    from adatp.evaluation.session import Loaded
    from adatp.methods import AdaTP
    from adatp.report import Sample

QUESTION = "What happens in this video?"
STANDIN = (
    "the runs are on stand-ins made here: as many layers, frames and tokens a frame as the published models have, but "
    "narrow, with random weights. Their scores are those of random weights, and segments come from the real frames' "
    "features through a random tower: the figures show the mechanism, not the paper's models"
)


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "tables",
        help="Print the FLOPs columns of the paper's tables beside ours.",
        description="Compute the FLOPs columns of the paper's Tab. 1, 2 and 3 and print them beside the paper's. "
        "Without --model, videos run on narrow stand-ins with random weights.",
    )
    parser.add_argument(
        "videos",
        nargs="*",
        metavar="VIDEO",
        help="Path of a video to run AdaTP on, for the rows whose FLOPs depend on the video (default: no video; these "
        "rows show an upper bound).",
    )
    options.add_limits(parser)
    options.add_json(parser)
    options.add_model(parser)
    parser.set_defaults(command=tables)


def tables(arguments: argparse.Namespace) -> int:
    """Run the command."""
    if arguments.model is not None and not arguments.videos:
        raise InputError("--model says what to run videos on; give a VIDEO too, or leave --model out")
    notes: list[str] = []
    with options.progress() as progress:
        from adatp.evaluation.paper.rows import Counter, published_rows, with_runs
        from adatp.tables.paper import print_tables, tables_to_dict

        progress.tell("counting")
        count = Counter()
        rows = published_rows(count)
        if arguments.videos:
            runs, notes = _run(rows, _models(arguments, progress), arguments, progress)
            rows = with_runs(rows, runs, count)
    notes += progress.notes
    if arguments.json:
        print(json.dumps(tables_to_dict(rows, count, notes), allow_nan=False))
    else:
        print_tables(rows, count, notes)
    return 0


def _models(arguments: argparse.Namespace, progress: options.Progress) -> "dict[str, Loaded]":
    """Return a model for each published one, by name.

    Without `--model`, each has a stand-in. A checkpoint stands for the published models with its layers and grid.
    """
    import torch

    from adatp.evaluation.paper.shapes import MODEL_SHAPES
    from adatp.evaluation.paper.standin import load_standin
    from adatp.evaluation.session import Loaded
    from adatp.models import family_of

    device = options.device_of(arguments)
    if arguments.model is not None:
        loaded = options.load_model(arguments, progress.tell)
        family = family_of(loaded.model)
        layout = len(family.decoder.layers), family.grid
        layouts = {name: (shape.layers, shape.grid) for name, shape in MODEL_SHAPES.items()}
        matching = {name: loaded for name, known in layouts.items() if known == layout}
        if not matching:
            known = "; ".join(f"{name}: {layers} and {grid}" for name, (layers, grid) in layouts.items())
            raise InputError(
                f"--model {arguments.model} has {layout[0]} decoder layers and a grid of {layout[1]} tokens a frame; "
                f"the paper's models have {known}"
            )
        return matching
    progress.tell("making the stand-ins")
    dtype = torch.float32 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    standins = {}
    for name, shape in MODEL_SHAPES.items():
        model, processor, relevance = load_standin(shape, arguments.attention)
        given = {"auto": relevance.to(device, dtype), "none": None}
        standins[name] = Loaded(
            "stand-in", model.to(device, dtype), processor, given.get(arguments.relevance, arguments.relevance), STANDIN
        )
    return standins


def _run(
    rows: "Sequence[Row]", models: "dict[str, Loaded]", arguments: argparse.Namespace, progress: options.Progress
) -> "tuple[dict[tuple[str, AdaTP], dict[str, Sample]], list[str]]":
    """Run AdaTP on the videos. Return the samples, as `with_runs` takes them, and notes for the user."""
    from adatp.evaluation.paper.rows import open_settings
    from adatp.evaluation.paper.shapes import MODEL_SHAPES
    from adatp.evaluation.session import decode, run

    runs: dict[tuple[str, AdaTP], dict[str, Sample]] = {}
    notes = [f"the runs ask: {QUESTION}"]
    for video in arguments.videos:
        for name, loaded in models.items():
            frames, file = MODEL_SHAPES[name].frames, Path(video).name
            progress.tell(f"decoding {file}")
            clip, seconds = decode(video, frames, options.limits_of(arguments))
            if len(clip.frames) < frames:
                raise InputError(f"{video} has {len(clip.frames)} frames; {name} takes {frames} in the paper's setting")
            notes += [note for note in (loaded.note or f"the runs of {name} are on {loaded.name}", clip.note) if note]
            methods = open_settings(rows, name)
            for number, method in enumerate(methods, 1):
                progress.tell(f"{file} on {name}, run {number} of {len(methods)}")
                result = run(
                    clip,
                    seconds,
                    QUESTION,
                    loaded,
                    method,
                    max_new_tokens=1,
                    compare=False,
                    impl=arguments.impl,
                    tell=lambda step: None,
                )
                runs.setdefault((name, method), {})[video] = result.report.samples[0]
    return runs, list(dict.fromkeys(notes))
