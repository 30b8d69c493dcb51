"""The entry point of the command line. Each command is a module of this package."""

import argparse
import sys
from collections.abc import Sequence

from adatp import __version__
from adatp.cli import ablate, compare, convert, demo, figures, flops, run, study, tables, world
from adatp.errors import InputError

COMMANDS = (demo, run, compare, study, figures, tables, ablate, world, flops, convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `adatp` command line.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        Exit code: 0, 2 for input that cannot be used, or 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (InputError, OSError) as error:  # any other exception is a bug: keep its traceback
        if arguments.debug:
            raise
        print(f"adatp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adatp",
        description="Prune visual tokens of Video LLMs by attention-debiased token pruning (AdaTP, arXiv 2505.20100) "
        "and other methods.",
        epilog="'adatp COMMAND --help' lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"adatp {__version__}", help="Print the version.")
    parser.add_argument(
        "--debug", action="store_true", help="Show the traceback of an error (default: only its message)."
    )
    commands = parser.add_subparsers(required=True, title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
