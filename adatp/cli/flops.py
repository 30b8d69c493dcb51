"""`adatp flops`: count the prefill FLOPs of a published model under a method's settings."""

import argparse
import json
from typing import Any

from adatp.checks.values import require
from adatp.cli import options

MOST_TEXT_TOKENS = 10**9
SHAPES = ("onevision-0.5b", "onevision-7b", "llava-video-7b")


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    flops = commands.add_parser(
        "flops",
        help="Count the prefill FLOPs of a published model.",
        description="Count the prefill FLOPs of a published model with and without pruning. Nothing is downloaded: the "
        "count needs the model's configuration only.",
    )
    flops.add_argument("--model", required=True, choices=SHAPES, help="Published model to count for.")
    options.add_method(flops)
    flops.add_argument(
        "--text-tokens",
        type=options.whole,
        help="Number of prompt tokens that are not visual (default: the number that reproduces the paper's figures).",
    )
    options.add_json(flops)
    flops.set_defaults(command=_flops)


def _flops(arguments: argparse.Namespace) -> int:
    from adatp.evaluation.paper.shapes import MODEL_SHAPES, shape_flops
    from adatp.tables.run import print_flops

    shape, method = MODEL_SHAPES[arguments.model], options.method_of(arguments)
    text_tokens = shape.text_tokens if arguments.text_tokens is None else arguments.text_tokens
    require(0 <= text_tokens <= MOST_TEXT_TOKENS, "--text-tokens", text_tokens, f"from 0 to {MOST_TEXT_TOKENS}")
    method.check(shape.layers)
    flops, lengths = shape_flops(shape, method, text_tokens)
    if arguments.json:
        settings = {
            "model": arguments.model,
            "method": method.name,
            **method.settings(),
            "visual_tokens": shape.visual_tokens,
            "text_tokens": text_tokens,
        }
        print(json.dumps({**settings, **flops.to_dict(), "tokens_per_layer": lengths}))
    else:
        print_flops(arguments.model, method, flops, lengths, shape.visual_tokens, text_tokens)
    return 0
