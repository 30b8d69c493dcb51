"""`adatp demo`: ask about a held-out video, with and without pruning."""

import argparse
from pathlib import Path
from typing import Any

from adatp.cli import options
from adatp.errors import InputError

CLIP = 101  # held-out, beyond the clips that `adatp study` uses; it has a question of every kind


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    demo = commands.add_parser(
        "demo",
        help="Make a video and ask about it, with and without pruning.",
        description="Make a small synthetic video, ask the model about it, and print the answers with and without "
        "AdaTP side by side. The videos of this command are held out: the built-in model was not trained on them.",
    )
    demo.add_argument(
        "--clip", type=options.whole, default=CLIP, help=f"Number of the video to make, 0 or more (default: {CLIP})."
    )
    demo.add_argument(
        "--video",
        type=Path,
        default=Path("demo.mp4"),
        metavar="FILE.mp4",
        help="File to write the video to (default: demo.mp4).",
    )
    demo.add_argument(
        "--p",
        type=options.real,
        default=1.0,
        help="AdaTP's compression setting p; a larger p keeps more tokens (default: 1.0).",
    )
    options.add_model(demo)
    demo.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.clip < 0:
        raise InputError(f"--clip must be 0 or more, got {arguments.clip}")
    options.require_world()
    with options.progress() as progress:
        from adatp.evaluation.demo import demonstrate
        from adatp.methods import AdaTP
        from adatp.tables.demo import print_demo

        method = AdaTP(p=arguments.p)
        options.device_of(arguments)
        loaded = options.load_model(arguments, progress.tell)
        shown = demonstrate(loaded, arguments.clip, arguments.video, method, impl=arguments.impl, tell=progress.tell)
    notes = [*([loaded.note] if loaded.note else []), *progress.notes]
    print_demo(loaded.name, str(arguments.video), shown, notes)
    return 0
