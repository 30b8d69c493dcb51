"""The entry point of the command line. Each command is a module of this package."""

import argparse
import io
import os
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from adatp import __version__
from adatp.cli import ablate, calibrate, compare, convert, demo, figures, flops, run, serve, study, tables, world
from adatp.errors import InputError

COMMANDS = (demo, run, serve, compare, study, figures, tables, ablate, calibrate, world, flops, convert)
_REPORTED = ("torch", "transformers", "tokenizers", "av")  # packages whose versions a report of a bug should name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `adatp` command line.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        Exit code: 0; 2 for input that cannot be used; 70 for a bug, with its traceback on stderr; 130 after Ctrl-C; or
        1 if nobody reads the output any more, as of `adatp flops ... | head -1`.
    """
    debug = False
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no UTF-8, and an answer none that the terminal shows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            parser = _parser()
            arguments, rest = parser.parse_known_args(argv)
            if rest and not hasattr(arguments, "flags"):
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            arguments.flags = rest  # of another program
            debug = arguments.debug
            return int(arguments.command(arguments))
        finally:
            _flush()
    except BrokenPipeError:
        return 1
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"adatp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except MemoryError:
        print("adatp: error: there is not enough memory; take fewer --frames, or a smaller model", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print(_bug(), file=sys.stderr)
        return os.EX_SOFTWARE


def _flush() -> None:
    """Write out what stdout still holds: what cannot be written shows itself here, not when Python ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again when it ends
        raise


def _bug() -> str:
    """Return what to say after the traceback of a bug."""
    versions = {
        "adatp": __version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in _REPORTED},
    }
    return (
        "adatp: this is most likely a bug in adatp, not in what you gave it. Please report it with the traceback "
        "above, the command that you ran, and these versions: " + ", ".join(map(" ".join, versions.items()))
    )


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
