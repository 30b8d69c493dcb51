"""The command line: arguments in, report out. Each command is a file in this folder."""

import argparse
import sys
from collections.abc import Sequence

from adatp import __version__
from adatp.cli import ablate, compare, convert, demo, figures, flops, run, study, tables, world
from adatp.errors import InputError

COMMANDS = (demo, run, compare, study, figures, tables, ablate, world, flops, convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `adatp`. Returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (InputError, OSError) as error:  # anything else is a bug, and shows itself as one
        if arguments.debug:
            raise
        print(f"adatp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adatp", description="Attention-debiased token pruning for Video LLMs (arXiv 2505.20100)."
    )
    parser.add_argument("--version", action="version", version=f"adatp {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
