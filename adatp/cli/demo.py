"""`adatp demo`: questions about a held-out video, pruned and unpruned side by side."""

import argparse
from pathlib import Path
from typing import Any

from adatp.cli import options
from adatp.errors import InputError

CLIP = 101  # of the held-out split, behind those of `adatp study`; it has a question of every kind


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    demo = commands.add_parser("demo", help="questions about a video made by code, pruned and unpruned side by side")
    demo.add_argument("--clip", type=int, default=CLIP, help=f"number of the held-out video (default {CLIP})")
    demo.add_argument(
        "--video", type=Path, default=Path("demo.mp4"), metavar="FILE.mp4", help="where to write it (default demo.mp4)"
    )
    demo.add_argument("--p", type=float, default=1.0, help="AdaTP's compression setting (default 1.0)")
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
