"""`adatp run`: answer a question about a video."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from adatp.cli import options
from adatp.errors import InputError


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    run = commands.add_parser(
        "run",
        help="Answer a question about a video, with pruning.",
        description="Answer a question about a video with pruned visual tokens. Print the answer, the tokens at each "
        "layer, the segments, and the time to the first token.",
    )
    options.add_video(run)
    options.add_method(run)
    options.add_flops(run)
    run.add_argument(
        "--max-new-tokens", type=options.whole, default=64, help="Length limit of the answer, in tokens (default: 64)."
    )
    run.add_argument(
        "--compare",
        action="store_true",
        help="Run the unpruned model too, and print both results (default: the pruned model only).",
    )
    options.add_json(run)
    run.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE.png",
        help="Draw the frames with the dropped tokens in white to this file; needs matplotlib (default: no drawing).",
    )
    run.add_argument(
        "--layers",
        type=options.numbers,
        metavar="L,L,...",
        help="Layers that --overlay draws, counted from 0 (default: the first and the last cut).",
    )
    options.add_model(run)
    run.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "frames", "max_new_tokens")
    options.require_question(arguments.question)
    if arguments.layers and arguments.overlay is None:
        raise InputError("--layers chooses what --overlay draws; give --overlay FILE.png too, or leave --layers out")
    _check_overlay(arguments.overlay)
    with options.progress() as progress:
        from adatp.evaluation.session import run
        from adatp.figures.overlay import default_layers, draw_overlay
        from adatp.models import family_of
        from adatp.tables.run import print_run, run_to_dict

        method = options.method_of(arguments)
        options.device_of(arguments)
        clip, decoding = options.load_clip(arguments, progress.tell)
        loaded = options.load_model(arguments, progress.tell)
        depth = len(family_of(loaded.model).decoder.layers)
        method.check(depth)
        if any(not 0 <= layer < depth for layer in arguments.layers or ()):
            raise InputError(f"--layers must be from 0 to {depth - 1}, got {arguments.layers}")
        result = run(
            clip,
            decoding,
            arguments.question,
            loaded,
            method,
            flops=arguments.flops,
            max_new_tokens=arguments.max_new_tokens,
            compare=arguments.compare,
            impl=arguments.impl,
            tell=progress.tell,
        )
    notes = [note for note in (loaded.note, clip.note) if note] + progress.notes
    if arguments.json:
        print(json.dumps(run_to_dict(loaded.name, arguments.question, clip, result, notes), allow_nan=False))
    else:
        print_run(loaded.name, arguments.question, clip, result, notes)
    if arguments.overlay:
        sample = result.report.samples[0]
        layers = arguments.layers or default_layers(sample)
        draw_overlay(arguments.overlay, clip.frames, clip.times.tolist(), sample, layers)
        print(f"overlay written to {arguments.overlay}", file=sys.stderr)
    return 0


def _check_overlay(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise InputError(f"--overlay must name a .png file, got {path}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(f"--overlay cannot be written: {error}") from error
    if not existed:
        path.unlink()
    options.require_matplotlib(path, "--overlay")
