"""Running of commands that may hang, crash or fail, with a time limit."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.checkout import ROOT


def finished(
    command: Sequence[str],
    limit: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    with_children: bool = False,
) -> int | None:
    """Run a command in the repository, and end it at a limit.

    Args:
        command: the command to run.
        limit: time limit in seconds.
        log: file for the command's output.
        environment: variables to add to the current ones.
        with_children: whether the command leads a group of processes that is ended with it. A process in the group must
            not start such a group itself, since that group would not be ended.

    Returns:
        The exit code, or None if the command was ended at the limit.
    """
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=with_children,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                if with_children:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            process.wait()


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a command's output."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
