"""`adatp flops`: count the prefill FLOPs of a published model under a method's settings."""

import argparse
import json
from importlib.resources import files
from typing import Any

from adatp.checks.values import integer, require, shown
from adatp.cli import options
from adatp.errors import InputError

MOST_TEXT_TOKENS = 10**9
MOST_VISUAL_TOKENS = 10**8
PAPER = ("onevision-0.5b", "onevision-7b", "llava-video-7b")


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    flops = commands.add_parser(
        "flops",
        help="Count the prefill FLOPs of a published model.",
        description="Count the prefill FLOPs of a published model with and without pruning. Nothing is downloaded: the "
        "count needs the model's configuration only.",
    )
    flops.add_argument("--model", required=True, choices=(*PAPER, *_others()), help="Published model to count for.")
    options.add_method(flops)
    flops.add_argument(
        "--frames",
        type=options.whole,
        help="Number of frames sampled from the video; a model may join two to one (default: 20 or 32, those of the "
        "paper, for its models, and 32 for the others).",
    )
    flops.add_argument(
        "--grid",
        type=_grid,
        metavar="ROWSxCOLUMNS",
        help="Tokens of a frame as the decoder sees them, with newlines (default: those of the paper for its models, "
        "and those of a frame of 448 x 448 pixels for the others).",
    )
    flops.add_argument(
        "--text-tokens",
        type=options.whole,
        help="Number of prompt tokens that are not visual; time stamps and names of frames count, too (default: the "
        "number that reproduces the paper's figures for its models, and 128 for the others).",
    )
    options.add_json(flops)
    flops.set_defaults(command=_flops)


def _others() -> list[str]:
    """Return the names of the other models, without what `adatp.models` imports."""
    return list(json.loads((files("adatp") / "models" / "published.json").read_text(encoding="utf-8")))


def _grid(text: str) -> tuple[int, int]:
    """Parse a `ROWSxCOLUMNS` argument."""
    parts = text.lower().split("x")
    try:
        sides = [integer("it", int(part), least=1) for part in parts]
    except ValueError:
        sides = []
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNS, such as 16x16, got {shown(text)}")
    return sides[0], sides[1]


def _flops(arguments: argparse.Namespace) -> int:
    method = options.method_of(arguments)
    if arguments.frames is not None:
        options.require_positive(arguments, "frames")
    text_tokens = arguments.text_tokens
    if text_tokens is not None:
        require(0 <= text_tokens <= MOST_TEXT_TOKENS, "--text-tokens", text_tokens, f"from 0 to {MOST_TEXT_TOKENS}")

    from adatp.evaluation.published import count_flops, prompt_of
    from adatp.tables.run import print_flops

    prompt = prompt_of(arguments.model, frames=arguments.frames, grid=arguments.grid, text_tokens=text_tokens)
    (video,) = prompt.videos
    if video.grid.patch_columns < 1:
        raise InputError(f"--grid must have a column of tokens beside that of newlines, got {video.grid}")
    most = f"{MOST_VISUAL_TOKENS} visual tokens or fewer in all frames"
    require(video.tokens <= MOST_VISUAL_TOKENS, "--frames and --grid", video.tokens, most)
    flops, lengths = count_flops(prompt, method)
    if arguments.json:
        settings = {
            "model": arguments.model,
            "method": method.name,
            **method.settings(),
            "frames": video.frames,
            "grid": [video.grid.rows, video.grid.columns],
            "temporal_patch": video.temporal_patch,
            "visual_tokens": prompt.visual_tokens,
            "text_tokens": prompt.text_tokens,
        }
        print(json.dumps({**settings, **flops.to_dict(), "tokens_per_layer": lengths}))
    else:
        print_flops(prompt, method, flops, lengths)
    return 0
