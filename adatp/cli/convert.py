"""`adatp convert`: convert an original LLaVA-Video checkpoint for Hugging Face's classes."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    convert = commands.add_parser(
        "convert",
        help="Convert an original LLaVA-Video checkpoint.",
        description="Convert a LLaVA-Video checkpoint, as its authors publish it, to one that --model can load.",
    )
    convert.add_argument("source", type=Path, metavar="SOURCE", help="Folder of the original checkpoint.")
    convert.add_argument(
        "target", type=Path, metavar="TARGET", help="Folder to write the new checkpoint to; it must be empty or absent."
    )
    convert.add_argument(
        "--pool",
        choices=("average", "bilinear"),
        help="How 2 x 2 features of a frame are pooled to one token (default: as the checkpoint's config.json says).",
    )
    convert.set_defaults(command=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from transformers.utils import logging

    from adatp.models.convert import convert

    logging.set_verbosity_error()
    columns = TextColumn("writing weights"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        convert(
            arguments.source,
            arguments.target,
            pool=arguments.pool,
            tell=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return 0
