"""`adatp compare`: run several methods on one video."""

import argparse
import json
from typing import Any

from adatp.cli import options


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    compare = commands.add_parser(
        "compare",
        help="Compare several methods on one video.",
        description="Run several methods on one question about a video. Print the tokens, FLOPs and prefill time of "
        "each method, and how far its next-token distribution is from the unpruned model's.",
    )
    options.add_video(compare)
    pruning = [name for name in options.METHODS if name != "none"]
    told = (
        f"Methods to compare, separated by commas; names: {', '.join(options.METHODS)}. The unpruned model always "
        "comes first (default: all methods)."
    )
    options.add_methods(compare, pruning, told)
    compare.add_argument(
        "--repeat", type=options.whole, default=5, help="Number of timed prefills of each method (default: 5)."
    )
    options.add_json(compare)
    options.add_model(compare)
    compare.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "frames", "repeat")
    options.require_question(arguments.question)
    with options.progress() as progress:
        from adatp.evaluation.comparison import compare
        from adatp.methods import METHODS
        from adatp.tables.comparison import comparison_to_dict, print_comparison

        methods = [METHODS[name]() for name in arguments.methods if name != "none"]
        if arguments.flops is not None:
            for method in methods:
                method.check_flops(arguments.flops)
        options.device_of(arguments)
        clip, _ = options.load_clip(arguments, progress.tell)
        loaded = options.load_model(arguments, progress.tell)
        compared = compare(
            loaded,
            clip,
            arguments.question,
            methods,
            flops=arguments.flops,
            repeats=arguments.repeat,
            impl=arguments.impl,
            tell=progress.tell,
        )
    notes = [note for note in (loaded.note, clip.note) if note] + progress.notes
    told = (loaded.name, arguments.video, clip, arguments.question, compared, notes)
    if arguments.json:
        print(json.dumps(comparison_to_dict(*told), allow_nan=False))
    else:
        print_comparison(*told)
    return 0
